"""Search on one model for points that are shown to another: black-box attack by surrogate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier
from robustcli.evaluation.plan import AttackCall, Search


def searched(
    twin: Classifier,
    call: AttackCall,
    x: Tensor,
    criterion: Criterion,
    ball: Ball,
    rng: RowRandom,
    *,
    stop: Callable[[], None] | None = None,
    draws: int = 1,
) -> Tensor:
    """x_adv [B, C, H, W]: the worst point that one attack finds on a model; nothing leaves early, for a deeper point carries further.

    Of a minimal-norm attack the closest success; x where that lies outside the ball.
    """
    oracle = call.oracle(twin, x, criterion, rng=rng, ball=ball, stop=stop, draws=draws)
    return call.points(oracle, x, ball)


def transferred(
    surrogate: nn.Module,
    call: AttackCall,
    search: Search | None = None,
    *,
    stop: Callable[[], None] | None = None,
) -> Callable[[Oracle, Tensor, Ball], Tensor]:
    """A black-box attack: x_adv = argmax of the loss on `surrogate` inside the ball, shown to the victim once.

    Args:
        surrogate: pixels [B, C, H, W] in [0, 1] -> logits [B, K], on the victim's device; the victim's answers are never searched on.
        call: the attack that runs on it.
        search: how it computes there; None means the call's own, else the default.
        stop: raises to interrupt, called before every pass of the surrogate.

    Returns an attack (oracle, x, ball) -> x_adv [B, C, H, W]; cost on the victim: one forward pass.
    Source: Papernot et al., 2016, arXiv:1605.07277.
    """
    chosen = replace(call, search=search or call.search).searching(Search())
    twins: list[Classifier] = []

    def transfer(oracle: Oracle, x: Tensor, ball: Ball) -> Tensor:
        """x_adv from the surrogate; the victim's oracle sees it once."""
        if not len(x):
            return oracle.result(x)
        with frozen(surrogate):
            if not twins:
                twins.append(chosen.twin(surrogate, x))
            criterion = Criterion(oracle.y, oracle.target)
            found = searched(
                twins[0], call, x, criterion, ball, oracle.rng, stop=stop, draws=chosen.draws or 1
            )
        return oracle.result(found)

    return transfer
