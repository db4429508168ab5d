"""The verdicts of all batches in one place: one flag per sample and attack. Whole shards are saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from robustcli.evaluation.alarms import below_chance, check_search, final_checks, with_new
from robustcli.evaluation.answers import Answers
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.result import BatchOutcome, Evaluation
from robustcli.evaluation.shardfile import ShardResult
from robustcli.evaluation.shards import ShardStore, shards_of
from robustcli.records.alarm import Alarm


def concluded(
    alarms: Sequence[Alarm],
    tallies: Mapping[str, int],
    calls: Sequence[AttackCall],
    stages: Mapping[str, Tensor],
    correct: Tensor,
    classes: int,
) -> list[Alarm]:
    """`alarms`, and those that need the verdicts of all samples.

    Args:
        alarms: raised by the diagnosis, before the attacks.
        tallies: counts over all batches. asked, zero: gradients that attacks asked for, and how many were
            zero. refused: points outside the ball. broken: answers with NaN or Inf. mutated: changes of the
            model's digest.
        calls: the attacks.
        stages: label -> bool [n], right after that attack.
        correct: bool [n], right on the clean image.
        classes: K, of the model's logits.
    """
    n = len(correct)
    zero_share = tallies.get("zero", 0) / max(1, tallies.get("asked", 0))
    mutated = bool(tallies.get("mutated", 0))
    searched = check_search(zero_share, tallies.get("refused", 0), mutated, tallies.get("broken", 0))
    needs = {call.label: call.needs for call in calls if call.bounded}
    standing = {label: int(stages[label].sum()) for label in needs}
    searched += below_chance(int(correct.sum()), n, classes)
    return with_new(with_new(alarms, searched), final_checks(standing, needs, n))


def split_counts(counted: Mapping[str, int], sizes: Sequence[int]) -> Iterator[dict[str, int]]:
    """Whole numbers by name, divided over parts of these sizes; those of all parts add up to the whole."""
    total, before = max(1, sum(sizes)), 0
    for size in sizes:
        after = before + size
        yield {name: k * after // total - k * before // total for name, k in counted.items()}
        before = after


class _Costs:
    """What some samples cost: label -> seconds, label -> model passes; and name -> count of the tallies."""

    def __init__(
        self,
        seconds: Mapping[str, float] | None = None,
        passes: Mapping[str, int] | None = None,
        tallies: Mapping[str, int] | None = None,
    ) -> None:
        self.seconds = Counter[str](seconds)
        self.passes = Counter[str](passes)
        self.tallies = Counter[str](tallies)

    def add(self, other: _Costs) -> None:
        """Add the costs of other samples."""
        self.seconds.update(other.seconds)
        self.passes.update(other.passes)
        self.tallies.update(other.tallies)

    def split(self, counts: Sequence[int]) -> Iterator[_Costs]:
        """The costs of parts with so many samples each; the whole numbers of all parts add up to these."""
        passes, tallies = split_counts(self.passes, counts), split_counts(self.tallies, counts)
        for count, own_passes, own_tallies in zip(counts, passes, tallies, strict=True):
            share = count / max(1, sum(counts))
            seconds = {label: spent * share for label, spent in self.seconds.items()}
            yield _Costs(seconds, own_passes, own_tallies)


class Collector:
    """Verdicts on the n chosen samples, filled in batch by batch or from saved shards.

    All arrays are allocated once. Small tensors that outlive a batch would pin the heap between large ones,
    and memory would grow with n.

    Args:
        plan: the final plan, with its escalations.
        ids: int64 [n], sorted.
        files: path of each sample's image; None where there is none.
        store: the saved shards, or None.
        shards: numbers of the shards that this process measures; None = all.

    Attributes:
        todo: int64, places in `ids` of the samples that batches must bring, in this order.
    """

    def __init__(
        self,
        plan: EvalPlan,
        ids: Tensor,
        files: Sequence[str | None],
        store: ShardStore | None,
        shards: Sequence[int] | None,
    ) -> None:
        n = len(ids)
        self.plan, self._ids, self._store = plan, ids, store
        self._y, self._correct = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)
        self._answers = Answers.unknown(files)
        self._stages = {call.label: torch.zeros(n, dtype=torch.bool) for call in plan.attacks}
        self._measured = torch.zeros(n, dtype=torch.bool)
        self._costs, self._pending = _Costs(), dict[int, _Costs]()
        self._asked = 0  # images that a black box was asked about by this process
        self._parts: list[Tensor] = []  # shard -> places of its samples
        self._mine: list[int] = []
        self._number = torch.zeros(n, dtype=torch.int64)  # of each sample's shard
        mine = torch.ones(n, dtype=torch.bool)
        if store is not None:
            mine = self._resume(store, shards)
        self.todo = (mine & ~self._measured).nonzero()[:, 0]
        self._next = 0

    def _resume(self, store: ShardStore, shards: Sequence[int] | None) -> Tensor:
        """Cut the samples into shards and read the saved ones.

        Returns bool [n]: the sample lies in a shard of this process.
        """
        self._parts = shards_of(self._ids, store.size)
        for number, rows in enumerate(self._parts):
            self._number[rows] = number
        if shards is None:
            shards = range(len(self._parts))
        self._mine = sorted(set(shards))
        for number in self._mine:
            rows = self._parts[number]
            proven = store.read(number, self._ids[rows])
            if proven is not None:
                self._fill(rows, proven)
        return torch.isin(self._number, torch.tensor(self._mine, dtype=torch.int64))

    def _fill(self, rows: Tensor, proven: ShardResult) -> None:
        """Take verdicts and costs of one saved shard. rows: int64, places of its samples."""
        self._y[rows], self._correct[rows], self._measured[rows] = proven.y, proven.correct, True
        for label, standing in proven.stages.items():
            self._stages[label][rows] = standing
        known = proven.answers
        self._answers.fill(rows, known.clean, known.confidence, known.attacked)
        self._costs.add(_Costs(proven.seconds, proven.passes, proven.tallies))

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards, of those that this process measures, that are not known as a whole."""
        return [number for number in self._mine if not self.whole(number)]

    def whole(self, number: int) -> bool:
        """Whether all samples of a shard are known."""
        return bool(self._measured[self._parts[number]].all())

    def turn(self, numbers: Sequence[int]) -> Tensor:
        """The places to measure next, int64: all that is missing in these shards."""
        mine = torch.isin(self._number, torch.tensor(numbers, dtype=torch.int64))
        self.todo, self._next = (mine & ~self._measured).nonzero()[:, 0], 0
        return self.todo

    def arrived(self, number: int) -> bool:
        """Whether a shard is known; where another process has saved it, it is from now on."""
        if self.whole(number):
            return True
        store, rows = self._store, self._parts[number]
        proven = None
        if store is not None and store.has(number):
            proven = store.read(number, self._ids[rows])
        if proven is None:
            return False
        self._fill(rows, proven)
        return True

    @property
    def proven(self) -> tuple[int, Tensor, Tensor]:
        """(k, right, standing) of the k samples known so far.

        right: bool [k], right on the clean image. standing: bool [k], right under all attacks that count, see
        `EvalPlan.bounded`.
        """
        return self._proven(self.known)

    def proven_in(self, number: int) -> tuple[int, Tensor, Tensor]:
        """`proven`, of the samples of one shard."""
        return self._proven(self._parts[number])

    def _proven(self, rows: Tensor) -> tuple[int, Tensor, Tensor]:
        counted = [call.label for call in self.plan.attacks if call.bounded or not self.plan.bounded]
        standing = torch.stack([self._correct, *(self._stages[label] for label in counted)]).all(0)
        return len(rows), self._correct[rows], standing[rows]

    @property
    def known(self) -> Tensor:
        """int64, places in `ids` of the samples known so far."""
        return self._measured.nonzero()[:, 0]

    def tally(self, name: str, count: int) -> None:
        """Add `count` to the tally `name`, see `concluded`."""
        self._costs.tallies[name] += count

    def add(self, outcome: BatchOutcome) -> None:
        """Take the verdicts and costs of the next batch of `todo`."""
        rows = self.todo[self._next : self._next + len(outcome.ids)]
        self._next += len(rows)
        self._y[rows], self._correct[rows] = outcome.y.cpu(), outcome.correct.cpu()
        self._answers.fill(
            rows, outcome.clean_predicted.cpu(), outcome.confidence.cpu(), outcome.attacked.cpu()
        )
        self._measured[rows] = True
        labels = [call.label for call in self.plan.attacks]
        for label, standing in zip(labels, outcome.standing, strict=True):
            self._stages[label][rows] = standing.cpu()
        seconds = dict(zip(labels, outcome.seconds, strict=True))
        passes = dict(zip(labels, outcome.passes, strict=True))
        costs = _Costs(seconds, passes, outcome.tallies)
        self._costs.add(costs)
        self._asked += outcome.tallies.get("queries", 0)
        if self._store is not None:
            self._write(self._store, rows, costs)

    def _write(self, store: ShardStore, rows: Tensor, costs: _Costs) -> None:
        """Save each shard that this batch completed.

        A batch may touch several shards. Each bears the costs by its share of the samples.
        """
        touched, counts = self._number[rows].unique(return_counts=True)
        numbers = touched.tolist()
        for number, cost in zip(numbers, costs.split(counts.tolist()), strict=True):
            self._pending.setdefault(number, _Costs()).add(cost)
        for number in numbers:
            if self.whole(number):
                store.write(number, self._shard(self._parts[number], self._pending.pop(number)))

    def _shard(self, rows: Tensor, spent: _Costs) -> ShardResult:
        """The verdicts on one shard. rows: int64, places of its samples. spent: its costs."""
        return ShardResult(
            ids=self._ids[rows],
            y=self._y[rows],
            correct=self._correct[rows],
            answers=self._answers.rows(rows),
            stages={label: standing[rows] for label, standing in self._stages.items()},
            seconds=dict(spent.seconds),
            passes=dict(spent.passes),
            tallies=dict(spent.tallies),
        )

    def evaluation(self, alarms: list[Alarm], seconds: float, classes: int) -> Evaluation:
        """The evaluation of the samples known so far.

        alarms: raised by the diagnosis. classes: K, of the model's logits.
        """
        known, costs, calls = self._measured, self._costs, self.plan.attacks
        n = int(known.sum())
        stages = {label: standing[known] for label, standing in self._stages.items()}
        complete = sum(bool(known[part].all()) for part in self._parts)
        return Evaluation(
            ids=self._ids[known],
            labels=self._y[known],
            correct=self._correct[known],
            answers=self._answers.rows(known.nonzero()[:, 0]),
            stages=stages,
            seconds={label: float(costs.seconds[label]) for label in stages},
            passes_per_sample={label: costs.passes[label] / max(1, n) for label in stages},
            alarms=concluded(alarms, costs.tallies, calls, stages, self._correct[known], classes),
            total_seconds=seconds,
            apart=frozenset(call.label for call in calls if not call.bounded),
            calls=tuple(calls),
            total=len(known),
            shards=(complete, len(self._parts)),
            asked_elsewhere=costs.tallies["queries"] - self._asked,
        )
