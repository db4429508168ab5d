"""Attacks on images that no bound proves. A point counts when the judge confirms it in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.robust import RobustEvaluation

_STEPS = 50


def usual_attacks() -> list[AttackCall]:
    """APGD on the cross-entropy, then on the margin."""
    apgd = registry.attacks.get("apgd")
    return [
        AttackCall.of(apgd, {"steps": _STEPS, "loss": loss}, label=f"apgd-{loss}")
        for loss in ("ce", "margin")
    ]


class Falsifier:
    """Looks for a point of another class in the ball around an image.

    Args:
        model: the classifier, held frozen by the caller.
        ball: the threat.
        attacks: run in order, each on the images still standing.
        seed: of their draws, which depend on it and the sample id alone.
        stop: called before every model pass; raises to interrupt.
    """

    def __init__(
        self,
        model: nn.Module,
        ball: Ball,
        attacks: Sequence[AttackCall],
        seed: int,
        stop: Callable[[], None],
    ) -> None:
        plan = EvalPlan(ball, attacks, seed=seed, stream="certify")
        self._evaluation = RobustEvaluation(model, plan, stop=stop)

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(bool [B], int64 [B], [B, C, H, W]): whether a point was found, its class, and the point.

        x: pixels [B, C, H, W] in [0, 1]; y, ids: int64 [B].
        """
        outcome = self._evaluation.attack_batch(x, y, ids)
        return ~outcome.survivors, outcome.predicted, outcome.x_adv
