"""Clean and robust accuracy of a model under a list of attacks: worst case per sample, survivors only.

The file is long by the documentation of one class, whose methods follow an evaluation from its first
look at the model to the audit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier, declares_draws, offers
from robustcli.data.split import Split
from robustcli.errors import out_of_memory
from robustcli.evaluation.alarms import check_model_output, state_digest, trained_kinds
from robustcli.evaluation.audit import Rerun, audited
from robustcli.evaluation.collect import Collector
from robustcli.evaluation.diagnosis import diagnose
from robustcli.evaluation.draws import averaged, spent
from robustcli.evaluation.escalation import escalations, trusted
from robustcli.evaluation.header import Header
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.evaluation.pulse import Beat, Pulse
from robustcli.evaluation.result import BatchOutcome, Evaluation
from robustcli.evaluation.shards import ShardStore
from robustcli.evaluation.sizing import BatchSizer, in_batches, shard_size
from robustcli.evaluation.stage import Batch, Stage
from robustcli.records.alarm import Alarm
from robustcli.runtime.team import Team
from robustcli.terminal.once import each_once

#: (plan, alarms so far, ids int64 [n], name of a part or "") -> where proven shards of these samples are.
OpenStore = Callable[[EvalPlan, list[Alarm], Tensor, str], ShardStore]


class RobustEvaluation:
    """Runs an `EvalPlan` batch by batch.

    Only one flag per sample and attack is kept of a batch.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K]; held in eval mode without parameter gradients
            while a batch is worked on.
        plan: what to measure.
        stop: called before every model pass of an attack; raises to interrupt.
        say: tells the user one line.
        beat: told now and then where the work is inside a batch.
        team: the processes that measure together, each of which makes the same calls.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: EvalPlan,
        *,
        stop: Callable[[], None] | None = None,
        say: Callable[[str], None] = lambda text: None,
        beat: Callable[[Beat], None] | None = None,
        team: Team | None = None,
    ) -> None:
        self.model, self.plan, self._say, self._team = model, plan, say, team or Team()
        self._watchers = (stop, beat)
        self._stop = Pulse(stop, None if beat is None else self._beat)
        self._look_around: Callable[[], None] = lambda: None  # what has the team saved meanwhile?
        self._sizer: BatchSizer | None = None
        self._unit = 1  # samples per shard: a batch has whole shards, so that a kill loses no count of passes
        self._say_once = each_once(say)  # several attacks ask for twins of their own
        self._trained = trained_kinds(model)
        self._twins: dict[Search, Classifier] = {}
        self._alarms: list[Alarm] = []
        self._classes = 0  # of the logits, once some were seen
        self._notes: list[str] = []
        self._prepared = False
        #: Images on which twins are compared with the model, the same for every part of an evaluation.
        self._shown: Tensor | None = None

    def prepare(self, split: Split, positions: Tensor, device: torch.device) -> EvalPlan:
        """The plan after a first look at the model on a few samples; later calls return the same plan.

        The look makes two forward passes, the diagnosis, and the test of `escalation.trusted`: whether a
        search in low precision misses successes. It may add attacks, move some to fp32, and find the model
        randomised. The answer depends on model, data and plan alone: a resumed evaluation, and the shards of
        another machine, get the same one.

        Args:
            split: the samples.
            positions: int64 [n], places in the split; a few, evenly spread, are looked at.
            device: where they are looked at. Out of memory, half of them are looked at.
        """
        if self._prepared or not len(positions):
            return self.plan
        self._prepared = True
        self._stop.phase("first look")
        probe = max(2 * self.plan.checks, 32)
        while True:
            try:
                self._look(split, positions, device, probe)
                return self.plan
            except (RuntimeError, MemoryError) as error:
                if probe <= 1 or not out_of_memory(error):
                    raise
                probe //= 2

    def _look(self, split: Split, positions: Tensor, device: torch.device, probe: int) -> None:
        """Two forward passes over `probe` samples, and the diagnosis on those of them that are right."""
        n = len(positions)
        spread = torch.linspace(0, n - 1, min(probe, n)).long()  # stored order is often by class
        x, y, ids = next(iter(split.stream([positions[spread]], device)))
        with frozen(self.model):
            judge = Judge(self.model, self.plan.ball)
            clean, right, _ = judge.clean(x, y)
            self._classes = judge.classes(clean).shape[1]
            declared = declares_draws(self.model)
            labels = offers(self.model) == "decisions"
            self._alarms = check_model_output(clean, judge.logits(x), declared=declared, labels=labels)
            randomised = declared or any(alarm.name == "random-forward" for alarm in self._alarms)
            self.plan = replace(self.plan, randomised=randomised)
            self._shown = x
            probed = right.nonzero()[: self.plan.checks, 0]
            if self.plan.checks and len(probed) and offers(self.model) == "gradient":
                self._diagnose(x[probed], y[probed], ids[probed])

    def _diagnose(self, x: Tensor, y: Tensor, ids: Tensor) -> None:
        """Set alarms, added attacks and the precision of the search, from initially correct samples.

        x: pixels [n, C, H, W] in [0, 1]; y, ids: int64 [n].
        """
        plan = self.plan
        diagnosis = diagnose(
            self.model, x, y, ids, plan.ball, seed=plan.seed, trained=self._trained, stop=self._stop
        )
        # The diagnosis looks longer than the two forward passes: where both raise an alarm, keep its finding.
        names = {alarm.name for alarm in diagnosis.alarms}
        self._alarms = [alarm for alarm in self._alarms if alarm.name not in names] + diagnosis.alarms
        plan = replace(plan, randomised=plan.randomised or diagnosis.randomised)
        if not plan.randomised:
            plan = replace(plan, attacks=trusted(plan, self.model, self._twin, x, y, ids, self._say))
        if plan.escalate and plan.target is None:
            plan = replace(plan, attacks=[*plan.attacks, *escalations(diagnosis.escalations, plan)])
        self.plan = plan

    def _twin(self, search: Search, x: Tensor) -> Classifier:
        """The classifier that attacks with this search ask; it is made once.

        x: pixels [R, C, H, W] to compare a twin on, if `prepare` has stored none.
        """
        if self.plan.randomised:
            search = search.exact()  # tracing would freeze the draws
        if search not in self._twins:
            shown = x if self._shown is None else self._shown
            self._twins[search] = search.twin(self.model, shown, self._say_once)
        return self._twins[search]

    def batches(self, split: Split, positions: Tensor, device: torch.device) -> Iterator[BatchOutcome]:
        """Attack the samples at `positions`, int64 [n], batch by batch; out of memory a batch is halved."""
        self.prepare(split, positions, device)

        def work(x: Tensor, y: Tensor, ids: Tensor) -> BatchOutcome:
            with frozen(self.model):
                return self.attack_batch(x, y, ids)

        self._sizer = self._sizer or BatchSizer(self.plan.batch_size, device)
        size = self.plan.batch_size
        yield from in_batches(split, positions, device, size, work, self._say, self._sizer, self._unit)

    def attack_batch(self, x: Tensor, y: Tensor, ids: Tensor) -> BatchOutcome:
        """All attacks of the plan on one batch; the caller holds the model frozen.

        x: pixels [B, C, H, W] in [0, 1]; y, ids: int64 [B].
        """
        draws = self.plan.draws(self.plan.judge_draws)
        judge = Judge(self.model, self.plan.ball, draws=draws)
        self._stop()
        before = self._queries()
        batch = Batch.judged(judge, self.plan, x, y, ids)
        self._classes, norm = judge.classes(batch.logits).shape[1], self.plan.ball.norm
        self._stop.batch(len(x), self.plan.attacks, self._spent(norm), self._classes, norm)
        x_adv, predicted, survivors = x.clone(), batch.predicted.clone(), batch.correct.clone()
        standing, seconds, passes, tallies = [], [], [], Counter[str]()
        for call in self.plan.attacks:
            began = time.perf_counter()
            if call.bounded:
                stage = self._stage(call, judge, batch, survivors)
            else:
                stage = self._apart(call, batch, draws)
            if call.bounded or not self.plan.bounded:
                rows, x_adv[rows], predicted[rows] = stage.news(survivors, call.bounded)
                survivors = survivors & stage.standing
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            seconds.append(time.perf_counter() - began)
            standing.append(stage.standing)
            passes.append(stage.passes)
            tallies.update(stage.tallies)
        tallies.update({"refused": judge.refused_rows, "broken": judge.broken_rows})
        if queries := self._queries() - before:
            tallies["queries"] = queries
        return BatchOutcome(
            ids=ids,
            x=x,
            y=y,
            x_adv=x_adv,
            clean_predicted=batch.predicted,
            predicted=predicted,
            confidence=batch.confidence,
            correct=batch.correct,
            standing=standing,
            seconds=seconds,
            passes=passes,
            tallies=dict(tallies),
            survivors=survivors,
            bounded=self.plan.bounded,
            goal=batch.goal,
            draws=draws,
        )

    def _spent(self, norm: str) -> list[int]:
        """Model passes of each attack of the plan on one sample that survives it."""
        plan = self.plan
        return spent(plan.attacks, self._classes, norm, randomised=plan.randomised, draws=plan.search.draws)

    def _apart(self, call: AttackCall, batch: Batch, draws: int) -> Stage:
        """An unbounded attack on all rows that are right on the clean image, under a judge of its own."""
        judge = Judge(self.model, self.plan.ball, draws=draws, bounded=False)
        stage = self._stage(call, judge, batch, batch.correct)
        judged = {"refused": judge.refused_rows, "broken": judge.broken_rows}
        return replace(stage, tallies=stage.tallies | judged)

    def _stage(self, call: AttackCall, judge: Judge, batch: Batch, eligible: Tensor) -> Stage:
        """One attack on the eligible rows, bool [B], and the verdict on the points it finds."""
        rows, standing = batch.open_rows(eligible), eligible.clone()
        x = batch.x[rows]
        if not len(rows):
            return Stage(standing, rows, x, batch.y[rows])
        criterion, judged_before = batch.criterion(rows), judge.forward_rows
        oracle = self._oracle(call, judge, x, criterion, batch.ids[rows], batch.logits[rows])
        self._stop.stage(self.plan.attacks.index(call), call.label, oracle, eligible)
        x_adv = call.points(oracle, x, self.plan.ball)
        self._notes += [note for note in oracle.notes if note not in self._notes]
        ruling = judge.rule(x, x_adv, criterion)
        standing[rows[ruling.hit]] = False
        self._stop.staged(standing)
        passes = oracle.passes + judge.forward_rows - judged_before
        tallies = {"zero": oracle.zero_gradient_rows, "asked": oracle.asked_rows}
        return Stage(standing, rows, x_adv, ruling.predicted, passes, tallies)

    def _oracle(
        self, call: AttackCall, judge: Judge, x: Tensor, criterion: Criterion, ids: Tensor, clean: Tensor
    ) -> Oracle:
        """The oracle for an attack on R rows: the twin answers, the judge confirms.

        x: pixels [R, C, H, W]; ids: int64 [R]; clean: the judge's logits [R, K] of x.
        """
        plan, search = self.plan, call.searching(self.plan.search)
        twin = self._twin(search, x)

        def confirm(rows: Tensor, candidates: Tensor) -> Tensor:
            return judge.hits(x[rows], candidates, criterion, rows)

        known = twin is self.model and not plan.randomised
        return call.oracle(
            twin,
            x,
            criterion,
            rng=RowRandom(plan.seed, plan.stream, ids),
            watch=confirm,
            stop=self._stop,
            clean_logits=clean if known else None,
            ball=plan.ball,
            draws=search.draws or plan.draws(averaged(call, self._classes, plan.ball.norm)),
            steady=not plan.randomised,
        )

    def run(
        self,
        split: Split,
        positions: Tensor,
        device: torch.device,
        *,
        on_batch: Callable[[BatchOutcome], None] = lambda outcome: None,
        on_proven: Callable[[int, Tensor, Tensor], None] = lambda n, right, standing: None,
        open_store: OpenStore | None = None,
        shards: Sequence[int] | None = None,
    ) -> Evaluation:
        """Measure all positions, then audit what a short list left standing.

        Args:
            split: the samples.
            positions: int64 [n], places in the split of those to measure.
            device: where they are measured.
            on_batch: called with each batch, for progress and for saving images.
            on_proven: called with what shards of earlier runs hold: number of samples, bool flags of those
                that were right, bool flags of those that survived; later with what others of the team found.
            open_store: makes the store of shards from the final plan and the alarms so far. Samples of a
                shard that it holds are not measured again.
            shards: numbers of the shards to measure; None = all.
        """
        began, before = time.perf_counter(), state_digest(self.model)
        positions = positions[split.ids[positions].argsort()]
        ids = split.ids[positions]
        plan = self.prepare(split, positions, device)
        store = self._store(open_store, plan, ids)
        self._unit = 1 if store is None else store.size
        collector = Collector(plan, ids, split.files(positions), store, shards)
        on_proven(*collector.proven)
        for todo in self._turns(collector, on_proven):
            for outcome in self.batches(split, positions[todo], device):
                if store is not None:  # with the shard: a resumed run cannot compare with this run's start
                    outcome.tallies["mutated"] = int(state_digest(self.model) != before)
                on_batch(outcome)
                collector.add(outcome)
        self._tell_notes()
        collector.tally("mutated", int(state_digest(self.model) != before))
        classes = self._classes or len(split.classes)
        result = collector.evaluation(self._alarms, time.perf_counter() - began, classes)
        if plan.audit is None:
            return result
        rerun = self._rerun(split, device, open_store)
        known, part = positions[collector.known], not result.complete
        result, (looked, fallen) = audited(plan, result, known, rerun, part=part)
        if store is not None and self._team.main:
            store.write_audit(looked, fallen, result.answers.attacked[torch.isin(result.ids, fallen)])
        return replace(result, total_seconds=time.perf_counter() - began)

    def _queries(self) -> int:
        """How many images a black box was asked about so far; 0 for any other model."""
        return int(getattr(self.model, "queries", 0))

    def _tell_notes(self) -> None:
        for note in self._notes:
            self._say(note)

    def _turns(
        self, collector: Collector, on_proven: Callable[[int, Tensor, Tensor], None]
    ) -> Iterator[Tensor]:
        """What this process measures, turn by turn: places in the collector, int64."""
        if not self._team.many:
            yield collector.todo
            return

        def arrived(number: int) -> bool:
            before, there = collector.whole(number), collector.arrived(number)
            if there and not before:
                on_proven(*collector.proven_in(number))
            return there

        def look_around() -> None:
            for number in collector.missing:
                arrived(number)

        def idle() -> None:
            self._stop.phase("waiting for the other processes")
            self._stop()

        self._look_around = look_around
        for numbers in self._team.shares(collector.missing, arrived, idle):
            yield collector.turn(numbers)
        self._look_around = lambda: None

    def _beat(self, beat: Beat) -> None:
        """Tell the watcher where the work is."""
        self._look_around()
        _, show = self._watchers
        if show is not None:
            show(beat)

    def _store(self, open_store: OpenStore | None, plan: EvalPlan, ids: Tensor) -> ShardStore | None:
        """The store of the run. Where it keeps no verdicts, one for the other processes of the team."""
        if open_store is not None:
            return open_store(plan, self._alarms, ids, "")
        if not self._team.many:
            return None
        header = Header.of(plan, ids, model="", data="", code="", size=shard_size(len(ids)))
        return ShardStore(self._team.round() / "shards", header, self._say, shared=True)

    def _rerun(self, split: Split, device: torch.device, open_store: OpenStore | None) -> Rerun:
        """A function (attacks, positions, name of a part or "") -> Evaluation, with which an audit attacks.

        It does not look at the model a second time. Parts with a name are stored in shards.
        """

        def rerun(attacks: Sequence[AttackCall], positions: Tensor, name: str) -> Evaluation:
            if not name:  # a stream of its own: from the starts of the list, APGD would find nothing new
                return self._beside(attacks, "audit").run(split, positions, device)
            labels = ", ".join(call.label for call in attacks)
            self._say(f"samples of the audit fell: {labels} run on all {len(positions)} survivors")
            other = self._beside(attacks, self.plan.stream)
            return other.run(split, positions, device, open_store=_named(open_store, name))

        return rerun

    def _beside(self, attacks: Sequence[AttackCall], stream: str) -> RobustEvaluation:
        """An evaluation of other attacks on the same twins; stream: name of their random streams."""
        return self._like(replace(self.plan, attacks=attacks, audit=None, stream=stream))

    def within(self, ball: Ball) -> RobustEvaluation:
        """The same evaluation in another ball, after its first look at the model."""
        return self._like(replace(self.plan, ball=ball))

    def _like(self, plan: EvalPlan) -> RobustEvaluation:
        """An evaluation of another plan on the same twins; it does not look at the model again."""
        stop, beat = self._watchers
        other = RobustEvaluation(self.model, plan, stop=stop, say=self._say, beat=beat, team=self._team)
        other._twins, other._shown, other._prepared = self._twins, self._shown, self._prepared
        return other

    @property
    def alarms(self) -> list[Alarm]:
        """What the first look at the model raised."""
        return list(self._alarms)


def _named(open_store: OpenStore | None, name: str) -> OpenStore | None:
    """`open_store`, with each store in a folder `name` inside its own."""
    if open_store is None:
        return None
    opened = open_store
    return lambda plan, alarms, ids, whole: opened(plan, alarms, ids, name)
