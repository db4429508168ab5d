"""What an update learns from, and whether the guard that it made may take the place of the old one.

Reviewed images are divided once and for ever: those that decide are never trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robustcli.errors import UsageError
from robustcli.guard.store import Entry, Evidence
from robustcli.proportions import clopper_pearson, sign_test

STARTED = "update"  # kind of the log's entry that names the images of an update
_DIGITS = 8  # hexadecimal digits of a hash that decide on which side its image is
Rule = Literal["not worse", "no fewer"]


@dataclass(frozen=True)
class Lesson:
    """A reviewed image: the hash of its PNG, and its true class, 0 to K - 1."""

    hash: str
    label: int


def lessons(reviewed: Iterable[Evidence], classes: int) -> list[Lesson]:
    """The images whose class a person has named, attacks and false alarms, in the order of their hashes.

    Raises UsageError for a label that is no class.
    """
    found = []
    for each in reviewed:
        label = None if each.review is None else each.review.label
        if label is None:
            continue
        if label >= classes:
            raise UsageError(
                f"the label {label} of an image is none of the {classes} classes, 0 to {classes - 1}",
                where=each.hash[:16],
                hint="correct it: robustcli guard review STORE --label HASH=LABEL",
            )
        found.append(Lesson(each.hash, label))
    return sorted(found, key=lambda lesson: lesson.hash)


def divide(
    found: Sequence[Lesson], held_out: float, trained: frozenset[str]
) -> tuple[list[Lesson], list[Lesson]]:
    """(images to train on, images that decide).

    An image decides when its hash, as a number in [0, 1), lies below `held_out`, and no earlier update was
    trained on it. So it stays on its side from one update to the next.
    """
    decide = [one for one in found if _place(one.hash) < held_out and one.hash not in trained]
    kept = {one.hash for one in decide}
    return [one for one in found if one.hash not in kept], decide


def _place(name: str) -> float:
    return int(name[:_DIGITS], 16) / float(16**_DIGITS)


def trained_before(entries: Iterable[Entry]) -> frozenset[str]:
    """Hashes of all images that an update of this log was trained on, promoted or not."""
    begun = [entry.body.get("trained", []) for entry in entries if entry.kind == STARTED]
    return frozenset(name for names in begun for name in names)


@dataclass(frozen=True)
class Paired:
    """Verdicts of the old and the new guard on the same images, bool [n] each; True is good.

    Args:
        name: of the images and of what was asked.
        rule: "not worse" allows what chance explains; "no fewer" wants at least as many.
    """

    name: str
    old: Tensor
    new: Tensor
    rule: Rule

    @property
    def n(self) -> int:
        """Images."""
        return len(self.old)

    @property
    def gained(self) -> int:
        """Images on which only the new guard is good."""
        return int((~self.old & self.new).sum())

    @property
    def lost(self) -> int:
        """Images on which only the old guard is good."""
        return int((self.old & ~self.new).sum())

    @property
    def p(self) -> float:
        """P(X >= lost), X ~ Binomial(lost + gained, 1/2): McNemar's exact test that the new one is worse."""
        return sign_test(self.lost, self.gained)

    def passed(self, level: float) -> bool:
        """Whether the rule holds; `level` is that of the test."""
        if self.rule == "no fewer":
            return self.gained >= self.lost
        return self.p >= level

    def to_json(self, level: float) -> dict[str, Any]:
        """JSON form, with exact intervals at 95 %."""
        counts = {side: int(verdicts.sum()) for side, verdicts in (("old", self.old), ("new", self.new))}
        shares: dict[str, Any] = {side: count / self.n for side, count in counts.items()}
        for side, count in counts.items():
            shares[f"{side}_interval"] = list(clopper_pearson(count, self.n))
        found = {"name": self.name, "n": self.n, **shares, "gained": self.gained, "lost": self.lost}
        return found | {"p": self.p, "rule": self.rule, "passed": self.passed(level)}


@dataclass(frozen=True)
class Decision:
    """What the gate says: every comparison with its verdict.

    Args:
        level: of the one-sided tests; harm with a smaller p-value is refused.
        believed: whether the new guard's robust accuracy is as credible as that of the old one.
    """

    rows: tuple[Paired, ...]
    level: float
    believed: bool = True

    @property
    def passed(self) -> bool:
        """Whether the new guard may take the old one's place."""
        return self.believed and all(row.passed(self.level) for row in self.rows)

    def gates(self) -> list[dict[str, Any]]:
        """The gates of the document; a comparison that failed is said with its counts."""
        gates = [
            {
                "metric": row.name,
                "value": f"{row.lost} lost and {row.gained} gained of {row.n} (p = {row.p:.2g}, {row.rule})",
                "passed": row.passed(self.level),
            }
            for row in self.rows
        ]
        told = {True: "as credible as before", False: "less credible than before"}[self.believed]
        return [*gates, {"metric": "the robust accuracy", "value": told, "passed": self.believed}]

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        rows = [row.to_json(self.level) for row in self.rows]
        return {"passed": self.passed, "level": self.level, "believed": self.believed, "comparisons": rows}


def safe(label: Tensor, accepted: Tensor, y: Tensor) -> Tensor:
    """bool [n]: not wrong and accepted. label, y int64 [n]; accepted bool [n]."""
    return torch.logical_or(~accepted, label == y)
