"""Reviewed images of an evidence store as training images, and as images that decide."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from robustcli.data.bundle import DataBundle
from robustcli.data.images import Decoder, planes
from robustcli.data.mixture import JoinedSplit
from robustcli.data.split import MemorySplit
from robustcli.errors import UsageError
from robustcli.guard.store import EvidenceStore
from robustcli.guard.update import Lesson, divide, lessons, trained_before

_FEW = 20  # images that decide; with fewer a gate says little


@dataclass(frozen=True)
class Lessons:
    """The two sets of an update.

    Args:
        train: images to mix in; they stay in memory, so that `guard forget` finds all there are.
        decide: images that the gate asks about.
        train_hashes, decide_hashes: of their PNG files, in the same order.
        left_aside: reviewed images without a class: unusable ones, and false alarms that nobody classified.
    """

    train: JoinedSplit
    decide: MemorySplit
    train_hashes: list[str]
    decide_hashes: list[str]
    left_aside: int


def lessons_of(
    store: EvidenceStore, data: DataBundle, held_out: float, warn: Callable[[str], None]
) -> Lessons:
    """Read and divide all reviewed images of a store.

    Raises UsageError where one of the two sets is empty, DataError for an image that does not fit the data.
    """
    reviewed = store.evidence(reviewed=True)
    found = lessons(reviewed, len(data.classes))
    learn, decide = divide(found, held_out, trained_before(store.entries()))
    if not learn or not decide:
        raise UsageError(
            f"{len(found)} reviewed images with a class are too few: {len(learn)} to train on and "
            f"{len(decide)} to decide",
            where=store.where,
            hint="label more: robustcli guard review STORE; or change --held-out",
        )
    if len(decide) < _FEW:
        warn(f"{len(decide)} images decide, which is few: the gate sees large changes alone")
    hashes = [one.hash for one in learn]
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return Lessons(
        JoinedSplit([_split(store, learn, data)], digest=digest),
        _split(store, decide, data),
        hashes,
        [one.hash for one in decide],
        len(reviewed) - len(found),
    )


def _split(store: EvidenceStore, found: Sequence[Lesson], data: DataBundle) -> MemorySplit:
    decoder = Decoder("")
    pixels = [
        planes(decoder.read(io.BytesIO(store.image(one.hash)), one.hash[:16]), data.shape, one.hash[:16])
        for one in found
    ]
    labels = torch.tensor([one.label for one in found])
    return MemorySplit(torch.from_numpy(np.stack(pixels)), labels, tuple(data.classes))
