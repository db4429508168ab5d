"""Do attacks carry over? Points made on each of several models, shown to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.core.losses import Criterion, margin
from robustcli.core.modes import frozen
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier
from robustcli.data.split import Split
from robustcli.errors import out_of_memory
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import EvalPlan, Search
from robustcli.evaluation.sizing import in_batches
from robustcli.evaluation.surrogate import searched
from robustcli.proportions import sign_test
from robustcli.records.alarm import Alarm

#: Chance that an honest set of models raises `transfer-beats-white-box`, over all pairs.
LEVEL = 0.025
_SHOWN = 32  # images on which search twins are compared with their models: the same whatever the batch


@dataclass(frozen=True)
class Transfer:
    """Counts over M models; rows of a matrix are sources, columns targets.

    names: the models. n: samples measured. correct: int64 [M], right on the clean image. ids: int64 [m], jointly correct samples.
    broken: int64 [M, M], of these m, the ones whose point made on the source breaks the target; the diagonal is white-box.
    gained, lost: int64 [M, M], broken by the source's point and not by the target's own, and the other way round.
    """

    names: tuple[str, ...]
    n: int
    correct: Tensor
    ids: Tensor
    broken: Tensor
    gained: Tensor
    lost: Tensor

    @property
    def jointly_correct(self) -> int:
        """Samples that all models classify correctly on clean images: what every rate is a share of."""
        return len(self.ids)

    @property
    def matrix(self) -> list[list[float | None]]:
        """broken / m, or None where no sample is jointly correct."""
        return [[int(k) / len(self.ids) if len(self.ids) else None for k in row] for row in self.broken]


def transfer_matrix(
    models: Mapping[str, nn.Module],
    plan: EvalPlan,
    split: Split,
    positions: Tensor,
    device: torch.device,
    *,
    stop: Callable[[], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    done: Callable[[int], None] = lambda samples: None,
) -> Transfer:
    """rate[s, t] = share of the jointly correct samples whose point made on s breaks t, judged by t's own fp32 judge.

    One point per source and sample, chosen without asking the target: that of the first attack of the plan that breaks the source,
    else the one of the largest margin there. Memory: one batch, halved (which `say` tells) where that does not fit, and the ids of the
    jointly correct samples.

    Args:
        models: two or more, name -> pixels [B, C, H, W] in [0, 1] -> logits [B, K], the same K for all.
        plan: ball, attacks inside it, seed, batch size and search; untargeted.
        split, positions: what to measure, int64 [n].
        done: told how many samples each finished batch had.

    Raises ValueError: one model, other numbers of classes, a targeted plan or an attack outside the ball.
    Source: Papernot et al., 2016, arXiv:1605.07277; Liu et al., ICLR 2017, arXiv:1611.02770.
    """
    if len(models) < 2:
        raise ValueError(f"transfer needs two models or more, got {len(models)}")
    if plan.target is not None:
        raise ValueError(f"transfer is measured untargeted, got target={plan.target!r}")
    if unbounded := [call.label for call in plan.attacks if not call.bounded]:
        raise ValueError(f"transfer is measured inside the ball; not inside: {', '.join(unbounded)}")
    size = len(models)
    correct, counts = torch.zeros(size, dtype=torch.int64), torch.zeros(3, size, size, dtype=torch.int64)
    ids_seen: list[Tensor] = []
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(frozen(model))
        shown = (
            next(iter(split.stream([positions[:_SHOWN]], device)))[0] if len(positions) else torch.zeros(0)
        )
        members = [_Member(model, plan, shown, stop, say) for model in models.values()]

        def work(x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            right, joint, broken = _batch(members, x, y, ids)
            return right.cpu(), broken.cpu(), ids[joint].cpu()

        for right, broken, joint in in_batches(split, positions, device, plan.batch_size, work, say):
            own = broken.diagonal().T[None]  # [1, M, R]: what the targets' own points break
            correct += right.sum(1)
            counts += torch.stack([broken.sum(2), (broken & ~own).sum(2), (~broken & own).sum(2)])
            ids_seen.append(joint)
            done(right.shape[1])
    found = torch.cat(ids_seen) if ids_seen else torch.zeros(0, dtype=torch.int64)
    return Transfer(tuple(models), len(positions), correct, found, *counts)


class _Member:
    """One model of the matrix, frozen: its judge, and its search twins, made once."""

    def __init__(
        self,
        model: nn.Module,
        plan: EvalPlan,
        shown: Tensor,
        stop: Callable[[], None] | None,
        say: Callable[[str], None],
    ) -> None:
        self._model, self._plan, self._shown, self._stop, self._say = model, plan, shown, stop, say
        self._twins: dict[Search, Classifier] = {}
        self.judge = Judge(model, plan.ball)

    def _twin(self, search: Search) -> Classifier:
        while search not in self._twins:
            try:
                self._twins[search] = search.twin(self._model, self._shown, self._say)
            except (RuntimeError, MemoryError) as error:
                if len(self._shown) <= 1 or not out_of_memory(error):
                    raise
                self._shown = self._shown[: len(self._shown) // 2]
        return self._twins[search]

    def attack(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """x_adv [R, C, H, W] in the ball: the first attack's point that breaks the row, else the one of the largest margin."""
        best, worst = x.clone(), x.new_full((len(x),), float("-inf"))
        still = torch.arange(len(x), device=x.device)
        for call in self._plan.attacks:
            if not len(still):
                break
            search = call.searching(self._plan.search)
            part, criterion = x[still], Criterion(y[still])
            rng = RowRandom(self._plan.seed, "start", ids[still])
            found = searched(
                self._twin(search),
                call,
                part,
                criterion,
                self._plan.ball,
                rng,
                stop=self._stop,
                draws=search.draws or 1,
            )
            ruling = self.judge.rule(part, found, criterion)
            value = margin(ruling.logits, y[still]).masked_fill(~ruling.inside, float("-inf"))
            better = ruling.hit | (value > worst[still])
            best[still[better]], worst[still[better]] = found[better], value[better]
            still = still[~ruling.hit]
        return best


def _batch(members: list[_Member], x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(right bool [M, B], jointly right bool [B], broken bool [M, M, R] over the R jointly right rows)."""
    clean = [member.judge.logits(x) for member in members]
    if len({logits.shape[1] for logits in clean}) > 1:
        raise ValueError(
            f"the models have different numbers of classes: {', '.join(str(logits.shape[1]) for logits in clean)}"
        )
    right = torch.stack([(logits.argmax(1) == y) & torch.isfinite(logits).all(1) for logits in clean])
    joint = right.all(0)
    x, y, ids = x[joint], y[joint], ids[joint]
    broken = torch.zeros(len(members), len(members), len(y), dtype=torch.bool, device=y.device)
    if len(y):
        for s, source in enumerate(members):
            x_adv = source.attack(x, y, ids)
            for t, target in enumerate(members):
                broken[s, t] = target.judge.rule(x, x_adv, Criterion(y)).hit
    return right, joint, broken


def transfer_alarms(result: Transfer) -> list[Alarm]:
    """`transfer-beats-white-box` for each target that others' points break more often than its own, beyond chance.

    Chance: the exact sign test on the samples where the two differ, at LEVEL over all pairs (Bonferroni).
    Source: Athalye et al., ICML 2018, arXiv:1802.00420, section 3.1.
    """
    size = len(result.names)
    alarms = []
    for t, target in enumerate(result.names):
        others = [s for s in range(size) if s != t]
        s = max(others, key=lambda k: int(result.gained[k, t]) - int(result.lost[k, t]))
        chance = sign_test(int(result.gained[s, t]), int(result.lost[s, t]))
        if chance <= LEVEL / (size * len(others)):
            own, other = int(result.broken[t, t]), int(result.broken[s, t])
            evidence = f"points made on {result.names[s]} break {target} on {other} of {result.jointly_correct} samples, its own on {own} (p = {chance:.1g})"
            remedy = f"{target} masks its gradients: attack it with loss: margin, a gradient-free attack or --surrogate"
            alarms.append(Alarm("transfer-beats-white-box", "suspect", evidence, remedy))
    return alarms
