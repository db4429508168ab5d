"""What an audit of some survivors says of all of them: exact, without assumptions about who is breakable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import comb
from typing import Any

CONFIDENCE = 0.95
#: Falls at which the audit stops and the long list runs on every survivor.
LIMIT = 2


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    n: survivors that met its attacks; 0 = not audited. fallen: of these, broken (they count as broken). bound: largest share of all samples
    that its attacks would break beyond those, with `confidence`; None once escalated. escalated: the long list ran on all survivors.
    due: it should have run and could not (parts of an evaluation). passes: model passes spent.
    """

    n: int
    fallen: int
    bound: float | None
    confidence: float = CONFIDENCE
    escalated: bool = False
    due: bool = False
    passes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The key `audit` of the machine contract."""
        return {key: value for key, value in asdict(self).items() if key not in ("due", "passes")}

    def words(self) -> str:
        """For tables: "audit 0 of 64: its attacks would break at most 2.9 points more, 95 %"."""
        if self.escalated:
            return f"escalated: {self.fallen} of {self.n} audited fell"
        if self.due:
            return f"audit {self.fallen} of {self.n}: escalation is due"
        if not self.n:
            return "not audited"
        if not self.bound:
            return f"audit {self.fallen} of {self.n}, all that stood"
        more = 100 * self.bound
        return f"audit {self.fallen} of {self.n}: its attacks would break at most {more:.1f} points more, {100 * self.confidence:.0f} %"


def most(standing: int, first: int, more: int, fallen: int) -> int:
    """Largest D that an audit of `standing` samples, D of them breakable, would not contradict at 95 %.

    The audit draws `first` without replacement; when none of them falls it ends, when one does it draws `more`. So the outcomes are ordered
    0 of first, 1 of first + more, worse; D is the largest number with P(this outcome or a better one | D) >= 0.05, by exact fractions.

    Args:
        standing: samples from which the audit draws. first, more: sizes of its two draws. fallen: 0, or 1 of first + more.

    Source: Clopper & Pearson, Biometrika 26, 1934, for draws without replacement.
    """
    level = 1 - Fraction(CONFIDENCE).limit_denominator(1000)

    def none_of(size: int, breakable: int, population: int) -> Fraction:
        return (
            Fraction(comb(population - breakable, size), comb(population, size))
            if 0 <= breakable <= population
            else Fraction(0)
        )

    def chance(d: int) -> Fraction:
        found = none_of(first, d, standing)
        if fallen and d and first:
            one = Fraction(d * comb(standing - d, first - 1), comb(standing, first))
            found += one * none_of(more, d - 1, standing - first)
        return found

    return _largest(standing, fallen, lambda d: chance(d) >= level)


def most_of_one_draw(standing: int, size: int, fallen: int) -> int:
    """Largest D with P(at most `fallen` of `size` draws without replacement are among D of `standing`) >= 0.05, exactly."""
    level, total = 1 - Fraction(CONFIDENCE).limit_denominator(1000), comb(standing, size)

    def kept(d: int) -> bool:
        ways = sum(comb(d, k) * comb(standing - d, size - k) for k in range(min(fallen, size) + 1) if k <= d)
        return Fraction(ways, total) >= level

    return _largest(standing, fallen, kept)


def _largest(standing: int, least: int, kept: Callable[[int], bool]) -> int:
    """Largest d in least..standing with kept(d), which holds up to some d and no further."""
    low, high = least, standing
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kept(middle) else (low, middle - 1)
    return low
