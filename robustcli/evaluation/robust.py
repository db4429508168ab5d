"""Clean and robust accuracy of a model under a list of attacks: worst case per sample, survivors only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle, Watch
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.data.split import Split
from robustcli.evaluation.alarms import Alarm, check_model_output, check_search, reliability, state_digest
from robustcli.evaluation.judge import Judge
from robustcli.types import Classifier


@dataclass(frozen=True)
class AttackCall:
    """One attack with its parameters bound: `fn(oracle, x, ball, **params)`; `label` names it in tables ("pgd-20")."""

    label: str
    name: str
    fn: Callable[..., Tensor]
    params: Mapping[str, Any]
    needs_gradient: bool = True


@dataclass(frozen=True)
class Search:
    """How attacks look for candidates; never how they are judged. `dtype` float32 without folding is the model itself."""

    dtype: torch.dtype = torch.float32
    fold_bn: bool = True
    channels_last: bool = True

    def twin(self, model: nn.Module, x: Tensor, say: Callable[[str], None] = lambda text: None) -> Classifier:
        """The search twin of a frozen model, or the model itself when they disagree on x (said through `say`)."""
        if self.dtype is torch.float32 and not self.fold_bn and not self.channels_last:
            return model
        twin = SearchTwin(model, dtype=self.dtype, fold_bn=self.fold_bn, channels_last=self.channels_last)
        why = twin.parity(x)
        if why:
            say(f"searching on the plain fp32 model: {why}")
            return model
        return twin


@dataclass(frozen=True)
class EvalPlan:
    """What to measure.

    Args:
        ball: the threat.
        attacks: run in this order, each on the rows still standing.
        seed: of all draws; they depend on it and the sample id only.
        batch_size: images per batch; never changes a verdict (decisions: borderline flips below 1e-5 excepted).
        target: None for untargeted, "random", "least-likely" or a class number.
        search: precision and layout of the search twin.
    """

    ball: Ball
    attacks: Sequence[AttackCall]
    seed: int = 0
    batch_size: int = 256
    target: str | int | None = None
    search: Search = field(default_factory=Search)


@dataclass(frozen=True)
class BatchOutcome:
    """One batch after all attacks; tensors over its B rows, on the device.

    `x_adv` is the point that broke the row, or the worst one met; `standing[k]` tells who is right after attack k.
    """

    ids: Tensor
    x: Tensor
    y: Tensor
    x_adv: Tensor
    clean_predicted: Tensor
    predicted: Tensor
    correct: Tensor
    standing: list[Tensor]
    seconds: list[float]
    passes: list[int]


@dataclass(frozen=True)
class Evaluation:
    """Result over n samples; bool tensors [n] on the CPU in the order of `ids`.

    `correct`: right on the clean image. `stages[label]`: correct and still right after that attack and all before it.
    """

    ids: Tensor
    labels: Tensor
    correct: Tensor
    stages: dict[str, Tensor]
    seconds: dict[str, float]
    passes_per_sample: dict[str, float]
    alarms: list[Alarm]
    total_seconds: float

    @property
    def survivors(self) -> Tensor:
        """bool [n]: right on the clean image and under every attack."""
        return list(self.stages.values())[-1] if self.stages else self.correct

    @property
    def n(self) -> int:
        """Samples measured."""
        return len(self.ids)

    @property
    def clean_acc(self) -> float:
        """Share right on clean images, in [0, 1]."""
        return int(self.correct.sum()) / max(1, self.n)

    @property
    def robust_acc(self) -> float:
        """Share of all samples that are right under every attack, in [0, 1]."""
        return int(self.survivors.sum()) / max(1, self.n)

    @property
    def attack_success(self) -> float:
        """Share of the initially correct samples that some attack broke, in [0, 1]."""
        right = int(self.correct.sum())
        return (right - int(self.survivors.sum())) / right if right else 0.0

    @property
    def reliability(self) -> str:
        """ok, suspect or invalid: the worst alarm."""
        return reliability(self.alarms)


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
        self._twin: Classifier | None = None
        self._output_alarms: list[Alarm] = []
        self._zero = self._asked = self._refused = 0

    def batches(self, split: Split, positions: Tensor, device: torch.device) -> Iterator[BatchOutcome]:
        """Attack the samples at `positions` (int64 [n]) of a split, one batch at a time."""
        for x, y, ids in split.stream(list(positions.split(self.plan.batch_size)), device):
            with frozen(self.model):
                yield self.attack_batch(x, y, ids)

    def attack_batch(self, x: Tensor, y: Tensor, ids: Tensor) -> BatchOutcome:
        """All attacks of the plan on one batch: x [B, C, H, W] in [0, 1], y and ids int64 [B]. The model must be frozen."""
        judge = Judge(self.model, self.plan.ball)
        if self._stop is not None:
            self._stop()
        clean = judge.logits(x)
        if self._twin is None:
            self._output_alarms = check_model_output(clean, judge.logits(x))
            self._twin = self.plan.search.twin(self.model, x, self._say)
        correct = (clean.argmax(1) == y) & torch.isfinite(clean).all(1)
        goal = self._targets(clean, y, ids)
        x_adv, predicted, still = x.clone(), clean.argmax(1), correct.clone()
        standing, seconds, passes = [], [], []
        for call in self.plan.attacks:
            began = time.perf_counter()
            open_rows = (still if goal is None else still & (goal != y)).nonzero()[:, 0]
            spent = 0
            if len(open_rows):
                target = None if goal is None else goal[open_rows]
                found, spent = self._run(call, judge, x[open_rows], Criterion(y[open_rows], target), ids[open_rows], clean[open_rows])
                ruling = judge.rule(x[open_rows], found, Criterion(y[open_rows], target))
                x_adv[open_rows], predicted[open_rows] = found, ruling.predicted
                still[open_rows[ruling.hit]] = False
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            standing.append(still.clone())
            seconds.append(time.perf_counter() - began)
            passes.append(spent)
        self._refused += judge.refused_rows
        return BatchOutcome(ids, x, y, x_adv, clean.argmax(1), predicted, correct, standing, seconds, passes)

    def _run(self, call: AttackCall, judge: Judge, x: Tensor, criterion: Criterion, ids: Tensor, clean: Tensor) -> tuple[Tensor, int]:
        """One attack on rows that still stand: (best points found, model passes spent)."""
        assert self._twin is not None
        searched_on_model = self._twin is self.model
        before = judge.forward_rows

        def confirm(rows: Tensor, candidates: Tensor) -> Tensor:
            return judge.rule(x[rows], candidates, criterion, rows).hit

        watch: Watch = confirm
        oracle = Oracle(
            self._twin,
            x,
            criterion,
            rng=RowRandom(self.plan.seed, "start", ids),
            keep="best",
            watch=watch,
            stop=self._stop,
            clean_logits=clean if searched_on_model else None,
        )
        found = call.fn(oracle, x, self.plan.ball, **call.params)
        self._zero += oracle.zero_gradient_rows
        self._asked += oracle.asked_rows
        return found, oracle.forward_rows + oracle.backward_rows + judge.forward_rows - before

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
            raise ValueError(f"target must be random, least-likely or a class in 0..{classes - 1}, got {target!r}")
        return torch.full_like(y, target)

    def run(self, split: Split, positions: Tensor, device: torch.device, *, done: Callable[[BatchOutcome], None] = lambda outcome: None) -> Evaluation:
        """Measure all positions; `done` sees each batch (progress, saving images) before it is forgotten."""
        began, before = time.perf_counter(), state_digest(self.model)
        labels = [call.label for call in self.plan.attacks]
        ids, y, correct = [], [], []
        stages: dict[str, list[Tensor]] = {label: [] for label in labels}
        seconds, passes = dict.fromkeys(labels, 0.0), dict.fromkeys(labels, 0)
        for outcome in self.batches(split, positions, device):
            ids.append(outcome.ids.cpu())
            y.append(outcome.y.cpu())
            correct.append(outcome.correct.cpu())
            for k, label in enumerate(labels):
                stages[label].append(outcome.standing[k].cpu())
                seconds[label] += outcome.seconds[k]
                passes[label] += outcome.passes[k]
            done(outcome)
        n = max(1, len(positions))
        alarms = self._output_alarms + check_search(self._zero / max(1, self._asked), self._refused, before, state_digest(self.model))
        return Evaluation(
            torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64),
            torch.cat(y) if y else torch.zeros(0, dtype=torch.int64),
            torch.cat(correct) if correct else torch.zeros(0, dtype=torch.bool),
            {label: torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool) for label, parts in stages.items()},
            seconds,
            {label: count / n for label, count in passes.items()},
            alarms,
            time.perf_counter() - began,
        )
