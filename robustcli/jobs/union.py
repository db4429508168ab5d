"""An evaluation in a union of balls: one in each ball, on the same samples, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from robustcli.assembly.rows import rows_of
from robustcli.assembly.setting import Setting
from robustcli.config.threats import threat_name
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.result import Evaluation
from robustcli.evaluation.union import united
from robustcli.jobs.measure import Shards, measure
from robustcli.records.eval import EvalRow
from robustcli.runtime.team import Team
from robustcli.store.disk import explained
from robustcli.store.follower import Follower
from robustcli.store.run import Run
from robustcli.terminal.console import Console

#: A ball and the attacks behind the configured ones, which may depend on it.
Extra = Callable[[Setting], Sequence[AttackCall]]


def measure_all(
    setting: Setting,
    model: nn.Module,
    console: Console,
    stop: Callable[[], None],
    run: Run | Follower,
    share: tuple[int, int] | None,
    accepted: Callable[[], None],
    *,
    extra: Sequence[Sequence[AttackCall]],
    team: Team,
) -> tuple[Evaluation, list[EvalRow]]:
    """Run the configured attacks in each ball; one ball is measured as `measure` does.

    Args:
        setting, model, console, stop, team: as for `measure`.
        run: has the shards, those of each ball of a union in a folder of its own. share, accepted: see
            `Shards`.
        extra: for each ball, the attacks behind the configured ones.

    Returns the evaluation and its records.
    """
    parts, results = setting.parts, dict[str, Evaluation]()
    for k, (part, calls) in enumerate(zip(parts, extra, strict=True)):
        shards = Shards(_folder(run, part), share, accepted, entered=k > 0)
        result, rows = measure(part, model, console, stop, extra=calls, shards=shards, team=team)
        if len(parts) == 1:
            return result, rows
        results[threat_name(part.ball.norm, part.ball.eps)] = result
    whole = united(results)
    return whole, rows_of(setting, model, whole)


def shard_folders(run: Path, setting: Setting) -> list[Path]:
    """The folders of the shards of all balls."""
    return [run / folder for folder in map(_name, setting.parts)]


def _name(part: Setting) -> Path:
    """The folder of one ball below the run; of a union it has the name of the norm."""
    return Path("shards", part.ball.norm) if part.union else Path("shards")


def _folder(run: Run | Follower, part: Setting) -> Callable[[], Path]:
    def folder() -> Path:
        path = run.path / _name(part)
        if part.union:
            with explained(path.parent):
                path.parent.mkdir(exist_ok=True)  # without its parents: a run that was removed stays so
        return path

    return folder
