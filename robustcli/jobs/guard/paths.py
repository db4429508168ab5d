"""What `guard run` is to look at: image files, those of folders, those of lists, or of standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.data.files import is_image, open_regular
from robustcli.data.images import Decoder, Pixels, planes
from robustcli.errors import DataError

STDIN = "-"
_CHUNK = 1 << 16
_LONGEST = 4096  # bytes of a line


@dataclass(frozen=True)
class Found:
    """One file. root: the folder that its links may not leave; None for one that the user named."""

    path: str
    root: str | None = None

    def pixels(self, shape: tuple[int, int, int]) -> Pixels:
        """uint8 [C, H, W]. Raises DataError E-FILE, E-IMAGE, E-SHAPE."""
        inside = None if self.root is None else [self.root]
        with open_regular(self.path, inside=inside) as stream:
            return planes(Decoder("").read(stream, self.path), shape, self.path)


def found_in(word: str) -> Iterator[list[Found]]:
    """The files that one word of the command line names, in parts: those that are known by now.

    word: an image; a folder, whose images are all meant; `-`, or any other file: paths, one a line.
    Raises DataError where a folder or a list cannot be read.
    """
    if word == STDIN:
        yield from _parts(sys.stdin.fileno(), "")
    elif os.path.isdir(word):
        yield list(_below(word, word))
    elif is_image(word):
        yield [Found(word)]
    else:
        with open_regular(word) as stream:
            yield from _parts(stream.fileno(), os.path.dirname(word))


def _below(folder: str, root: str) -> Iterator[Found]:
    """Images in a folder and below, by name; linked folders are not entered."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        hint = "check the path and its permissions"
        raise DataError(
            f"cannot list the folder: {error.strerror}", where=folder, hint=hint, code="E-FILE"
        ) from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, root)
        elif is_image(entry.name):
            yield Found(entry.path, root)


def _parts(descriptor: int, base: str) -> Iterator[list[Found]]:
    """Paths from an open file; each part is what has come, so that a slow pipe is answered at once."""
    rest = b""
    while chunk := os.read(descriptor, _CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        yield _named(lines, base)
        if len(rest) > _LONGEST:
            raise DataError(
                f"a line has more than {_LONGEST} bytes", hint="list one path a line", code="E-FILE"
            )
    yield _named([rest], base)


def _named(lines: Sequence[bytes], base: str) -> list[Found]:
    """The files of a list; relative paths start at its folder."""
    texts = [os.fsdecode(line.strip()) for line in lines]
    return [Found(str(Path(base, text))) for text in texts if text]
