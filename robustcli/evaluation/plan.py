"""What an evaluation measures: plain data for the engine. `evaluation.result` holds its answer."""

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
from robustcli.facts import AttackFacts, Kind, Needs, Passes
from robustcli.registry import Entry, parameters


@dataclass(frozen=True)
class Search:
    """On what attacks look for candidates. It never changes how these are judged.

    Args:
        dtype, fold_bn, channels_last, compile: of the search twin (`core.twin.SearchTwin`), a copy of the
            model that answers faster.
        bpda: gradients pass straight through rounding, signs and integer casts
            (`core.gradients.straight_through`).
        rescale: logits are brought to a scale where cross-entropy has gradients (`core.gradients.rescaled`).
        draws: model passes averaged per answer; None means 1, or 20 when the model turns out to be randomised
            (EOT).
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
        return self == self.exact()

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
        """What attacks ask: the search twin of a frozen model, with `bpda` and `rescale` applied.

        Where the twin disagrees with the model on pixels x [B, C, H, W], which `say` tells, it is the model
        itself.
        """
        searched = self._faithful_copy(model, x, say)
        if self.bpda:
            searched = straight_through(searched)
        if self.rescale:
            searched = rescaled(searched)
        return searched

    def _faithful_copy(self, model: nn.Module, x: Tensor, say: Callable[[str], None]) -> Classifier:
        """The twin if it agrees with the model on x, else the model."""
        if self.plain or self.bpda:  # straight-through gradients look into the model's own operations
            return model
        twin = self.copy_of(model)
        difference = twin.parity(x)
        if not difference:
            return twin
        say(f"searching on the plain fp32 model: {difference}")
        return model


@dataclass(frozen=True)
class AttackCall:
    """One attack with its parameters bound: `fn(oracle, x, ball, **params)`.

    Args:
        label: its name in tables ("pgd-20").
        name: its registered name, or what stands for it (a file of the user's, a class of another library).
        kind: fixed and minimal attacks answer within the plan's ball. An unbounded one (rotations,
            corruptions) is a threat of its own: it runs on every initially correct sample, and its breaks do
            not count against the ball.
        needs: gradient, scores or decisions.
        search: how this call searches, instead of the plan's way.
        precision: the lowest in which it may search, bf16 or fp32.
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
        facts = entry.facts
        return cls(
            label=label or entry.name,
            name=entry.name,
            fn=entry.fn,
            params=params,
            kind=facts.kind,
            needs=facts.needs,
            search=search,
            precision=facts.precision,
            cost=facts.passes,
        )

    @property
    def given(self) -> dict[str, Any]:
        """All parameters of the attack: its defaults, replaced by those that were asked for."""
        defaults = {name: parameter.default for name, parameter in parameters(self.fn).items()}
        return defaults | dict(self.params)

    @property
    def bounded(self) -> bool:
        """Whether its points must lie in the ball."""
        return self.kind != "unbounded"

    def passes(self, classes: int, norm: str) -> int:
        """Model passes on one sample that survives, the judge's at the end included; 0 where nobody knows."""
        if self.cost is None:
            return 0
        draws = (self.search and self.search.draws) or 1
        return self.cost(self.given, classes, norm) * draws

    def searching(self, plan: Search) -> Search:
        """How this call searches in a plan: its own way, else the plan's, never below its precision."""
        chosen = self.search or plan
        if self.precision == "fp32":
            return replace(chosen, dtype=torch.float32)
        return chosen

    def oracle(self, model: Classifier, x: Tensor, criterion: Criterion, **settings: Any) -> Oracle:
        """What the attack asks. It keeps the worst point met, for a minimal attack the closest success."""
        return Oracle(model, x, criterion, keep="closest" if self.kind == "minimal" else "best", **settings)

    def points(self, oracle: Oracle, x: Tensor, ball: Ball, **changed: Any) -> Tensor:
        """x_adv [R, C, H, W] of a search, with some parameters `changed`.

        The closest success of a minimal-norm attack may lie outside the ball, which is no fault of the
        attack. In such rows the answer is x.
        """
        x_adv = self.fn(oracle, x, ball, **{**self.params, **changed})
        if self.kind == "minimal":
            return ball.or_origin(x, x_adv)
        return x_adv


@dataclass(frozen=True)
class AuditPlan:
    """What checks a short list of attacks: see `evaluation.audit`.

    Args:
        samples: survivors that are looked at; 0 = none.
        short_forms: model passes per sample -> the attacks that these samples meet.
        escalation: attacks that run on all survivors when two of those samples fall.
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
        batch_size: images per batch, or None for as many as the device's memory takes. No verdict depends on
            it, but for borderline flips of less than 1e-5 (docs/decisions.md).
        target: None for untargeted, "random", "least-likely" or a class number.
        search: precision and layout of the search twin.
        checks: initially correct samples on which the model is diagnosed before anything is measured; 0 =
            only the free checks.
        escalate: add stages of our own when the diagnosis finds masked gradients.
        randomised: the model answers differently each time, as the first look at it found: gradients are
            averaged and a majority of draws decides.
        audit: how survivors are looked at once more, or None where the list needs no audit.
        stream: name of the attacks' random streams. Two attacks of one kind that share it begin at the same
            points.

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

    def draws(self, many: int) -> int:
        """Model passes per answer: `many` for a randomised model, else 1."""
        return many if self.randomised else 1
