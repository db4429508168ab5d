"""When sampling may end early, and what that costs.

Looks happen after 256, 512, 1024, ... draws, at numbers that depend on nothing else. Look j = 0, 1, ... may
err with chance budget / ((j + 1)(j + 2)); these sum to the budget for any number of looks.

- Hopeless: the upper bound of p at level `FUTILE` / ((j + 1)(j + 2)) is below 1/2. The answer is ABSTAIN,
  which claims nothing: no part of alpha is spent, and the radius of every sample that goes on is exactly that
  of a fixed N. A class with p >= 1/2 is given up with chance <= FUTILE = 0.001.
- Sure, only where the caller names a radius that is enough: the lower bound of p at level
  0.01 alpha / ((j + 1)(j + 2)) proves that radius. Samples that go on are then bounded at 0.99 alpha.

A false claim has chance <= alpha in both cases, by the union bound.
"""

from __future__ import annotations

from collections.abc import Iterator

from robustcli.certificates.binomial import lower_bound, upper_bound

FIRST = 256
#: Chance that a class of p >= 1/2 is given up.
FUTILE = 0.001
#: Share of alpha that is spent on looks for sure samples.
SHARE = 0.01


def looks(n: int) -> Iterator[int]:
    """Numbers of draws after which a sample is looked at, all below n."""
    look = FIRST
    while look < n:
        yield look
        look *= 2


def spent(look: int) -> float:
    """Share of a budget that the look after `look` draws has: 1 / ((j + 1)(j + 2)), j its number."""
    number = (look // FIRST).bit_length() - 1
    return 1 / ((number + 1) * (number + 2))


def hopeless(k: int, look: int) -> bool:
    """Whether k hits in `look` draws rule out p >= 1/2."""
    return bool(upper_bound(k, look, FUTILE * spent(look)) < 0.5)


def sure(k: int, look: int, alpha: float) -> float:
    """The lower bound of p after a look, at the level that the looks for sure samples have."""
    return float(lower_bound(k, look, SHARE * alpha * spent(look)))
