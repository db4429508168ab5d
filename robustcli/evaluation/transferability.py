"""Do attacks transfer? Points made on each of several models are shown to all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.core.modes import frozen
from robustcli.data.split import Split
from robustcli.evaluation.header import Header
from robustcli.evaluation.joint import Join
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.shards import shards_of
from robustcli.evaluation.sizing import in_batches, shard_size
from robustcli.evaluation.transfer_members import Chain, Member, batch, shown
from robustcli.evaluation.transfer_shards import Shown, TransferStore
from robustcli.proportions import sign_test
from robustcli.records.alarm import Alarm
from robustcli.runtime.team import Team

#: Chance that an honest set of models raises `transfer-beats-white-box`, over all pairs.
LEVEL = 0.025
_TOGETHER = 256  # samples that one process of a team measures at once
_REMEDY = "attack it with loss: margin, a gradient-free attack or --surrogate"


@dataclass(frozen=True)
class Transfer:
    """Counts over M models. In a matrix [M, M] the row is the source and the column the target.

    A pair has one number: that of the attack that breaks most, of equal ones the first. An attacker keeps to
    one attack for a target, so that no sample counts because another attack would have broken it.

    Args:
        names: the models.
        n: samples measured.
        correct: int64 [M], samples right on the clean image.
        ids: int64 [m], samples that all models classify correctly. The matrices count these m.
        broken: int64 [M, M], samples whose point made on the source breaks the target. The diagonal is
            white-box.
        gained: int64 [M, M], samples that the source's point breaks and no point made on the target does.
        lost: int64 [M, M], samples that a point made on the target breaks and the source's point does not.
        best: int64 [M, M], the attack that these numbers are of.
        by_attack: int64 [A, M, M], `broken` of each attack.
        attacks: their labels.
        together: int64 [A, M], for each target the samples that points made on all other models together
            break; None where nobody asked.
    """

    names: tuple[str, ...]
    n: int
    correct: Tensor
    ids: Tensor
    broken: Tensor
    gained: Tensor
    lost: Tensor
    best: Tensor
    by_attack: Tensor
    attacks: tuple[str, ...]
    together: Tensor | None = None

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
    chains: Sequence[Chain] | None = None,
    together: Join | None = None,
) -> Transfer:
    """rate[s, t] = share of the jointly correct samples whose point made on s breaks t, judged by t in fp32.

    There is one point per attack, source and sample, chosen without asking the target. Where an attack has
    several stages, it is the point of the first one that breaks the source. Where none does, it is the point
    with the largest margin on the source.
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
        chains: the attacks of the plan as they count; None: each by itself.
        together: how the models that are not the target join, for points made on all of them; None: no such
            points are made.

    Raises ValueError: one model, other numbers of classes, a targeted plan or an attack outside the ball.
    Source: Papernot et al., 2016, arXiv:1605.07277; Liu et al., ICLR 2017, arXiv:1611.02770.
    """
    _check(models, plan)
    chains = chains or [Chain(call.label, [call]) for call in plan.attacks]
    counts = _Counts(tuple(models), tuple(chain.label for chain in chains))
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(frozen(model))
        looked_at = shown(split, positions, device)
        members = [Member(model, plan, looked_at, stop, say) for model in models.values()]
        work = functools.partial(batch, members, chains, together)

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


# ---- the sums ---------------------------------------------------------------------------------------------


class _Counts:
    """The sums over all batches."""

    def __init__(self, names: tuple[str, ...], attacks: tuple[str, ...]) -> None:
        self._names, self._attacks = names, attacks
        self._correct = torch.zeros(len(names), dtype=torch.int64)
        self._sums: Tensor | int = 0  # broken, gained, lost: [3, A, S, M]
        self._ids = [torch.zeros(0, dtype=torch.int64)]

    def add(self, batch: Shown) -> None:
        """Add the counts of one batch."""
        broken, size = batch.broken, len(self._names)
        own = (
            broken[:, :size].diagonal(dim1=1, dim2=2).permute(0, 2, 1).any(0)
        )  # [M, J]: what any own point breaks
        self._correct += batch.right.sum(1)
        self._sums = self._sums + torch.stack(
            [part.sum(3) for part in (broken, broken & ~own, ~broken & own)]
        )
        self._ids.append(batch.joint)

    def transfer(self, n: int) -> Transfer:
        """The result over the n samples."""
        size = len(self._names)
        sums = self._sums
        if isinstance(sums, int):
            sums = torch.zeros(3, len(self._attacks), size, size, dtype=torch.int64)
        pairs = sums[:, :, :size]
        best = (pairs[0] == pairs[0].amax(0)).int().argmax(0)  # of equal ones the first
        broken, gained, lost = pairs.gather(1, best.expand(3, 1, -1, -1))[:, 0]
        together = sums[0, :, size] if sums.shape[2] > size else None
        ids = torch.cat(self._ids)
        return Transfer(
            self._names, n, self._correct, ids, broken, gained, lost, best, pairs[0], self._attacks, together
        )
