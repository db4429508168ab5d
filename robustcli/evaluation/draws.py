"""How many passes of a randomised model stand behind each answer that an attack on it gets.

Averaging over draws (EOT) makes a gradient believable. A long search averages over its own steps as well,
so it needs fewer draws in each: one in the ball may spend what three runs of APGD spend at 20 draws.
Minimal-norm and score-based searches break little that averaged gradients leave, and get less. What the judge
says of a point rests on 25 fresh draws, whatever the search averaged over.
"""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.evaluation.plan import AttackCall

EOT_DRAWS = 20  # AutoAttack's version "rand"
_FEWEST = 2
_PASSES, _OTHERS = 12_600, 5_600  # a sample: searches by gradients inside the ball, and others


def averaged(call: AttackCall, classes: int, norm: str) -> int:
    """Passes of a randomised model averaged per answer, where neither call nor configuration says how many.

    20 for a search by gradients of up to 630 passes and for others of up to 280; fewer for longer ones, 2 at
    least.
    """
    most = _PASSES if call.kind == "fixed" and call.needs == "gradient" else _OTHERS
    return max(_FEWEST, min(EOT_DRAWS, most // max(1, call.passes(classes, norm))))


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
