"""How often a gate may look, and what of its error each look spends.

Two looks, each at half the error: P(the first errs or the second errs) <= alpha/2 + alpha/2, however the two
samples depend on each other (Bonferroni). So the second may hold the samples of the first.
"""

from __future__ import annotations

from robustcli.gating.evidence import ALPHA

#: Samples of the first look, and of the second one, which is taken where the first was inconclusive.
LOOKS = (512, 2000)


def alpha_of(look: int, more: bool) -> float:
    """What a look may err.

    look: its number, from 0. more: whether another look would follow where this one is inconclusive. That is
    known before anything is measured: a set of 360 images is looked at once, with the whole error.
    """
    return ALPHA / len(LOOKS) if look or more else ALPHA
