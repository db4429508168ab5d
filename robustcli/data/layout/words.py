"""The usual names of splits, and the order of class names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"),
}
_PARTS = {word: part for part, words in _WORDS.items() for word in words}
_TAILS = ("set", "split", "data", "images", "imgs")  # of test_set, trainData
_NUMBER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_SHOWN = 5


def part_named(name: str) -> str | None:
    """train, val or test, by its usual names in any case: `Test`, `held-out`, `training_set`; else None."""
    word = re.sub(r"[\s._-]+", "", name.casefold())
    tails = (word.removesuffix(tail) for tail in _TAILS if word.endswith(tail))
    return next((_PARTS[stem] for stem in (word, *tails) if stem in _PARTS), None)


def part_inside(name: str) -> str | None:
    """The split that one whole word of the name says: `images_train`, `test-1`, `val2017`; else None.

    A name with the words of two splits says none.
    """
    words = re.findall(r"[^\W\d_]+", name.casefold())
    parts = {_PARTS[word] for word in words if word in _PARTS}
    return part_named(name) or (parts.pop() if len(parts) == 1 else None)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The class names, sorted: as numbers where all are integers, as text otherwise."""
    listed = list(names)
    if listed and all(_NUMBER.fullmatch(name) for name in listed):
        return tuple(sorted(listed, key=lambda name: (int(name), name)))
    return tuple(sorted(listed))


def order_note(classes: Sequence[str]) -> list[str]:
    """One sentence on the order, where it is not that of the text."""
    if list(classes) == sorted(classes):
        return []
    return [f"classes in this order: {shortened(classes)} (data.classes states another)"]


def shortened(names: Sequence[str]) -> str:
    """The first five names and the last one."""
    if len(names) <= _SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_SHOWN])} … {names[-1]}"
