"""Unreadable images: which of them may be left out, and the error for all others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.errors import DataError, printable

_SKIPPABLE = ("E-IMAGE", "E-FILE")


def readable(
    config: DataConfig, part: str, positions: Tensor, faults: Mapping[int, DataError]
) -> tuple[Tensor, list[str]]:
    """The positions whose images can be read, and a note on each image that is left out.

    Only training images may be left out, when data.bad_image is skip, up to the share data.max_bad.

    Args:
        config: the data section.
        part: train, val or test.
        positions: int64 [N] in the stored split.
        faults: position in the stored split -> why that image cannot be read.

    Raises:
        DataError: an image may not be left out, or too many would be.
    """
    bad = _places(positions, faults)
    if not bad:
        return positions, []
    errors = list(bad.values())
    error = next((e for e in errors if e.code not in _SKIPPABLE), errors[0])
    if config.bad_image != "skip" or part != "train" or error.code not in _SKIPPABLE:
        raise _refused(error, len(bad), part)
    if len(bad) > float(config.max_bad) * len(positions):
        raise _too_many(error, len(bad), len(positions), float(config.max_bad))
    keep = torch.ones(len(positions), dtype=torch.bool)
    keep[torch.tensor(list(bad))] = False
    return positions[keep], [printable(f"skipped {e.where}: {e.what}") for e in errors]


def _places(positions: Tensor, faults: Mapping[int, DataError]) -> dict[int, DataError]:
    """Place in `positions` -> fault."""
    if not faults:
        return {}
    return {place: faults[row] for place, row in enumerate(positions.tolist()) if row in faults}


def _refused(error: DataError, count: int, part: str) -> DataError:
    what, hint = error.what, error.hint
    if count > 1:
        what += f" (+{count - 1} more in {part})"
    if part != "train" and error.code in _SKIPPABLE:
        hint = "repair or remove the file: evaluation images are never skipped"
    return DataError(what, where=error.where, hint=hint, code=error.code)


def _too_many(error: DataError, count: int, images: int, limit: float) -> DataError:
    return DataError(
        f"{count} of {images} training images are unreadable, more than data.max_bad={limit:g}"
        f"; first: {error.what}",
        where=error.where,
        hint="repair the files, or raise data.max_bad",
        code=error.code,
    )
