"""What an audit of some survivors proves about all of them, by exact probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import comb
from typing import Any

CONFIDENCE = 0.95
#: Falls at which the audit stops and the long list runs on every survivor.
LIMIT = 2
#: An outcome less likely than this speaks against the D that it was computed for.
_CONTRADICTED = 1 - Fraction(CONFIDENCE).limit_denominator(1000)


@dataclass(frozen=True)
class Audit:
    """What an audit saw.

    Args:
        n: survivors that met the audit's attacks; 0 = not audited.
        fallen: how many of them broke; these count as broken.
        bound: share of all samples in [0, 1]. With `confidence` the audit's attacks would break at most this
            share more. None where the long list ran or should have run.
        confidence: of the bound, in (0, 1).
        escalated: the long list ran on all survivors.
        due: the long list should have run, but this is a part of an evaluation.
        passes: model passes spent.
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
        """For tables, such as "audit 0 of 64: its attacks would break at most 2.9 points more, 95 %"."""
        if self.escalated:
            return f"escalated: {self.fallen} of {self.n} audited fell"
        if self.due:
            return f"audit {self.fallen} of {self.n}: escalation is due"
        if not self.n:
            return "not audited"
        if not self.bound:
            return f"audit {self.fallen} of {self.n}, all that stood"
        most = f"at most {100 * self.bound:.1f} points more, {100 * self.confidence:.0f} %"
        return f"audit {self.fallen} of {self.n}: its attacks would break {most}"


def most_breakable(standing: int, first: int, more: int, fallen: int) -> int:
    """Largest D with P(this outcome or a better one | D of `standing` samples are breakable) >= 0.05.

    The probability is an exact fraction. The audit draws `first` samples without replacement. When none falls
    it ends. When one falls it draws `more`. The outcomes from the best on are: 0 of first, 1 of first + more,
    all others.

    Args:
        standing: samples from which the audit draws.
        first, more: sizes of its two draws.
        fallen: the outcome, 0 of first or 1 of first + more.

    Source: Clopper & Pearson, Biometrika 26, 1934, for draws without replacement.
    """

    def chance(d: int) -> Fraction:
        none = _none_drawn(first, d, standing)
        if not (fallen and d and first):
            return none
        one = Fraction(d * comb(standing - d, first - 1), comb(standing, first))
        return none + one * _none_drawn(more, d - 1, standing - first)

    return _largest(standing, fallen, lambda d: chance(d) >= _CONTRADICTED)


def most_breakable_of_one_draw(standing: int, size: int, fallen: int) -> int:
    """Largest D with P(at most `fallen` of `size` draws hit D of `standing` samples) >= 0.05, exactly.

    Draws are without replacement. It bounds an audit whose second draw did not depend on the first.
    """
    total = comb(standing, size)

    def kept(d: int) -> bool:
        ways = sum(comb(d, k) * comb(standing - d, size - k) for k in range(min(fallen, size, d) + 1))
        return Fraction(ways, total) >= _CONTRADICTED

    return _largest(standing, fallen, kept)


def _none_drawn(size: int, breakable: int, population: int) -> Fraction:
    """C(population - breakable, size) / C(population, size): the chance that no draw is breakable."""
    if not 0 <= breakable <= population:
        return Fraction(0)
    return Fraction(comb(population - breakable, size), comb(population, size))


def _largest(standing: int, least: int, kept: Callable[[int], bool]) -> int:
    """Largest d in least..standing for which kept(d) is true.

    kept is true up to some d and false beyond it; kept(least) is not asked.
    """
    low, high = least, standing
    while low < high:
        middle = (low + high + 1) // 2
        if kept(middle):
            low = middle
        else:
            high = middle - 1
    return low
