"""Points searched on one model and shown to another: a black-box attack by surrogate."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier, reject_of
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
    """x_adv [B, C, H, W]: the worst point that one attack finds on a model.

    A row that falls is searched on, because a point deeper in the wrong class transfers better. A
    minimal-norm attack gives the closest success, or x where that success lies outside the ball.

    Args:
        twin: what is searched on, pixels [B, C, H, W] in [0, 1] -> logits [B, K].
        call: the attack.
        x: clean pixels [B, C, H, W] in [0, 1].
        criterion, rng: labels and random streams of the B rows.
        ball: the threat.
        stop: raises to interrupt. It is called before every pass.
        draws: model passes averaged per answer.
    """
    oracle = call.oracle(twin, x, criterion, rng=rng, ball=ball, stop=stop, draws=draws)
    return call.points(oracle, x, ball)


def transferred(
    surrogate: nn.Module,
    call: AttackCall,
    *,
    stop: Callable[[], None] | None = None,
) -> Callable[[Oracle, Tensor, Ball], Tensor]:
    """x_adv = argmax of the loss on `surrogate` in the ball: a black-box attack on the victim.

    The victim sees the final point once. Its answers do not steer the search.

    Args:
        surrogate: pixels [B, C, H, W] in [0, 1] -> logits [B, K], on the victim's device.
        call: the attack that runs on the surrogate, with its own search settings or the default ones.
        stop: raises to interrupt. It is called before every pass of the surrogate.

    Returns an attack (oracle, x, ball) -> x_adv [B, C, H, W]. Cost on the victim: one forward pass.
    Source: Papernot et al., 2016, arXiv:1605.07277.
    """
    search = call.searching(Search())
    twins: list[Classifier] = []

    def transfer(oracle: Oracle, x: Tensor, ball: Ball) -> Tensor:
        if not len(x):
            return oracle.result(x)
        with frozen(surrogate):
            if not twins:
                twins.append(search.twin(surrogate, x))
            criterion, draws = Criterion(oracle.y, oracle.target, reject_of(surrogate)), search.draws or 1
            x_adv = searched(twins[0], call, x, criterion, ball, oracle.rng, stop=stop, draws=draws)
        return oracle.result(x_adv)

    return transfer
