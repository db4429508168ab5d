"""What a larger file with images in it can do for a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO, Protocol

from robustcli.errors import DataError

BAD_IMAGE = "E-IMAGE"  # what `bad_image: skip` may skip, together with E-FILE
MOST_BYTES = 256 * 2**20  # of one packed image


class Container(Protocol):
    """Images by name. Decoding processes get a copy of it."""

    def open(self, name: str) -> BinaryIO:
        """The bytes of one image. Raises DataError E-IMAGE or E-FILE, which name it."""
        ...

    def stamp(self, name: str) -> tuple[int, int]:
        """(size in bytes, time in ns) of the image, or of the file that holds it. Raises OSError."""
        ...


def bad_image(what: str, where: str) -> DataError:
    """The error of an image that cannot be read."""
    hint = "remove or replace the file, or data.bad_image=skip (training images only)"
    return DataError(what, where=where, hint=hint, code=BAD_IMAGE)


def refuse_fault(faults: Mapping[str, str], name: str, where: str) -> None:
    """Raises DataError E-IMAGE for an image that was found faulty when its file was listed."""
    if name in faults:
        raise bad_image(faults[name], where)
