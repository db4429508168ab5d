"""The worst point of each sample under one attack, for callers who want images and not a verdict."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.random import RowRandom
from robustcli.core.settling import SettlingOracle
from robustcli.core.types import Classifier
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall


class WorstPoints:
    """One attack on batches of a model; each success is one of the model itself, in fp32.

    Rows whose best point is a success of the twin alone are searched again on the model, and so are those
    that a twin in low precision may just have missed.

    Args:
        call: the attack.
        model: the classifier, held frozen by the caller.
        twin: what is searched on; the model itself where there is no twin.
        ball: the threat.
        stop: called before every model pass; raises to interrupt.
    """

    def __init__(
        self,
        call: AttackCall,
        model: nn.Module,
        twin: Classifier,
        ball: Ball,
        stop: Callable[[], None] | None = None,
    ) -> None:
        self._call, self._model, self._twin = call, model, twin
        self._ball, self._stop = ball, stop
        self._judge = Judge(model, ball)

    def __call__(self, x: Tensor, y: Tensor, rng: RowRandom) -> Tensor:
        """x_adv [B, C, H, W] of pixels x [B, C, H, W] in [0, 1] with labels y, int64 [B]."""
        return self._searched(self._twin, x, self._judge.criterion(y), rng)

    def _searched(self, on: Classifier, x: Tensor, criterion: Criterion, rng: RowRandom) -> Tensor:
        exact = None if on is self._model else self._judge.logits
        closest_in = self._ball if self._call.kind == "minimal" else None
        blind = self._call.needs == "decisions"
        oracle = SettlingOracle(
            on, x, criterion, rng=rng, exact=exact, closest_in=closest_in, stop=self._stop, blind=blind
        )
        fresh = rng.rows(slice(None))  # an attack moves the numbers of its draws on
        x_adv = self._call.fn(oracle, x, self._ball, **self._call.params)
        rows = oracle.doubtful
        if len(rows):
            x_adv = x_adv.clone()
            x_adv[rows] = self._searched(self._model, x[rows], criterion.rows(rows), fresh.rows(rows))
        return x_adv
