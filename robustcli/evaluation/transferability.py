"""Do attacks transfer? Points made on each of several models are shown to all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from robustcli.evaluation.header import Header
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.evaluation.shards import shards_of
from robustcli.evaluation.sizing import in_batches, shard_size
from robustcli.evaluation.surrogate import searched
from robustcli.evaluation.transfer_shards import Shown, TransferStore
from robustcli.proportions import sign_test
from robustcli.records.alarm import Alarm
from robustcli.runtime.team import Team

#: Chance that an honest set of models raises `transfer-beats-white-box`, over all pairs.
LEVEL = 0.025
_TOGETHER = 256  # samples that one process of a team measures at once
_SHOWN = 32  # images on which search twins are compared with their models: the same for every batch size
_REMEDY = "attack it with loss: margin, a gradient-free attack or --surrogate"


@dataclass(frozen=True)
class Transfer:
    """Counts over M models. In a matrix [M, M] the row is the source and the column the target.

    Args:
        names: the models.
        n: samples measured.
        correct: int64 [M], samples right on the clean image.
        ids: int64 [m], samples that all models classify correctly. The matrices count these m.
        broken: int64 [M, M], samples whose point made on the source breaks the target. The diagonal is
            white-box.
        gained: int64 [M, M], samples that the source's point breaks and the target's own point does not.
        lost: int64 [M, M], samples that the target's own point breaks and the source's point does not.
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
        """m: samples that all models classify correctly; every rate is a share of them."""
        return len(self.ids)

    @property
    def matrix(self) -> list[list[float | None]]:
        """broken / m, or None where no sample is jointly correct."""
        if not self.jointly_correct:
            return [[None for _ in row] for row in self.broken]
        return [[int(k) / self.jointly_correct for k in row] for row in self.broken]


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
    team: Team | None = None,
) -> Transfer:
    """rate[s, t] = share of the jointly correct samples whose point made on s breaks t, judged by t in fp32.

    There is one point per source and sample, chosen without asking the target. It is the point of the first
    attack that breaks the source. Where none does, it is the point with the largest margin on the source.
    Memory: the ids of the jointly correct samples, and one batch. A batch that does not fit is halved.

    Args:
        models: two or more, name -> pixels [B, C, H, W] in [0, 1] -> logits [B, K], the same K for all.
        plan: ball, attacks inside it, seed, batch size and search; untargeted.
        split, positions: what to measure, int64 [n].
        device: where it is measured.
        stop: raises to interrupt.
        say: told of a batch that did not fit.
        done: told the number of samples of each finished batch.
        team: the processes that measure together.

    Raises ValueError: one model, other numbers of classes, a targeted plan or an attack outside the ball.
    Source: Papernot et al., 2016, arXiv:1605.07277; Liu et al., ICLR 2017, arXiv:1611.02770.
    """
    _check(models, plan)
    counts = _Counts(tuple(models))
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(frozen(model))
        looked_at = shown(split, positions, device)
        members = [Member(model, plan, looked_at, stop, say) for model in models.values()]
        work = functools.partial(_batch, members)

        def show(part: Tensor) -> Iterator[Shown]:
            return in_batches(split, part, device, plan.batch_size, work, say)

        if team is None or not team.many:
            found = show(positions)
        else:
            found = _shared(team, plan, split, positions, show, say, stop or (lambda: None))
        for shown_to_all in found:
            counts.add(shown_to_all)
            done(len(shown_to_all.ids))
    return counts.transfer(len(positions))


def _shared(
    team: Team,
    plan: EvalPlan,
    split: Split,
    positions: Tensor,
    show: Callable[[Tensor], Iterator[Shown]],
    say: Callable[[str], None],
    idle: Callable[[], None],
) -> Iterator[Shown]:
    """The shards of all samples, whoever of the team has measured them, as they come."""
    positions = positions[split.ids[positions].argsort()]
    ids = split.ids[positions]
    header = Header.of(plan, ids, model="", data="", code="", size=shard_size(len(ids)))
    store, groups = TransferStore(team.round() / "shards", header, say), shards_of(ids, header.size)
    came: dict[int, Shown] = {}

    def arrived(number: int) -> bool:
        if number not in came and store.has(number):
            shard = store.read(number, ids[groups[number]])
            if shard is not None:
                came[number] = shard
        return number in came

    told: set[int] = set()
    most = max(1, _TOGETHER // header.size)
    for turn in team.shares(range(len(groups)), arrived, idle):
        for k in range(0, len(turn), most):
            several = turn[k : k + most]
            places = torch.cat([groups[number] for number in several])
            found = Shown.joined(list(show(positions[places])))
            for number in several:
                store.write(number, found.rows(torch.isin(places, groups[number]).nonzero()[:, 0]))
                arrived(number)
        yield from (came[number] for number in came if number not in told)
        told.update(came)
    yield from (came[number] for number in came if number not in told)


def transfer_alarms(result: Transfer) -> list[Alarm]:
    """`transfer-beats-white-box` for each target that another model's points break more often than its own.

    "More often" is beyond chance: the exact sign test on the samples where the two points differ, at `LEVEL`
    over all pairs (Bonferroni).

    Source: Athalye et al., ICML 2018, arXiv:1802.00420, section 3.1.
    """
    size = len(result.names)
    gain = result.gained - result.lost
    alarms = []
    for t, target in enumerate(result.names):
        others = [s for s in range(size) if s != t]
        s = max(others, key=lambda other: int(gain[other, t]))
        chance = sign_test(int(result.gained[s, t]), int(result.lost[s, t]))
        if chance <= LEVEL / (size * len(others)):
            own, other = int(result.broken[t, t]), int(result.broken[s, t])
            evidence = (
                f"points made on {result.names[s]} break {target} on {other}"
                f" of {result.jointly_correct} samples, its own on {own} (p = {chance:.1g})"
            )
            remedy = f"{target} masks its gradients: {_REMEDY}"
            alarms.append(Alarm("transfer-beats-white-box", "suspect", evidence, remedy))
    return alarms


def _check(models: Mapping[str, nn.Module], plan: EvalPlan) -> None:
    if len(models) < 2:
        raise ValueError(f"transfer needs two models or more, got {len(models)}")
    if plan.target is not None:
        raise ValueError(f"transfer is measured untargeted, got target={plan.target!r}")
    if unbounded := [call.label for call in plan.attacks if not call.bounded]:
        raise ValueError(f"transfer is measured inside the ball; not inside: {', '.join(unbounded)}")


def shown(split: Split, positions: Tensor, device: torch.device) -> Tensor:
    """At most 32 images, [N, C, H, W], on which search twins are compared with their models."""
    if not len(positions):
        return torch.zeros(0)
    x, _, _ = next(iter(split.stream([positions[:_SHOWN]], device)))
    return x


# ---- one batch ---------------------------------------------------------------------------------------------


class _Counts:
    """The sums over all batches."""

    def __init__(self, names: tuple[str, ...]) -> None:
        size = len(names)
        self._names = names
        self._correct = torch.zeros(size, dtype=torch.int64)
        self._pairs = torch.zeros(3, size, size, dtype=torch.int64)  # broken, gained, lost
        self._ids = [torch.zeros(0, dtype=torch.int64)]

    def add(self, batch: Shown) -> None:
        """Add the counts of one batch."""
        broken = batch.broken
        own = broken.diagonal().T[None]  # [1, M, R]: what the targets' own points break
        self._correct += batch.right.sum(1)
        self._pairs += torch.stack([broken.sum(2), (broken & ~own).sum(2), (~broken & own).sum(2)])
        self._ids.append(batch.joint)

    def transfer(self, n: int) -> Transfer:
        """The result over the n samples."""
        return Transfer(self._names, n, self._correct, torch.cat(self._ids), *self._pairs)


class Member:
    """One model on which points are made, frozen, with its judge and its search twins, each made once."""

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
        """The search twin, compared with its model on `_shown` images, or on fewer where memory runs out."""
        while search not in self._twins:
            try:
                self._twins[search] = search.twin(self._model, self._shown, self._say)
            except (RuntimeError, MemoryError) as error:
                if len(self._shown) <= 1 or not out_of_memory(error):
                    raise
                self._shown = self._shown[: len(self._shown) // 2]
        return self._twins[search]

    def attack(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """x_adv [R, C, H, W]: of each row the first point that breaks it, else the one of largest margin.

        It lies in the ball. A row without any point in the ball keeps x.
        """
        best, worst = x.clone(), x.new_full((len(x),), float("-inf"))
        still = torch.arange(len(x), device=x.device)
        for call in self._plan.attacks:
            if not len(still):
                break
            part, criterion = x[still], self.judge.criterion(y[still])
            points = self._search(call, part, criterion, ids[still])
            ruling = self.judge.rule(part, points, criterion)
            value = margin(criterion.joint(ruling.logits), y[still]).masked_fill(
                ~ruling.inside, float("-inf")
            )
            better = ruling.hit | (value > worst[still])
            best[still[better]], worst[still[better]] = points[better], value[better]
            still = still[~ruling.hit]
        return best

    def _search(self, call: AttackCall, x: Tensor, criterion: Criterion, ids: Tensor) -> Tensor:
        """x_adv [R, C, H, W]: the points of one attack on this model."""
        search = call.searching(self._plan.search)
        return searched(
            self._twin(search),
            call,
            x,
            criterion,
            self._plan.ball,
            RowRandom(self._plan.seed, "start", ids),
            stop=self._stop,
            draws=search.draws or 1,
        )


def _batch(members: Sequence[Member], x: Tensor, y: Tensor, ids: Tensor) -> Shown:
    """Attack each member on the rows that all members classify correctly, and show the points to all."""
    clean = [member.judge.clean(x, y) for member in members]
    classes = [
        member.judge.classes(seen.logits).shape[1] for member, seen in zip(members, clean, strict=True)
    ]
    if len(set(classes)) > 1:
        raise ValueError(f"the models have different numbers of classes: {', '.join(map(str, classes))}")
    right = torch.stack([seen.right for seen in clean])
    every, joint = ids.cpu(), right.all(0)
    x, y, ids = x[joint], y[joint], ids[joint]
    broken = torch.zeros(len(members), len(members), len(y), dtype=torch.bool, device=y.device)
    if len(y):
        for s, source in enumerate(members):
            x_adv = source.attack(x, y, ids)
            for t, target in enumerate(members):
                broken[s, t] = target.judge.rule(x, x_adv, target.judge.criterion(y)).hit
    return Shown(every, right.cpu(), broken.cpu())
