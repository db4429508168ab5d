"""What repeats a run: two files in its directory, and one command."""

from __future__ import annotations

from robustcli.config.schema import Config
from robustcli.config.written import resolved_yaml
from robustcli.errors import printable
from robustcli.runtime.seed import environment
from robustcli.store.follower import Follower
from robustcli.store.run import Run

CONFIG = "config.resolved.yaml"


def write_inputs(run: Run | Follower, config: Config) -> None:
    """Write the resolved configuration, which runs again unchanged, and the versions it ran with."""
    if isinstance(run, Follower):
        return
    run.write_text(CONFIG, resolved_yaml(config.model_copy(update={"out": None})))
    run.write_json("env.json", environment())


def same_again(run: Run, command: str) -> str:
    """The sentence of summary.md with the command that repeats the run."""
    line = printable(f"{command} {run.path / CONFIG}").replace("`", " ")
    return f"The same again: `{line}`."
