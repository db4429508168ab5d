"""The run as the other ranks see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Follower:
    """The run as another rank sees it: the same directory without its lock, where rank 0 alone writes.

    path: of the directory, or a function that waits until rank 0 has one.
    """

    def __init__(self, path: Path | Callable[[], Path], *, resumed: bool) -> None:
        self._path, self.resumed = path, resumed

    @property
    def path(self) -> Path:
        """The directory, once rank 0 has it."""
        if callable(self._path):
            self._path = self._path()
        return self._path

    @property
    def checkpoints(self) -> Path:
        """See `Run.checkpoints`."""
        return self.path / "checkpoints"

    def begin(self) -> None:
        """Does nothing: rank 0 takes the directory."""

    def status(self, **fields: Any) -> None:
        """Does nothing: rank 0 writes the status."""

    def write_text(self, name: str, text: str) -> Path:
        """The path at which rank 0 writes."""
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """The path at which rank 0 writes."""
        return self.path / name

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *ending: object) -> None:
        return None
