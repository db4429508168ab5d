"""A few samples that an attack broke, to look at: what was clean and how it was changed, in one bounded file.

The file holds, for n samples: `clean` uint8 [n, H, W, C], `change` float16 [n, H, W, C] in pixel units of
[0, 1], and `about`, the bytes of a JSON object with all words and numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcli.errors import CheckpointError
from robustcli.regular import read_regular, strict_loads
from robustcli.store.atomic import strict_json, write_atomic

NAME = "examples.safetensors"
#: Bytes of all images of a file.
ROOM = 4 << 20
_BYTES = 3  # for each value of an image: one of the clean one, two of the change
_LIMIT = ROOM + (1 << 20)


@dataclass(frozen=True, eq=False)
class Example:
    """One broken sample.

    Args:
        id: of the sample. true, predicted: names of its class, and of the answer to the adversarial image.
        distance: from the clean image, in pixel units of [0, 1].
        clean: [H, W, C]. change: [H, W, C], adversarial minus clean, in pixel units of [0, 1].
    """

    id: int
    true: str
    predicted: str
    distance: float
    clean: NDArray[np.uint8]
    change: NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Examples:
    """What a file holds.

    Args:
        rows: images of one shape.
        norm: of the distances. title: what was attacked, and how.
        seal: of which evaluation they are; "" where only one has written.
    """

    rows: Sequence[Example]
    norm: str
    title: str = ""
    seal: str = ""


def chosen(rows: Sequence[Example], most: int) -> list[Example]:
    """At most `most` of the rows, and no more than `ROOM` holds, in the order of ids.

    A hash of its id decides whether a sample is kept, not when it was measured or how it looks.
    """
    if not rows:
        return []
    most = fitting(rows[0].clean.size, most)
    found = {row.id: row for row in rows}
    kept = sorted(found, key=place)[:most]
    return [found[i] for i in sorted(kept)]


def fitting(values: int, most: int) -> int:
    """How many images of so many values have room, at most `most`."""
    return min(most, ROOM // (_BYTES * max(1, values)))


def place(sample: int) -> bytes:
    """What ids are sorted by: the first ones are kept."""
    return hashlib.sha256(str(sample).encode()).digest()


def write_examples(path: Path, examples: Examples) -> None:
    """Save them, atomically. Raises ResourceError."""
    from safetensors.numpy import save

    rows = examples.rows
    about = {
        "seal": examples.seal,
        "norm": examples.norm,
        "title": examples.title,
        "rows": [[row.id, row.true, row.predicted, row.distance] for row in rows],
    }
    tensors: dict[str, NDArray[Any]] = {
        "clean": np.ascontiguousarray(np.stack([row.clean for row in rows])),  # save writes memory as it lies
        "change": np.ascontiguousarray(np.stack([row.change for row in rows])),
        "about": np.frombuffer(strict_json(about).encode(), np.uint8),
    }
    write_atomic(path, save(tensors))


def read_examples(path: Path) -> Examples:
    """What `write_examples` has saved. Raises CheckpointError for a file that is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = read_regular(path, _LIMIT)
    try:
        tensors = load(data)
        clean, change = tensors["clean"], tensors["change"]
        about = strict_loads(tensors["about"].tobytes())
        if clean.shape != change.shape or clean.ndim != 4 or not len(clean):
            raise ValueError(f"images {tuple(clean.shape)}, changes {tuple(change.shape)}")
        if clean.dtype != np.uint8 or change.dtype != np.float16 or not np.isfinite(change).all():
            raise ValueError("pixels of another type")
        rows = [
            Example(int(i), str(true), str(predicted), float(distance), clean[k], change[k])
            for k, (i, true, predicted, distance) in enumerate(about["rows"])
        ]
        if len(rows) != len(clean):
            raise ValueError(f"{len(rows)} names of {len(clean)} images")
        return Examples(rows, str(about["norm"]), str(about["title"]), str(about["seal"]))
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"no examples of a run: {error}", where=str(path), hint="measure again", code="E-CKPT-FORMAT"
        ) from error


def sealed_examples(folder: Path, seal: str, say: Callable[[str], None]) -> list[Example]:
    """The rows of all `examples-K.safetensors` in a folder that bear this seal; others do not count.

    say: told of a file that is damaged.
    """
    rows: list[Example] = []
    for path in sorted(folder.glob("examples-*.safetensors")):
        try:
            found = read_examples(path)
        except CheckpointError as error:
            say(f"{path.name} does not count: {error.what}")
            continue
        if found.seal == seal:
            rows += found.rows
    return rows
