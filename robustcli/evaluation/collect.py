"""Verdicts of many batches put together: one flag per sample and attack, whole shards written as soon as they are complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustcli.evaluation.alarms import check_search, final_checks, with_new
from robustcli.evaluation.plan import AttackCall, BatchOutcome, EvalPlan, Evaluation
from robustcli.evaluation.shardfile import ShardResult
from robustcli.evaluation.shards import ShardStore, shards_of
from robustcli.records.alarm import Alarm


def concluded(
    alarms: Sequence[Alarm],
    tallies: Mapping[str, int],
    calls: Sequence[AttackCall],
    stages: Mapping[str, Tensor],
    n: int,
) -> list[Alarm]:
    """The alarms of the first look at the model, and those that only the verdicts of all attacks give."""
    zero_share = tallies.get("zero", 0) / max(1, tallies.get("asked", 0))
    alarms = with_new(
        alarms,
        check_search(
            zero_share, tallies.get("refused", 0), bool(tallies.get("mutated", 0)), tallies.get("broken", 0)
        ),
    )
    needs = {call.label: call.needs for call in calls if call.bounded}
    return with_new(alarms, final_checks({label: int(stages[label].sum()) for label in needs}, needs, n))


class Collector:
    """Arrays over the n chosen samples, filled batch by batch or from shards proven earlier.

    They are allocated once: small tensors that outlive a batch would pin the heap between large ones, and memory would grow with n.

    Args:
        plan: the final one, with escalations.
        ids: int64 [n], sorted.
        store: where proven shards are, or None.
        shards: numbers of the shards that this process measures; None = all.
    """

    def __init__(
        self, plan: EvalPlan, ids: Tensor, store: ShardStore | None, shards: Sequence[int] | None
    ) -> None:
        n = len(ids)
        self.plan, self._ids, self._store = plan, ids, store
        self._y, self._correct = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)
        self._stages = {call.label: torch.zeros(n, dtype=torch.bool) for call in plan.attacks}
        self._done = torch.zeros(n, dtype=torch.bool)
        self._seconds, self._passes, self.tallies = Counter[str](), Counter[str](), Counter[str]()
        self._pending: dict[int, tuple[Counter[str], Counter[str], Counter[str]]] = {}
        self._parts = shards_of(ids, store.size) if store is not None else []
        self._number = torch.zeros(n, dtype=torch.int64)
        for number, rows in enumerate(self._parts):
            self._number[rows] = number
        wanted = set(range(len(self._parts)) if shards is None else shards)
        mine = (
            torch.isin(self._number, torch.tensor(sorted(wanted), dtype=torch.int64))
            if store is not None
            else torch.ones(n, dtype=torch.bool)
        )
        for number in sorted(wanted) if store is not None else ():
            self._read(number)
        self.todo = (mine & ~self._done).nonzero()[:, 0]
        self._next = 0

    def _read(self, number: int) -> None:
        """A shard that was proven earlier."""
        assert self._store is not None
        rows = self._parts[number]
        found = self._store.read(number, self._ids[rows])
        if found is not None:
            self.put(rows, found)

    def put(self, rows: Tensor, found: ShardResult) -> None:
        """Verdicts of one shard at these places."""
        self._y[rows], self._correct[rows], self._done[rows] = found.y, found.correct, True
        for label, standing in found.stages.items():
            self._stages[label][rows] = standing
        self._seconds.update(found.seconds)
        self._passes.update(found.passes)
        self.tallies.update(found.tallies)

    @property
    def proven(self) -> tuple[int, Tensor, Tensor]:
        """(samples known so far, who of them is right on the clean image, who survives)."""
        chain = [self._stages[call.label] for call in self.plan.attacks if call.bounded]
        return (
            int(self._done.sum()),
            self._correct[self._done],
            (chain[-1] if chain else self._correct)[self._done],
        )

    @property
    def known(self) -> Tensor:
        """Places in `ids` of the samples known so far, int64."""
        return self._done.nonzero()[:, 0]

    def take(self, outcome: BatchOutcome) -> None:
        """The next batch of `todo`."""
        rows = self.todo[self._next : self._next + len(outcome.ids)]
        self._next += len(rows)
        self._y[rows], self._correct[rows], self._done[rows] = outcome.y.cpu(), outcome.correct.cpu(), True
        seconds, passes = Counter[str](), Counter[str]()
        for k, call in enumerate(self.plan.attacks):
            self._stages[call.label][rows] = outcome.standing[k].cpu()
            seconds[call.label] += outcome.seconds[k]  # type: ignore[assignment]
            passes[call.label] += outcome.passes[k]
        tallies = Counter(outcome.tallies)
        for total, part in ((self._seconds, seconds), (self._passes, passes), (self.tallies, tallies)):
            total.update(part)
        if self._store is not None:
            self._write(rows, seconds, passes, tallies)

    def _write(
        self, rows: Tensor, seconds: Counter[str], passes: Counter[str], tallies: Counter[str]
    ) -> None:
        """Save every shard that this batch completed; its costs are booked on the first shard it touched."""
        assert self._store is not None
        numbers = self._number[rows].unique().tolist()
        kept = self._pending.setdefault(numbers[0], (Counter(), Counter(), Counter()))
        for total, part in zip(kept, (seconds, passes, tallies), strict=True):
            total.update(part)
        for number in numbers:
            part = self._parts[number]
            if bool(self._done[part].all()):
                spent = self._pending.pop(number, (Counter[str](), Counter[str](), Counter[str]()))
                stages = {label: standing[part] for label, standing in self._stages.items()}
                self._store.write(
                    number,
                    ShardResult(
                        self._ids[part],
                        self._y[part],
                        self._correct[part],
                        stages,
                        dict(spent[0]),
                        dict(spent[1]),
                        dict(spent[2]),
                    ),
                )

    def evaluation(self, alarms: list[Alarm], seconds: float) -> Evaluation:
        """What is known so far; `alarms` are those of the first look at the model."""
        done = self._done
        known = int(done.sum())
        n = max(1, known)
        stages = {label: standing[done] for label, standing in self._stages.items()}
        return Evaluation(
            self._ids[done],
            self._y[done],
            self._correct[done],
            stages,
            {label: float(self._seconds[label]) for label in self._stages},
            {label: self._passes[label] / n for label in self._stages},
            concluded(alarms, self.tallies, self.plan.attacks, stages, known),
            seconds,
            frozenset(call.label for call in self.plan.attacks if not call.bounded),
            tuple(self.plan.attacks),
            len(done),
            (sum(bool(done[part].all()) for part in self._parts), len(self._parts)),
        )
