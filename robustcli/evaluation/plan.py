"""What an evaluation measures, and what it found: plain data between the engine and those who ask it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.gradients import rescaled, straight_through
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Classifier
from robustcli.evaluation.bound import Audit
from robustcli.facts import AttackFacts, Kind, Needs, Passes
from robustcli.records.alarm import Alarm, reliability
from robustcli.registry import Entry, parameters


@dataclass(frozen=True)
class Search:
    """How attacks look for candidates; never how they are judged. `dtype` float32 without folding is the model itself.

    Args:
        dtype, fold_bn, channels_last, compile: of the search twin (`core.twin.SearchTwin`).
        bpda: gradients pass straight through rounding, signs and integer casts (`core.gradients.straight_through`).
        rescale: logits are brought to a scale where cross-entropy has gradients (`core.gradients.rescaled`).
        draws: model passes averaged per answer; None means 1, or 20 when the model turns out to be randomised (EOT).
    """

    dtype: torch.dtype = torch.float32
    fold_bn: bool = True
    channels_last: bool = True
    compile: bool = False
    bpda: bool = False
    rescale: bool = False
    draws: int | None = None

    def exact(self) -> Search:
        """The same search on the model itself."""
        return replace(self, dtype=torch.float32, fold_bn=False, channels_last=False, compile=False)

    @property
    def plain(self) -> bool:
        """True when the search runs on the model itself."""
        return (
            self.dtype is torch.float32 and not self.fold_bn and not self.channels_last and not self.compile
        )

    def copy_of(self, model: nn.Module) -> SearchTwin:
        """The search twin, not yet compared with the model."""
        return SearchTwin(
            model,
            dtype=self.dtype,
            fold_bn=self.fold_bn,
            channels_last=self.channels_last,
            compiled=self.compile,
        )

    def twin(self, model: nn.Module, x: Tensor, say: Callable[[str], None] = lambda text: None) -> Classifier:
        """The search twin of a frozen model, or the model itself when they disagree on x (said through `say`)."""
        found: Classifier = model
        if (
            not self.plain and not self.bpda
        ):  # straight-through gradients look into the model's own operations
            twin = self.copy_of(model)
            why = twin.parity(x)
            if why:
                say(f"searching on the plain fp32 model: {why}")
            else:
                found = twin
        found = straight_through(found) if self.bpda else found
        return rescaled(found) if self.rescale else found


@dataclass(frozen=True)
class AttackCall:
    """One attack with its parameters bound: `fn(oracle, x, ball, **params)`.

    Args:
        label: its name in tables ("pgd-20").
        name: its registered name, or what stands for it (a file of the user's, a class of another library).
        kind: fixed and minimal attacks answer within the plan's ball. An unbounded one (rotations, corruptions) is a
            threat of its own: it runs on every initially correct sample, and its breaks do not count against the ball.
        needs: gradient, scores or decisions.
        search: how this call searches, instead of the plan's way.
        precision: the lowest that its search bears, bf16 or fp32.
        cost: model passes on a sample that survives, see `facts.AttackFacts.passes`; None where nobody knows.
    """

    label: str
    name: str
    fn: Callable[..., Tensor]
    params: Mapping[str, Any]
    kind: Kind = "fixed"
    needs: Needs = "gradient"
    search: Search | None = None
    precision: str = "bf16"
    cost: Passes | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        entry: Entry[AttackFacts],
        params: Mapping[str, Any],
        *,
        label: str | None = None,
        search: Search | None = None,
    ) -> AttackCall:
        """The call of a registered attack, with the facts of its registration."""
        facts, title = entry.facts, label or entry.name
        return cls(
            title,
            entry.name,
            entry.fn,
            params,
            facts.kind,
            facts.needs,
            search,
            facts.precision,
            facts.passes,
        )

    @property
    def given(self) -> dict[str, Any]:
        """All parameters of the attack: its defaults, and over them what was asked for."""
        defaults = {name: parameter.default for name, parameter in parameters(self.fn).items()}
        return defaults | dict(self.params)

    @property
    def bounded(self) -> bool:
        """Whether its points must lie in the ball."""
        return self.kind != "unbounded"

    def passes(self, classes: int, norm: str) -> int:
        """Model passes on one sample that survives, its last point included; 0 where nobody knows."""
        if self.cost is None:
            return 0
        draws = (self.search and self.search.draws) or 1
        return self.cost(self.given, classes, norm) * draws

    def searching(self, plan: Search) -> Search:
        """How this call searches in a plan that searches so: never in less than it bears."""
        chosen = self.search or plan
        if self.precision == "fp32":
            return replace(chosen, dtype=torch.float32)
        return chosen

    def oracle(self, model: Classifier, x: Tensor, criterion: Criterion, **settings: Any) -> Oracle:
        """What the attack asks: it keeps the closest success for a minimal-norm attack, else the worst point met."""
        return Oracle(model, x, criterion, keep="closest" if self.kind == "minimal" else "best", **settings)

    def points(self, oracle: Oracle, x: Tensor, ball: Ball, **changed: Any) -> Tensor:
        """x_adv [R, C, H, W] of a search, with some parameters `changed`.

        The closest success of a minimal-norm attack may lie outside the ball, which is no fault of the attack: then x.
        """
        x_adv = self.fn(oracle, x, ball, **{**self.params, **changed})
        return ball.or_origin(x, x_adv) if self.kind == "minimal" else x_adv


@dataclass(frozen=True)
class AuditPlan:
    """What checks a short list of attacks: see `evaluation.audit`.

    samples: survivors that are looked at; 0 = none. short_forms: model passes per sample -> attacks. escalation: runs on all
    survivors when two of those samples fall.
    """

    samples: int
    short_forms: Callable[[int], Sequence[AttackCall]] = field(compare=False)
    escalation: Sequence[AttackCall] = ()


@dataclass(frozen=True)
class EvalPlan:
    """What to measure.

    Args:
        ball: the threat.
        attacks: run in this order, each on the rows still standing.
        seed: of all draws; they depend on it and the sample id only.
        batch_size: images per batch, or None for as many as the device's memory takes; never changes a verdict (decisions:
            borderline flips below 1e-5 excepted).
        target: None for untargeted, "random", "least-likely" or a class number.
        search: precision and layout of the search twin.
        checks: initially correct samples on which the model is diagnosed before anything is measured; 0 = only the free checks.
        escalate: add stages of our own when the diagnosis finds masked gradients.
        randomised: found out by the first look at the model: gradients are averaged and a majority of draws decides.
        audit: how survivors are looked at once more, or None where the list needs no audit.
        stream: of the attacks' draws: two attacks of one kind that share it begin at the same points.

    Raises:
        ValueError: two attacks with one label.
    """

    ball: Ball
    attacks: Sequence[AttackCall]
    seed: int = 0
    batch_size: int | None = 256
    target: str | int | None = None
    search: Search = field(default_factory=Search)
    checks: int = 0
    escalate: bool = True
    randomised: bool = False
    audit: AuditPlan | None = None
    stream: str = "start"

    def __post_init__(self) -> None:
        labels = [call.label for call in self.attacks]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two attacks have one name: {', '.join(labels)}")


@dataclass(frozen=True)
class BatchOutcome:
    """One batch after all attacks; tensors over its B rows, on the device.

    `x_adv` is the point in the ball that broke the row, or the worst one met; `standing[k]` tells who is right after attack k
    (for an unbounded attack: right under it and on the clean image). `tallies`: counts that alarms need. `survivors`: right on the
    clean image and under every attack in the ball. `goal`: the label that a targeted attack heads for. `draws`: model passes per judgement.
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
    tallies: dict[str, int]
    survivors: Tensor
    goal: Tensor | None = None
    draws: int = 1


@dataclass(frozen=True)
class Evaluation:
    """Result over n samples; bool tensors [n] on the CPU in the order of `ids`, which are sorted.

    `correct`: right on the clean image. `stages[label]`: correct and still right after that attack and all before it; for the labels
    in `apart` (unbounded attacks) correct and right under that attack alone. `shards`: how many are complete, of how many.
    `audit`: of a list that is audited; what fell there is broken in its stages and in `survivors`.
    """

    ids: Tensor
    labels: Tensor
    correct: Tensor
    stages: dict[str, Tensor]
    seconds: dict[str, float]
    passes_per_sample: dict[str, float]
    alarms: list[Alarm]
    total_seconds: float
    apart: frozenset[str] = frozenset()
    calls: tuple[AttackCall, ...] = ()
    total: int = 0
    shards: tuple[int, int] = (0, 0)
    audit: Audit | None = None

    @property
    def survivors(self) -> Tensor:
        """bool [n]: right on the clean image and under every attack in the ball; where no attack is in a ball, under each of them."""
        bounded = [standing for label, standing in self.stages.items() if label not in self.apart]
        if bounded or not self.stages:
            return bounded[-1] if bounded else self.correct
        return torch.stack(list(self.stages.values())).all(0)

    @property
    def n(self) -> int:
        """Samples measured."""
        return len(self.ids)

    @property
    def complete(self) -> bool:
        """False when other shards of the same evaluation are missing: then no number here is final."""
        return self.n == (self.total or self.n)

    @property
    def clean_acc(self) -> float:
        """Share right on clean images, in [0, 1]."""
        return int(self.correct.sum()) / max(1, self.n)

    @property
    def robust_acc(self) -> float:
        """Share of all samples that are right under every attack in the ball, in [0, 1]."""
        return int(self.survivors.sum()) / max(1, self.n)

    @property
    def attack_success(self) -> float:
        """Share of the initially correct samples that some attack in the ball broke, in [0, 1]."""
        right = int(self.correct.sum())
        return (right - int(self.survivors.sum())) / right if right else 0.0

    @property
    def reliability(self) -> str:
        """ok, suspect or invalid: the worst alarm."""
        return reliability(self.alarms)
