"""What `guard run` is to look at: image files, those of folders, those of lists, or standard input."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.data.files import entries, is_image, open_regular
from robustcli.data.images import Decoder, Pixels, planes
from robustcli.data.packed.container import BAD_IMAGE
from robustcli.errors import DataError

STDIN = "-"
_CHUNK = 1 << 16
_LONGEST = 4096  # bytes of a line
_LARGEST = 256 << 20  # bytes of an image on standard input
_TELLING = 16  # bytes that tell an image from a list
#: How the image formats that are read begin, and no list of paths does.
_BEGINS = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0{4}|II\*\0|MM\0\*|P[2356]\r?\n[#\d]", re.DOTALL
)


@dataclass(frozen=True)
class Found:
    """One file.

    Args:
        path: as answers name it.
        root: the folder that its links may not leave; None for one that the user named.
        content: its bytes, where it came without a file.
    """

    path: str
    root: str | None = None
    content: bytes | None = None

    def pixels(self, shape: tuple[int, int, int]) -> Pixels:
        """uint8 [C, H, W]. Raises DataError E-FILE, E-IMAGE, E-SHAPE."""
        if self.content is not None:
            return planes(Decoder("").read(io.BytesIO(_alone(self.content)), self.path), shape, self.path)
        inside = None if self.root is None else [self.root]
        with open_regular(self.path, inside=inside) as stream:
            return planes(Decoder("").read(stream, self.path), shape, self.path)


def found_in(word: str) -> Iterator[list[Found]]:
    """The files that one word of the command line names, in parts: those that are known by now.

    word: an image; a folder, whose images are all meant; any other file: paths, one a line; `-`: standard
        input, which is an image or such a list.
    Raises DataError where a folder, a list or standard input cannot be read.
    """
    if word == STDIN:
        yield from _standard_input(sys.stdin.fileno())
    elif os.path.isdir(word):
        yield list(_below(word, word))
    elif is_image(word):
        yield [Found(word)]
    else:
        with open_regular(word) as stream:
            yield from _parts(stream.fileno(), os.path.dirname(word))


def _below(folder: str, root: str) -> Iterator[Found]:
    """Images in a folder and below, by name; hidden ones are left out, and linked folders not entered."""
    for entry in entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, root)
        elif is_image(entry.name):
            yield Found(entry.path, root)


def _standard_input(descriptor: int) -> Iterator[list[Found]]:
    """The image that came, or the files of the list that came; its first bytes tell which of them it is."""
    head = b""
    while len(head) < _TELLING and b"\n" not in head and (more := os.read(descriptor, _CHUNK)):
        head += more
    if _BEGINS.match(head):
        yield [Found(STDIN, content=_whole(descriptor, head))]
    else:
        yield from _parts(descriptor, "", head)


def _whole(descriptor: int, head: bytes) -> bytes:
    """All that comes. Raises DataError where that is more than an image has."""
    parts, size = [head], len(head)
    while chunk := os.read(descriptor, _CHUNK):
        parts.append(chunk)
        size += len(chunk)
        if size > _LARGEST:
            what = f"an image of more than {_LARGEST >> 20} MB on standard input"
            raise DataError(what, where=STDIN, hint="name files, or pipe a list of them", code=BAD_IMAGE)
    return b"".join(parts)


def _alone(content: bytes) -> bytes:
    """The bytes of one image. Raises DataError where another one follows: nobody would be told of it."""
    if content.find(content[:8], 8) >= 0:
        what, hint = "more than one image on standard input", "name the files, or pipe a list of their paths"
        raise DataError(what, where=STDIN, hint=hint, code=BAD_IMAGE)
    return content


def _parts(descriptor: int, base: str, rest: bytes = b"") -> Iterator[list[Found]]:
    """Paths from an open file; each part is what has come, so that a slow pipe is answered at once.

    rest: bytes that were read before.
    """
    chunk = rest or os.read(descriptor, _CHUNK)
    rest = b""
    while chunk:
        *lines, rest = (rest + chunk).split(b"\n")
        yield _named(lines, base)
        if len(rest) > _LONGEST:
            raise DataError(
                f"a line has more than {_LONGEST} bytes", hint="list one path a line", code="E-FILE"
            )
        chunk = os.read(descriptor, _CHUNK)
    yield _named([rest], base)


def _named(lines: Sequence[bytes], base: str) -> list[Found]:
    """The files of a list; relative paths start at its folder."""
    texts = [os.fsdecode(line.strip()) for line in lines]
    return [Found(str(Path(base, text))) for text in texts if text]
