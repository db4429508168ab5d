"""What a checkpoint says of its run, read through a schema: a right hash does not prove sense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from robustcli.errors import CheckpointError, RobustCliError, out_of_memory
from robustcli.foreign import ended_by_user_code
from robustcli.store.atomic import strict_json
from robustcli.store.snapshot import Snapshot
from robustcli.training.trainplan import Progress

_MEASURED = ("step", "epoch", "clean_acc", "robust_acc")  # of the best and the last validation
_LATER = {"pace"}  # fields that older versions did not write
#: What reading a state raises that no state of ours raises.
_SENSELESS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ArithmeticError)


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says of its run: configuration as a tree, digest of the data, progress."""

    config: Mapping[str, Any]
    digest: str
    progress: Progress


def stored_in(snapshot: Snapshot, warn: Callable[[str], None]) -> Stored:
    """What a checkpoint says of its run. warn: told of fields of a newer version, which are left out.

    Raises CheckpointError E-CKPT-META.
    """
    meta, where = snapshot.meta, str(snapshot.path)
    config, data, progress = (meta.get(name) for name in ("config", "data", "progress"))
    if not isinstance(config, dict):
        _senseless("config", "no mapping", where)
    if not isinstance(data, dict) or not isinstance(data.get("digest"), str):
        _senseless("data", "no digest", where)
    if not isinstance(progress, dict):
        _senseless("progress", "no mapping", where)
    unknown = sorted(progress.keys() - {field.name for field in fields(Progress)})
    if unknown:
        warn(f"{where}: a newer version wrote {', '.join(unknown)} into the progress; it is left out")
    return Stored(config, data["digest"], _progress(progress, snapshot.step, where))


def _progress(stored: Mapping[str, Any], step: int, where: str) -> Progress:
    """The progress, each field of its type and in its range; all but later ones must be there."""
    missing = sorted({field.name for field in fields(Progress)} - _LATER - stored.keys())
    if missing:
        _senseless("progress", f"{missing[0]} is missing", where)
    try:
        progress = TypeAdapter(Progress).validate_json(strict_json(stored), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        _senseless("progress", f"{'.'.join(map(str, first['loc']))}: {first['msg']}", where)
    if progress.step != step:
        _senseless("progress", f"step {progress.step} in a checkpoint of step {step}", where)
    for name in ("best", "last"):
        _check_measured(getattr(progress, name), f"progress.{name}", where)
    if progress.loss_count and any("loss" not in sums for sums in (progress.loss_sums, *progress.rank_sums)):
        _senseless("progress", "loss_sums has no loss", where)
    return progress


def _check_measured(measured: Mapping[str, Any], name: str, where: str) -> None:
    """Raises CheckpointError unless the mapping is empty or has a number or null for each of `_MEASURED`."""
    if not measured:
        return
    for key in _MEASURED:
        value = measured.get(key, "")
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (whole or (value is None and key != "step")):
            _senseless(name, f"{key} is no number", where)
    if type(measured["step"]) is not int:
        _senseless(name, "step is no whole number", where)


@contextmanager
def sensible(where: str) -> Iterator[None]:
    """An exception inside that is none of ours becomes a CheckpointError: the tensors do not fit.

    The states are those of many hooks and guards, each with a form of its own.
    """
    try:
        yield
    except RobustCliError:
        raise
    except _SENSELESS as error:
        if out_of_memory(error) or ended_by_user_code(error):
            raise
        raise CheckpointError(
            f"the saved state does not fit this run: {type(error).__name__}: {str(error)[:160]}",
            where=where,
            hint="resume with the configuration and the version of the run",
            code="E-CKPT-FORMAT",
        ) from error


def _senseless(name: str, fault: str, where: str) -> NoReturn:
    raise CheckpointError(
        f"the checkpoint does not say how far its run was: {name}: {fault}", where=where, code="E-CKPT-META"
    )
