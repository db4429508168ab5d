"""What an evaluation measures: plain data for the engine. `evaluation.result` holds its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.core.edge import hides_bounds, opened
from robustcli.core.geometry import Ball
from robustcli.core.gradients import rescaled, straight_through
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Keep, Oracle
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Classifier, offers
from robustcli.errors import out_of_memory
from robustcli.evaluation.quickest import Length, quickest
from robustcli.facts import AttackFacts, Kind, Needs, Passes
from robustcli.models.contract.training import keeps_channels_last
from robustcli.registry import Entry, parameters
from robustcli.regular import read_bytes

_USUAL_LAYOUT = "copy in PyTorch's usual memory layout: the network does not run in channels-last"
_UNFOLDED = "copy that keeps its BatchNorm: the network does not run as a trace"


_MANY = (
    200  # model passes on a sample that survives, from which faster forms of a twin are worth their making
)
_LIMIT = 1 << 26  # bytes of a file that an attack reads
_CLASSES = 10  # of a usual task, where only the size of a cost matters
JUDGE_DRAWS = 25  # odd: a majority always exists


@dataclass(frozen=True)
class Search:
    """What answers the questions of an attack: the model, or a faster copy, with or without other gradients.

    The judge always asks the model itself.

    Args:
        dtype, fold_bn, channels_last, compile, graph, wide: parameters of the copy, the search twin
            (`core.twin.SearchTwin`).
        length: how long the run will last, for a race between forms of the copy (`evaluation.quickest`);
            None makes none.
        bpda: whether rounding, signs and integer casts get gradients (`core.gradients.straight_through`). The
            model itself is then searched on.
        rescale: whether logits are brought to a scale where cross-entropy has gradients
            (`core.gradients.rescaled`).
        draws: model passes averaged per answer (EOT); None means 1, or what `evaluation.draws` says where the
            model turns out to be randomised.
    """

    dtype: torch.dtype = torch.float32
    fold_bn: bool = True
    channels_last: bool = True
    compile: bool = False
    graph: bool = False
    wide: bool = False
    length: Length | None = None
    bpda: bool = False
    rescale: bool = False
    draws: int | None = None

    def exact(self) -> Search:
        """The same search on the model itself, without a twin; `bpda`, `rescale` and `draws` stay."""
        layout = {"fold_bn": False, "channels_last": False, "compile": False, "graph": False, "wide": False}
        return replace(self, dtype=torch.float32, length=None, **layout)

    @property
    def plain(self) -> bool:
        """Whether there is no twin: dtype float32, nothing folded, usual layout, not compiled, no graphs."""
        return replace(self, length=None) == self.exact()

    def copy_of(self, model: nn.Module) -> SearchTwin:
        """The search twin, not yet compared with the model."""
        return SearchTwin(
            model,
            dtype=self.dtype,
            fold_bn=self.fold_bn,
            channels_last=self.channels_last,
            compiled=self.compile,
            graph=self.graph,
            wide=self.wide,
        )

    def faithful(self, model: nn.Module, x: Tensor) -> tuple[SearchTwin | None, str]:
        """(the search twin, "") where it agrees with the model on x, pixels [B, C, H, W].

        (a plainer twin, its name) where code that is not ours does not run as a traced copy, or not in
        channels-last layout; (None, why) where no copy may be used.
        """
        usual, first = replace(self, channels_last=False), ""
        if offers(model) != "gradient":
            return None, "a black box has no copy"
        plainer = {self if keeps_channels_last(model) else usual: ""}  # the probe has said which
        plainer.setdefault(usual, _USUAL_LAYOUT)
        plainer.setdefault(replace(usual, fold_bn=False), _UNFOLDED)
        for search, name in plainer.items():
            try:
                twin = search.copy_of(model)
            except Exception as failure:  # a deep copy runs code of the user's
                if out_of_memory(failure):
                    raise
                return None, f"it cannot be copied ({type(failure).__name__})"
            difference = twin.parity(x)
            if not difference:
                return quickest(search, model, x, twin), name
            first = first or difference
            if twin.runs:
                break
        return None, first

    def twin(self, model: nn.Module, x: Tensor, say: Callable[[str], None] = lambda text: None) -> Classifier:
        """The classifier that attacks ask: the search twin or the model, with `bpda` and `rescale` applied.

        Args:
            model: the original one, frozen.
            x: pixels [B, C, H, W] in [0, 1] on which the twin is compared with the model. Where they
                disagree, the model is taken.
            say: told so in one line.
        """
        if offers(model) != "gradient":  # a black box has neither a copy nor operations to look into
            return model
        hides = hides_bounds(model, x)
        search = self.beside_bounds() if hides else self
        searched = search._faithful_copy(model, x, say)
        if hides:
            say("the model clamps its input: at 0 and 1 the search takes the slope beside them")
            searched = opened(searched)
        if self.bpda:
            searched = straight_through(searched)
        if self.rescale:
            searched = rescaled(searched)
        return searched

    def beside_bounds(self) -> Search:
        """The same for a model without a slope at 0 and 1: in float32, as bfloat16 has no number beside 1."""
        return replace(self, dtype=torch.float32)

    def _faithful_copy(self, model: nn.Module, x: Tensor, say: Callable[[str], None]) -> Classifier:
        """The twin if it agrees with the model on x, else the model."""
        if self.plain or self.bpda:  # straight-through gradients look into the model's own operations
            return model
        twin, note = self.faithful(model, x)
        if twin is None:
            say(f"searching on the plain fp32 model: {note}")
            return model
        if note:
            say(f"searching on a {note}")
        if twin.way:
            say(twin.way)
        return twin


@dataclass(frozen=True)
class AttackCall:
    """One attack with its parameters bound: `fn(oracle, x, ball, **params)`.

    Args:
        label: its name in tables ("pgd-20").
        name: its registered name; or the user's file, or the class of another library, that it comes from.
        fn: the attack.
        params: its keyword arguments, where they differ from the defaults.
        kind: fixed and minimal attacks answer within the plan's ball. An unbounded one (rotations,
            corruptions) is a threat of its own: it runs on every initially correct sample, and its breaks do
            not count against the ball.
        needs: gradient, scores or decisions.
        search: on what this call searches; None means the plan's `search`.
        precision: the lowest in which it may search, bf16 or fp32.
        cost: model passes on a sample that survives, see `facts.AttackFacts.passes`; None where nobody knows.
        reads: path -> SHA-256 of each file that its verdicts depend on.
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
    reads: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        entry: Entry[AttackFacts],
        params: Mapping[str, Any],
        *,
        label: str | None = None,
        search: Search | None = None,
    ) -> AttackCall:
        """A registered attack with `params`; label None means its name. Raises OSError: a file it reads."""
        facts = entry.facts
        call = cls(
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
        if facts.ready is not None and facts.ready(call.given):
            call = replace(call, needs="decisions")
        files = [] if facts.reads is None else facts.reads(call.given)
        return replace(call, reads={str(path): _hash_of(path) for path in files})

    @property
    def given(self) -> dict[str, Any]:
        """All parameters of the attack: its defaults, replaced by those that were asked for."""
        defaults = {name: parameter.default for name, parameter in parameters(self.fn).items()}
        return defaults | dict(self.params)

    def check_fits(self, shape: tuple[int, int, int]) -> None:
        """Raises DataError where files of a registered attack do not go with images of shape (C, H, W)."""
        if self.name in registry.attacks and (fits := registry.attacks.get(self.name).facts.fits) is not None:
            fits(self.given, shape)

    @property
    def bounded(self) -> bool:
        """Whether its points must lie in the ball."""
        return self.kind != "unbounded"

    def passes(self, classes: int, norm: str) -> int:
        """Model passes of the attack on one sample that survives; 0 where nobody knows.

        `search.draws` multiplies them. The passes of the judge are not included.
        """
        if self.cost is None:
            return 0
        draws = (self.search and self.search.draws) or 1
        return self.cost(self.given, classes, norm) * draws

    def searching(self, plan: Search) -> Search:
        """On what this call searches: its own `search`, else the plan's; float32 if it needs fp32."""
        chosen = self.search or plan
        if self.precision == "fp32":
            return replace(chosen, dtype=torch.float32)
        return chosen

    def oracle(self, model: Classifier, x: Tensor, criterion: Criterion, **settings: Any) -> Oracle:
        """The oracle for this attack: keep="closest" for a minimal one, else "best"; settings: its others.

        One that needs decisions sees labels alone, whatever the model answers.
        """
        keep: Keep = "closest" if self.kind == "minimal" else "best"
        ball = settings.get("ball")
        many = ball is not None and self.passes(_CLASSES, ball.norm) >= _MANY
        blind = self.needs == "decisions"
        return Oracle(model, x, criterion, keep=keep, many=many, blind=blind, **settings)

    def points(self, oracle: Oracle, x: Tensor, ball: Ball, **changed: Any) -> Tensor:
        """Run the attack: its points x_adv [R, C, H, W] for x [R, C, H, W]; changed: parameters to replace.

        The closest success of a minimal-norm attack may lie outside the ball. In such rows the answer is x,
        and no alarm is raised.
        """
        x_adv = self.fn(oracle, x, ball, **{**self.params, **changed})
        if self.kind == "minimal":
            return ball.or_origin(x, x_adv)
        return x_adv


@dataclass(frozen=True)
class AuditPlan:
    """What checks a short list of attacks: see `evaluation.audit`.

    Args:
        samples: how many survivors are audited; 0 = none.
        short_forms: (model passes per sample) -> the attacks that these samples meet.
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
        search: on what attacks search that have no `search` of their own.
        checks: how many initially correct samples the diagnosis looks at before anything is measured. 0 = no
            diagnosis, only the checks of two forward passes.
        escalate: whether stages are added when the diagnosis finds masked gradients.
        randomised: whether the model answers differently each time; found by the first look at it. Gradients
            are then averaged, and a majority of draws decides.
        judge_draws: fresh draws whose majority decides on a randomised model.
        audit: how survivors are attacked once more, or None where the list needs no audit.
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
    judge_draws: int = JUDGE_DRAWS
    audit: AuditPlan | None = None
    stream: str = "start"

    def __post_init__(self) -> None:
        labels = [call.label for call in self.attacks]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two attacks have one name: {', '.join(labels)}")

    @property
    def bounded(self) -> bool:
        """Whether breaks in the ball count: where no attack of a list is in it, those of all attacks do."""
        return not self.attacks or any(call.bounded for call in self.attacks)

    def draws(self, many: int) -> int:
        """`many` for a randomised model, else 1: model passes per answer."""
        return many if self.randomised else 1


def _hash_of(path: Path) -> str:
    """SHA-256 of a file that an attack reads. Raises OSError."""
    return sha256(read_bytes(path, _LIMIT)).hexdigest()
