"""Points searched on one model and shown to another: a black-box attack by surrogate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier, reject_of
from robustcli.evaluation.joint import Join, jointly, strongest
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
    surrogates: nn.Module | Sequence[nn.Module],
    call: AttackCall,
    *,
    join: Join = "loss",
    stop: Callable[[], None] | None = None,
) -> Callable[[Oracle, Tensor, Ball], Tensor]:
    """x_adv = argmax of the loss on the surrogates in the ball: a black-box attack on the victim.

    The victim sees the final point once. Its answers do not steer the search.

    Args:
        surrogates: one or several, pixels [B, C, H, W] in [0, 1] -> logits [B, K], on the victim's device.
        call: the attack that runs on them, with its own search settings or the default ones.
        join: how several are searched on together, see `evaluation.joint`.
        stop: raises to interrupt. It is called before every pass of a surrogate.

    Returns an attack (oracle, x, ball) -> x_adv [B, C, H, W]. Cost on the victim: one forward pass.
    Raises ValueError for a guarded surrogate beside one that is none.
    Source: Papernot et al., 2016, arXiv:1605.07277; several: Liu et al., ICLR 2017, arXiv:1611.02770.
    """
    models = [surrogates] if isinstance(surrogates, nn.Module) else list(surrogates)
    search = call.searching(Search())
    rejects = {reject_of(model) for model in models}
    if len(rejects) > 1:
        raise ValueError("a guarded model and one without a guard have no logits in common")
    reject = rejects.pop()
    twins: list[Classifier] = []

    def transfer(oracle: Oracle, x: Tensor, ball: Ball) -> Tensor:
        if not len(x):
            return oracle.result(x)
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(frozen(model))
            if not twins:
                twins.extend(search.twin(model, x) for model in models)
            criterion = Criterion(oracle.y, oracle.target, reject)

            def one(model: Classifier, draws: int) -> Tensor:
                rng = oracle.rng.rows(slice(None))  # each search begins at the same draws
                return searched(model, call, x, criterion, ball, rng, stop=stop, draws=draws)

            points = jointly(twins, join, [search.draws or 1] * len(twins), one)
            x_adv = strongest(points, lambda point: _harm(twins, point, criterion))
        return oracle.result(x_adv)

    return transfer


@torch.no_grad()
def _harm(twins: Sequence[Classifier], x_adv: Tensor, criterion: Criterion) -> Tensor:
    """[R]: how far points are across the boundary, the mean over the models."""
    loss = criterion.bind("margin")
    return torch.stack([loss(criterion.joint(twin(x_adv).to(x_adv.dtype))) for twin in twins]).mean(0)
