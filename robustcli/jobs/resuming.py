"""How a training run resumes: from which checkpoint, whether it may, and what of its progress counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robustcli.config.schema import Config
from robustcli.config.written import written_out
from robustcli.errors import UsageError
from robustcli.jobs.stored import Stored
from robustcli.runtime.distributed import Ranks
from robustcli.store.follower import Follower
from robustcli.store.retention import point, sweep
from robustcli.store.run import Run
from robustcli.store.snapshot import Snapshot, latest_good
from robustcli.terminal.console import Console
from robustcli.training.resume import check_resume
from robustcli.training.trainplan import Progress

_BUDGET = ("steps", "minutes", "epochs")
_ENDS = ("patience", "overfitting", *_BUDGET)


def check_flags(resume: bool, overwrite: bool) -> None:
    """Raises UsageError for --resume with --overwrite."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")


def say_if_anew(run: Run | Follower, console: Console) -> None:
    """Tell the user of --resume that there was nothing to go on with."""
    if not run.resumed:
        console.warn(f"--resume found no run to go on with: starting anew in {run.path}")


def newest_checkpoint(run: Run | Follower, ranks: Ranks, console: Console) -> Snapshot | None:
    """The newest checkpoint that verifies, or None.

    Rank 0 first removes what an interrupted save left.
    """
    if ranks.main:
        for stale in sweep(run.checkpoints):
            console.info(f"removed {stale.name}, left by an interrupted save")
    ranks.barrier()
    return latest_good(run.checkpoints, console.warn)


def check_same_experiment(
    stored: Stored,
    tree: Mapping[str, Any],
    digest: str,
    override: Sequence[str],
    warn: Callable[[str], None],
) -> None:
    """Raises UsageError E-RESUME for other data, or for a key whose change makes another experiment.

    Args:
        stored: what the checkpoint says of its run.
        tree: the present configuration, as a tree.
        digest: hash of the present training data.
        override: keys whose change the user allows.
        warn: told of a change that is allowed.
    """
    if stored.digest != digest and "data" not in override:
        raise UsageError(
            "the data is not the data of this run (its digest differs)",
            hint="restore it, or add --override-resume data",
            code="E-RESUME",
        )
    check_resume(_completed(stored.config), tree, override, warn)


def progress_from(
    stored: Stored, tree: Mapping[str, Any], world: int, warn: Callable[[str], None]
) -> Progress:
    """The progress in a checkpoint, adapted to the present configuration.

    A changed budget is computed anew. A run that had ended early goes on when the budget, the patience or the
    reaction to overfitting has changed.

    Args:
        stored: what the checkpoint says of its run.
        tree: the present configuration, as a tree.
        world: number of processes now.
        warn: told when the run had another number of processes.
    """
    progress = stored.progress
    if progress.world != world:
        warn(
            f"the run had {progress.world} processes and goes on with {world}:"
            " close to, but not bitwise, the same training"
        )
    before, now = stored.config.get("train"), tree["train"]
    if not isinstance(before, dict):
        before = {}
    if _changed(before, now, _ENDS):
        progress.ended = ""  # what ended the run may no longer hold
    if _changed(before, now, _BUDGET):
        progress.max_steps = 0
    return progress


def repoint(checkpoints: Path, name: str, progress: Progress) -> None:
    """Point "last", and "best" where it is the best, to checkpoint `name`.

    A kill may have come between the save of this checkpoint and its pointers.
    """
    point(checkpoints, "last", name)
    if progress.best.get("step", progress.step) == progress.step:
        point(checkpoints, "best", name)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> bool:
    return any(before.get(key) != now.get(key) for key in keys)


def _completed(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored configuration with the defaults of keys and parameters that it does not state.

    The run was trained under them: older versions did not write the defaults of methods.

    A stored configuration that is no longer valid is returned unchanged.
    """
    try:
        return written_out(Config.model_validate(tree).model_dump(mode="json"))
    except ValidationError:
        return tree
