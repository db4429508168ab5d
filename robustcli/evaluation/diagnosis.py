"""A look at a model before it is measured: a few samples show gradients that mislead the attacks.

The file is long because its checks share one record of counts, and later checks depend on earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.gradients import straight_through
from robustcli.core.losses import Criterion, ce, margin
from robustcli.core.random import RowRandom
from robustcli.core.slope import needs_whole_backward, slope
from robustcli.core.types import Classifier, declares_draws, reject_of
from robustcli.evaluation.alarms import autograd_calls, check_setup, differing, one_hot_rows, output_counts
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.rules import RULES, too_many
from robustcli.records.alarm import Alarm

_ORDER = ("rescale", "bpda", "eot", "minimal", "square", "transfer")
_BEYOND = 24  # samples that searches from outside the ball are tried on
_LEAD = 80.0  # e^-80, the factor of every gradient of cross-entropy, is about to underflow in float32
#: Searches that should find nothing after 60 steps of PGD on cross-entropy: alarm -> (attack, parameters).
_SECOND_OPINIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "loss-dependent": ("pgd", {"steps": 20, "loss": "margin"}),
    "noise-beats-gradient": ("noise", {"draws": 10}),
    "black-box-beats-white-box": ("square", {"queries": 150}),
}


@dataclass(frozen=True)
class Diagnosis:
    """What a few samples say of a model.

    Args:
        alarms: all that were raised, those of level "note" included.
        evidence: name -> share of the samples in [0, 1]. The names are those of all alarms that were checked,
            and of some attacks, for which the share is of broken samples.
        escalations: extra stages that alarms call for, from rescale, bpda, eot, minimal, square and transfer,
            in this order.
        randomised: two passes over the same images give different logits.
    """

    alarms: list[Alarm]
    evidence: dict[str, float]
    escalations: tuple[str, ...]
    randomised: bool


def diagnose(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    ball: Ball,
    *,
    seed: int,
    stop: Callable[[], None] | None = None,
    trained: Sequence[str] = (),
) -> Diagnosis:
    """Signs of masked gradients on n samples that the model classifies correctly.

    Every alarm allows for chance (`alarms.Rule`).

    Args:
        model: held frozen in eval mode by the caller.
        x: pixels [n, C, H, W] in [0, 1].
        y, ids: labels and sample ids, int64 [n]. n = 0 gives an empty diagnosis.
        ball: the threat. With eps = 0 only outputs and gradients are checked.
        seed: every draw depends on it and the sample's id alone.
        stop: raises to interrupt. It is called before every pass of an attack.
        trained: what of the model was handed over in train mode and behaves otherwise there, see
            `alarms.trained_kinds`.

    Cost in model passes: about 25 for a sample that falls at once. The attack with all pixels free adds 10 to
    40. A sample that nothing breaks takes 320 more. At most 24 of those take another 320.

    Source: Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705; Athalye et al.,
        ICML 2018, arXiv:1802.00420, section 3.1; the checks of AutoAttack, Croce & Hein, ICML 2020,
        arXiv:2003.01690.
    """
    probe = _Probe(model, x, y, ids, ball, seed, stop)
    if len(x):
        probe.outputs(trained)
        probe.gradients()
        # On a randomised model one lucky draw would look like an attack that beats another.
        if ball.eps > 0 and not probe.randomised:
            probe.attacks()
    escalations = tuple(name for name in _ORDER if name in probe.helps - probe.useless)
    return Diagnosis(probe.alarms, probe.evidence, escalations, probe.randomised)


@dataclass
class _Probe:
    """Checks a model for each alarm of `alarms.RULES`. The judge decides whether a point breaks it.

    Args:
        model, x, y, ids, ball, seed, stop: as for `diagnose`.
        alarms, evidence, randomised: what was found so far, as in a `Diagnosis`.
        helps: extra stages that an alarm calls for.
        useless: extra stages that cannot help against this model.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    ids: Tensor
    ball: Ball
    seed: int
    stop: Callable[[], None] | None
    alarms: list[Alarm] = field(default_factory=list)
    evidence: dict[str, float] = field(default_factory=dict)
    helps: set[str] = field(default_factory=set)
    useless: set[str] = field(default_factory=set)
    randomised: bool = False

    @property
    def aim(self) -> Criterion:
        """What a success against the model is, for all n rows."""
        return Criterion(self.y, reject=reject_of(self.model))

    def count(self, name: str, cases: Tensor | int, of: int, more: str = "") -> bool:
        """Book `cases` under the alarm `name`; True when the alarm is raised.

        Args:
            name: a key of `alarms.RULES`.
            cases: a number, or bool [n].
            of: how many could have been cases.
            more: text behind the alarm's evidence.
        """
        count = int(cases.sum()) if isinstance(cases, Tensor) else cases
        self.evidence[name] = count / max(1, of)
        raised = RULES[name].alarm(count, of, more)
        self.alarms += raised
        if raised:
            self.helps.update(RULES[name].helps)
        return bool(raised)

    def outputs(self, trained: Sequence[str]) -> None:
        """Check forward passes: logits are finite and repeat, in any batch, and no buffer changes."""
        judge, x, n = Judge(self.model, self.ball), self.x, len(self.x)
        before = [buffer.clone() for buffer in self.model.buffers()]
        with autograd_calls() as calls, torch.enable_grad():
            self.model(x[:1])
        self.count("optimisation-at-inference", min(1, len(calls)), 1)
        logits, half = judge.logits(x), judge.logits(x[: n // 2])
        others = [judge.logits(x) for _ in range(4)]  # a defence may draw nothing now and then
        again = max(others, key=lambda other: differing(logits, other, 1e-4))
        declared = declares_draws(self.model)
        for name, cases in output_counts(logits, again).items():
            if declared and name == "random-forward":
                continue
            self.count(name, cases, n, self._luck(name, cases))
        self.randomised = declared or self.evidence["random-forward"] > 0
        if one_hot_rows(logits).all():
            self.useless.add("rescale")  # no scale gives a step function a slope
        if not self.randomised:
            self.count("batch-dependent", differing(half, logits[: n // 2], 1e-3), n // 2)
        buffers = zip(before, self.model.buffers(), strict=True)
        self.count("model-mutated", sum(not torch.equal(old, new) for old, new in buffers), len(before))
        self.alarms += check_setup(judge.classes(logits).shape[1], trained)

    def _luck(self, name: str, cases: int) -> str:
        """Evidence behind `random-forward`: how often a single pass is wrong. "" for all other alarms."""
        if name != "random-forward" or not cases:
            return ""
        judge = Judge(self.model, self.ball, draws=5)
        wrong = judge.success_rate(self.x, judge.criterion(self.y))
        return f"; {float(wrong.mean()):.1%} of single passes over them are wrong"

    def gradients(self) -> None:
        """Check gradients of margin and cross-entropy at the clean points: not zero, finite, true."""
        n, (logits, loss, slope) = len(self.x), _slopes(self.model, self.x, self.aim)
        zero = (slope == 0).flatten(1).all(1)
        finite = (torch.isfinite(slope) & torch.isfinite(loss)).flatten(1).all(1)
        if self.count("zero-gradient", zero, n):
            self._straight_through(zero)
        self.count("non-finite-gradient", ~finite, n)
        flat = (loss == 0).flatten(1).all(1) & ~zero
        self.count("saturated-loss", flat | (-margin(logits, self.y) > _LEAD), n)
        self.evidence["cross-entropy-zero"] = float((ce(logits, self.y) == 0).float().mean())
        span = logits.amax(1) - logits.amin(1)
        noise = 1000 * torch.finfo(torch.float32).eps * logits.abs().amax(1)
        self.count("float-noise", (span < noise) & torch.isfinite(span), n)
        rise = self.ball.eps * (slope * self.ball.steepest(slope, self.x)).flatten(1).sum(1)
        self.count("exploding-gradient", finite & (rise > 1e6 * span), n)
        if self.ball.eps > 0 and not self.randomised:
            self._small_step(slope.nan_to_num(0.0, 0.0, 0.0))

    def _straight_through(self, zero: Tensor) -> None:
        """Check whether straight-through gradients give these rows a slope. zero: bool [n], rows without one.

        Where more than half of them stay without a slope, a transfer attack is called for instead.
        """
        _, _, slope = _slopes(straight_through(self.model), self.x, self.aim)
        still = (slope == 0).flatten(1).all(1)
        self.evidence["zero-gradient-straight-through"] = float(still.float().mean())
        if int(still.sum()) * 2 > int(zero.sum()):
            self.useless.add("bpda")
            self.helps.add("transfer")

    def _small_step(self, slope: Tensor) -> None:
        """Check that a step of eps / 32, or a 32nd of the box under l0, raises the margin as promised.

        slope: gradient of the margin [n, C, H, W], finite.
        """
        judge = Judge(self.model, self.ball)
        span = self.ball.eps
        if self.ball.norm == "l0":
            span = self.ball.high - self.ball.low
        moved = self.ball.project(self.x, self.x + span / 32 * self.ball.steepest(slope, self.x))
        promised = (slope * (moved - self.x)).flatten(1).sum(1)
        here, there = self.aim.joint(judge.logits(self.x)), self.aim.joint(judge.logits(moved))
        poor = margin(there, self.y) - margin(here, self.y) < 0.1 * promised
        telling = promised > 1e-4 * (here.amax(1) - here.amin(1))  # less drowns in rounding
        self.count("gradient-mismatch", telling & poor, int(telling.sum()))

    def attacks(self) -> None:
        """Check that more effort finds more, that gradients beat chance, and that a huge ball breaks all."""
        n, everyone = len(self.x), torch.ones_like(self.y, dtype=torch.bool)
        fell_at = self._effort(everyone)
        stands = self._other_searches(fell_at == 0)
        if self._knows("apgd"):  # under l0 sigma-zero finds more than PGD on any model: that is no sign
            self._beyond(stands)
        if too_many(round(self.evidence["loss-dependent"] * n), n, 0.05):
            self.helps.add("rescale")  # no alarm: honest logits of a very small span do this too
        if self.aim.reject is None:
            self._free_pixels(everyone)

    def _free_pixels(self, everyone: Tensor) -> None:
        """Check that PGD breaks the rows `everyone`, bool [n], where every pixel may take any value.

        It begins anywhere in the box. There a guarded model rejects, and a point that is rejected breaks
        nothing: such models have a test of their own (`guarded.sanity.free_pixels`).
        """
        box = Ball("linf", self.ball.high - self.ball.low, self.ball.low, self.ball.high)
        in_box = self._fell_at("pgd", everyone, box, steps=20, loss="margin")
        self.count("survives-huge-eps", in_box == 0, len(self.x))

    def _effort(self, everyone: Tensor) -> Tensor:
        """Compare FGSM with PGD after 10, 30 and 60 steps on the rows `everyone`, bool [n].

        Returns int64 [n]: at which model call PGD with 60 steps broke each row; 0 = it did not.
        """
        n = len(self.x)
        fgsm = self._fell_at("fgsm", everyone) > 0
        fell_at = self._fell_at("pgd", everyone, steps=60, step_size=self.ball.check_step(20, None))
        for steps in (10, 30, 60):
            within = (fell_at > 0) & (fell_at <= steps + 2)  # call 1 scores the clean point, call 2 the start
            self.evidence[f"pgd-{steps}"] = float(within.float().mean())
        self.evidence["fgsm"] = float(fgsm.float().mean())
        early = (fell_at > 0) & (fell_at <= 32)
        self.count("fgsm-beats-pgd", fgsm & ~early, int((fgsm ^ early).sum()))
        # Under l1 PGD is slow on any model: Croce & Hein, ICML 2021, arXiv:2103.01208. So it is under l0,
        # where it chooses among sets of pixels.
        if self.ball.norm not in ("l1", "l0"):
            self.count("not-converged", fell_at > 32, n)
        return fell_at

    def _other_searches(self, stands: Tensor) -> Tensor:
        """Attack the rows `stands`, bool [n], with another loss, with noise and with a black box.

        Returns bool [n]: the rows that still stand.
        """
        for rule, (name, params) in _SECOND_OPINIONS.items():
            if not self._knows(name):
                continue
            fell = self._fell_at(name, stands, **params) > 0
            self.count(rule, fell, len(self.x))
            stands = stands & ~fell
            if rule == "loss-dependent" and self.ball.norm == "l1":
                # Under l1 PGD is slow on any model: rows that APGD breaks are no sign of masked gradients.
                stands = stands & (self._fell_at("apgd", stands, steps=50) == 0)
        return stands

    def _beyond(self, stands: Tensor) -> None:
        """Try searches from outside the ball on rows that a search inside it cannot break.

        The first is APGD in a ball that shrinks from 3 eps to eps. The second is FAB, which minimises the
        distance. stands: bool [n]; at most 24 of these rows, drawn by their ids, are attacked.
        """
        asked = torch.zeros_like(stands)
        chance = RowRandom(self.seed, "diagnosis beyond", self.ids).uniform().masked_fill(~stands, 2.0)
        asked[chance.argsort()[: min(_BEYOND, int(stands.sum()))]] = True
        left = asked & (self._fell_at("apgd", asked, steps=50, loss="margin") == 0)
        wide = self._fell_at("apgd", left, steps=50, loss="margin", widest=3.0) > 0
        minimal = self._fell_at("fab", left & ~wide, steps=40, targets=1) > 0
        self.evidence["wide-beats-fixed"] = float(wide.sum()) / max(1, int(left.sum()))
        self.count("minimal-beats-fixed", wide | minimal, int(left.sum()))

    def _knows(self, name: str) -> bool:
        """Whether the attack `name` searches under the norm of the threat."""
        return self.ball.norm in registry.attacks.get(name).facts.norms

    def _fell_at(self, name: str, rows: Tensor, ball: Ball | None = None, **params: Any) -> Tensor:
        """int64 [n]: at which model call of the attack `name` each of `rows`, bool [n], fell; 0 = it stands.

        ball: in place of the threat. params: of the attack.
        """
        ball, index = ball or self.ball, rows.nonzero()[:, 0]
        judge, x = Judge(self.model, ball), self.x[index]
        criterion = judge.criterion(self.y[index])
        fell_at = torch.zeros_like(self.y)
        calls, broken = 0, torch.zeros((), dtype=torch.int64, device=x.device)

        def counted(x_adv: Tensor) -> Tensor:
            nonlocal calls, broken
            calls += 1
            logits: Tensor = self.model(x_adv)
            broken = broken + (~torch.isfinite(logits)).any(1).sum()
            return logits

        def confirm(part: Tensor, candidates: Tensor) -> Tensor:
            hit = judge.hits(x[part], candidates, criterion, part)
            fell_at[index[part[hit]]] = calls
            return hit

        if len(index):
            rng = RowRandom(self.seed, f"diagnosis {name} {sorted(params)}", self.ids[index])
            call = AttackCall.of(registry.attacks.get(name), params)
            oracle = call.oracle(counted, x, criterion, rng=rng, watch=confirm, stop=self.stop, ball=ball)
            call.points(oracle, x, ball)
        if int(broken) and "non-finite-logits" not in {alarm.name for alarm in self.alarms}:
            self.count("non-finite-logits", min(int(broken), len(index)), len(index), f" under {name}")
        return fell_at


def _slopes(model: Classifier, x: Tensor, aim: Criterion) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, gradient of cross-entropy, gradient of the margin) at x.

    logits: float32 [n, K]. Gradients: [n, C, H, W], zero where the model has no derivative. They may hold NaN
    or Inf. Each has a forward pass of its own: compiled code gives the memory of its graph away.
    """
    _, of_ce = _slope(model, x, aim, ce)
    logits, of_margin = _slope(model, x, aim, margin)
    return logits, of_ce, of_margin


def _slope(
    model: Classifier,
    x: Tensor,
    aim: Criterion,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    whole: bool = False,
) -> tuple[Tensor, Tensor]:
    """(logits, gradient of the loss) at x, as `_slopes` gives them."""
    point = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        try:
            logits = aim.joint(model(point).float())
            return logits.detach(), slope(loss(logits, aim.y), point, whole=whole)
        except RuntimeError as error:
            if needs_whole_backward(error) and not whole:
                return _slope(model, x, aim, loss, whole=True)
            if "derivative" not in str(error):  # floor division, heaviside: no slope at all
                raise
            return aim.joint(model(x).float().detach()), torch.zeros_like(x)
