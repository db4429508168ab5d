"""Clean and robust accuracy of a model under a list of attacks: worst case per sample, survivors only."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustcli.core.best import Watch
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier
from robustcli.data.split import Split
from robustcli.errors import out_of_memory
from robustcli.evaluation.alarms import Alarm, check_model_output, state_digest
from robustcli.evaluation.audit import audited
from robustcli.evaluation.collect import Collector
from robustcli.evaluation.diagnosis import diagnose
from robustcli.evaluation.escalation import EOT_DRAWS, JUDGE_DRAWS, escalations, trusted
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, BatchOutcome, EvalPlan, Evaluation, Search
from robustcli.evaluation.shards import ShardStore
from robustcli.evaluation.sizing import in_batches

#: (plan, alarms so far, ids int64 [n], name of a part or "") -> where proven shards of these samples are.
OpenStore = Callable[[EvalPlan, list[Alarm], Tensor, str], ShardStore]


def _named(
    open_store: OpenStore, name: str, plan: EvalPlan, alarms: list[Alarm], ids: Tensor, whole: str
) -> ShardStore:
    """The store of a part of an evaluation, in a folder of its own."""
    return open_store(plan, alarms, ids, name)


class RobustEvaluation:
    """Runs an `EvalPlan` batch by batch; memory does not grow with n beyond one flag per sample and attack.

    Args:
        model: pixels -> logits; held in eval mode without parameter gradients while a batch is worked on.
        plan: what to measure.
        stop: raises to interrupt, called before every model pass.
        say: one line to the user.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: EvalPlan,
        *,
        stop: Callable[[], None] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.plan, self._stop, self._say = model, plan, stop, say
        self._was_training = any(module.training for module in model.modules())
        self._twins: dict[Search, Classifier] = {}
        self._alarms: list[Alarm] = []
        self._notes: list[str] = []
        self._ready = False
        self._prepared: Tensor | None = (
            None  # images on which twins are compared: the same for every part of an evaluation
        )

    def prepare(self, split: Split, positions: Tensor, device: torch.device) -> EvalPlan:
        """Look at the model on a few samples: free checks, diagnosis and gap test. The plan with the stages that it calls for.

        A function of (model, data, plan) alone, so that a resumed evaluation, or another machine's shards, make the same plan.
        """
        if self._ready or not len(positions):
            return self.plan
        self._ready = True
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
        spread = torch.linspace(
            0, len(positions) - 1, min(probe, len(positions))
        ).long()  # stored order is often by class
        x, y, ids = next(iter(split.stream([positions[spread]], device)))
        with frozen(self.model):
            judge = Judge(self.model, self.plan.ball)
            clean = judge.logits(x)
            self._alarms = check_model_output(clean, judge.logits(x))
            self.plan = replace(
                self.plan, randomised=any(alarm.name == "random-forward" for alarm in self._alarms)
            )
            self._prepared = x
            right = ((clean.argmax(1) == y) & torch.isfinite(clean).all(1)).nonzero()[: self.plan.checks, 0]
            if self.plan.checks and len(right):
                self._diagnose(x[right], y[right], ids[right])

    def _diagnose(self, x: Tensor, y: Tensor, ids: Tensor) -> None:
        """Alarms, escalations and the precision of the search, from initially correct samples."""
        plan = self.plan
        found = diagnose(
            self.model, x, y, ids, plan.ball, seed=plan.seed, was_training=self._was_training, stop=self._stop
        )
        names = {alarm.name for alarm in found.alarms}  # the diagnosis has looked longer: its word counts
        self._alarms = [alarm for alarm in self._alarms if alarm.name not in names] + list(found.alarms)
        plan = replace(plan, randomised=plan.randomised or found.randomised)
        if not plan.randomised:
            plan = replace(plan, attacks=trusted(plan, self.model, self._twin, x, y, ids, self._say))
        if plan.escalate and plan.target is None:
            plan = replace(plan, attacks=[*plan.attacks, *escalations(found.escalations, plan)])
        self.plan = plan

    def batches(self, split: Split, positions: Tensor, device: torch.device) -> Iterator[BatchOutcome]:
        """Attack the samples at `positions` (int64 [n]) of a split, one batch at a time; halved where memory does not suffice."""
        self.prepare(split, positions, device)

        def work(x: Tensor, y: Tensor, ids: Tensor) -> BatchOutcome:
            with frozen(self.model):
                return self.attack_batch(x, y, ids)

        yield from in_batches(split, positions, device, self.plan.batch_size, work, self._say)

    def attack_batch(self, x: Tensor, y: Tensor, ids: Tensor) -> BatchOutcome:
        """All attacks of the plan on one batch: x [B, C, H, W] in [0, 1], y and ids int64 [B]. The model must be frozen."""
        draws = JUDGE_DRAWS if self.plan.randomised else 1
        judge = Judge(self.model, self.plan.ball, draws=draws)
        if self._stop is not None:
            self._stop()
        clean = judge.logits(x)
        correct = ((judge.label(x) if self.plan.randomised else clean.argmax(1)) == y) & torch.isfinite(
            clean
        ).all(1)
        goal = self._targets(clean, y, ids)
        x_adv, predicted, still = x.clone(), clean.argmax(1), correct.clone()
        standing, seconds, passes, tallies = [], [], [], Counter[str]()
        for call in self.plan.attacks:
            began = time.perf_counter()
            eligible = still if call.bounded else correct
            open_rows = (eligible if goal is None else eligible & (goal != y)).nonzero()[:, 0]
            left, spent = eligible.clone(), 0
            if len(open_rows):
                criterion = Criterion(y[open_rows], None if goal is None else goal[open_rows])
                referee = (
                    judge if call.bounded else Judge(self.model, self.plan.ball, draws=draws, bounded=False)
                )
                found, spent, counts = self._run(
                    call, referee, x[open_rows], criterion, ids[open_rows], clean[open_rows]
                )
                asked = referee.forward_rows
                ruling = referee.rule(x[open_rows], found, criterion)
                spent += referee.forward_rows - asked
                if referee is not judge:
                    counts |= {"refused": referee.refused_rows, "broken": referee.broken_rows}
                left[open_rows[ruling.hit]] = False
                tallies.update(counts)
                if call.bounded:
                    x_adv[open_rows], predicted[open_rows], still = found, ruling.predicted, left
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            standing.append(left)
            seconds.append(time.perf_counter() - began)
            passes.append(spent)
        tallies.update({"refused": judge.refused_rows, "broken": judge.broken_rows})
        return BatchOutcome(
            ids,
            x,
            y,
            x_adv,
            clean.argmax(1),
            predicted,
            correct,
            standing,
            seconds,
            passes,
            dict(tallies),
            still,
            goal,
            draws,
        )

    def _twin(self, search: Search, x: Tensor) -> Classifier:
        search = search.exact() if self.plan.randomised else search  # tracing would freeze the draws
        if search not in self._twins:
            self._twins[search] = search.twin(
                self.model, self._prepared if self._prepared is not None else x, self._say
            )
        return self._twins[search]

    def _run(
        self, call: AttackCall, judge: Judge, x: Tensor, criterion: Criterion, ids: Tensor, clean: Tensor
    ) -> tuple[Tensor, int, dict[str, int]]:
        """One attack on rows that still stand: (best points found, model passes spent, tallies)."""
        search = call.searching(self.plan.search)
        twin = self._twin(search, x)
        before = judge.forward_rows
        minimal = call.kind == "minimal"

        def confirm(rows: Tensor, candidates: Tensor) -> Tensor:
            return judge.hits(x[rows], candidates, criterion, rows)

        watch: Watch = confirm
        oracle = Oracle(
            twin,
            x,
            criterion,
            rng=RowRandom(self.plan.seed, self.plan.stream, ids),
            keep="closest" if minimal else "best",
            watch=watch,
            stop=self._stop,
            clean_logits=clean if twin is self.model and not self.plan.randomised else None,
            ball=self.plan.ball,
            draws=search.draws or (EOT_DRAWS if self.plan.randomised else 1),
        )
        found = call.fn(oracle, x, self.plan.ball, **call.params)
        self._notes += [note for note in oracle.notes if note not in self._notes]
        if minimal:  # the closest success may lie outside the ball: that is no fault of the attack
            found = self.plan.ball.or_origin(x, found)
        spent = oracle.forward_rows + oracle.backward_rows + judge.forward_rows - before
        return found, spent, {"zero": oracle.zero_gradient_rows, "asked": oracle.asked_rows}

    def _targets(self, clean: Tensor, y: Tensor, ids: Tensor) -> Tensor | None:
        """Target label per row int64 [B], or None. "random" is uniform over the wrong classes, keyed by sample id."""
        target, classes = self.plan.target, clean.shape[1]
        if target is None:
            return None
        if target == "least-likely":
            return clean.scatter(1, y[:, None], float("inf")).argmin(1)
        if target == "random":
            return (y + RowRandom(self.plan.seed, "target", ids).integers(1, classes)) % classes
        if not isinstance(target, int) or not 0 <= target < classes:
            raise ValueError(
                f"target must be random, least-likely or a class in 0..{classes - 1}, got {target!r}"
            )
        return torch.full_like(y, target)

    def run(
        self,
        split: Split,
        positions: Tensor,
        device: torch.device,
        *,
        done: Callable[[BatchOutcome], None] = lambda outcome: None,
        proven: Callable[[int, Tensor, Tensor], None] = lambda n, right, standing: None,
        open_store: OpenStore | None = None,
        shards: Sequence[int] | None = None,
    ) -> Evaluation:
        """Measure all positions, then audit what a short list left standing; `done` sees each batch (progress, saving images) before it is forgotten.

        Args:
            proven: told once of the samples that shards from earlier runs hold: how many, who was right, who survived.
            open_store: makes the store of proven shards from the final plan and the alarms so far; what it holds is not measured again.
            shards: numbers of the shards to measure; None = all.
        """
        began, before = time.perf_counter(), state_digest(self.model)
        positions = positions[split.ids[positions].argsort()]
        plan = self.prepare(split, positions, device)
        store = open_store(plan, self._alarms, split.ids[positions], "") if open_store else None
        collector = Collector(plan, split.ids[positions], store, shards)
        proven(*collector.proven)
        for outcome in self.batches(split, positions[collector.todo], device):
            if store is not None:  # kept with the shards, for a resumed run sees the end only
                outcome.tallies["mutated"] = int(state_digest(self.model) != before)
            collector.take(outcome)
            done(outcome)
        for note in self._notes:
            self._say(note)
        collector.tallies["mutated"] += int(state_digest(self.model) != before)
        result = collector.evaluation(self._alarms, time.perf_counter() - began)
        if plan.audit is None:
            return result

        def again(attacks: Sequence[AttackCall], where: Tensor, name: str) -> Evaluation:
            if name:
                self._say(
                    f"samples of the audit fell: {', '.join(call.label for call in attacks)} run on all {len(where)} survivors"
                )
            inner = functools.partial(_named, open_store, name) if open_store is not None and name else None
            stream = (
                self.plan.stream if name else "audit"
            )  # where rapid has begun, a second look finds nothing new
            return self._beside(attacks, stream).run(split, where, device, open_store=inner)

        part = not result.complete
        result, (looked, fallen) = audited(self.plan, result, positions[collector.known], again, part=part)
        if store is not None:
            store.write_audit(looked, fallen)
        return replace(result, total_seconds=time.perf_counter() - began)

    def _beside(self, attacks: Sequence[AttackCall], stream: str) -> RobustEvaluation:
        """Other attacks in the same plan, on the same twins, without a second look at the model."""
        plan = replace(self.plan, attacks=attacks, audit=None, stream=stream)
        other = RobustEvaluation(self.model, plan, stop=self._stop, say=self._say)
        other._twins, other._prepared, other._ready = self._twins, self._prepared, self._ready
        return other
