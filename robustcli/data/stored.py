"""What a data set stores, before any image of it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from robustcli.data.split import Split
from robustcli.errors import DataError


@dataclass(frozen=True)
class Loaded:
    """Stored splits that were read.

    splits: by name.
    faults: unreadable images of each split, by index.
    digest: SHA-256 of pixels, labels and class names of these splits; for streamed files, of paths and sizes.
    notes, warnings: what was chosen on the way, and what looks wrong.
    made_from: size of the stored files, as in 640x480, where they are resized; else "".
    """

    splits: Mapping[str, Split]
    faults: Mapping[str, Mapping[int, DataError]]
    digest: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    made_from: str = ""


class Stored(Protocol):
    """Splits of any name, or train with test, val or both, or test with val.

    names: of the stored splits.
    classes: all classes in the order of their labels.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...

    def labels(self, name: str) -> Tensor:
        """Labels int64 [N] of one split; its images are not read."""
        ...

    def load(self, names: Sequence[str]) -> Loaded:
        """These splits, and no other: their images are read or listed, and checked."""
        ...
