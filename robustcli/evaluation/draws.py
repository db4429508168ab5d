"""How many passes of a randomised model stand behind each answer that an attack on it gets.

Averaging over draws (EOT) makes a gradient believable. A long search averages over its own steps as well, so
it needs fewer draws in each: every attack may spend about what two short ones spend at 20 draws. What the
judge says of a point rests on 25 fresh draws, whatever the search averaged over.
"""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.evaluation.plan import AttackCall

EOT_DRAWS = 20  # AutoAttack's version "rand"
_FEWEST = 2
_PASSES = 8400  # a sample: two runs of APGD with 100 steps and 20 draws


def averaged(call: AttackCall, classes: int, norm: str) -> int:
    """Passes of a randomised model averaged per answer, where neither call nor configuration says how many.

    20 for a search of up to 420 passes, fewer for a longer one, 2 at least.
    """
    passes = call.passes(classes, norm)
    return max(_FEWEST, min(EOT_DRAWS, _PASSES // max(1, passes)))


def spent(
    calls: Sequence[AttackCall], classes: int, norm: str, *, randomised: bool, draws: int | None = None
) -> list[int]:
    """Model passes of each attack on one sample that survives it, all draws included.

    randomised: whether the model answers differently each time. draws: `Search.draws` of the plan.
    """
    return [call.passes(classes, norm) * _factor(call, classes, norm, randomised, draws) for call in calls]


def _factor(call: AttackCall, classes: int, norm: str, randomised: bool, draws: int | None) -> int:
    """By how much `AttackCall.passes`, which knows the draws of its own search alone, is multiplied."""
    if call.search is not None:
        draws = 1 if call.search.draws else None
    if draws is None:
        return averaged(call, classes, norm) if randomised else 1
    return draws
