"""A model looked at before it is measured: 30 to 350 passes on each of a few samples, to find gradients that lead nowhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.gradients import straight_through
from robustcli.core.losses import Criterion, ce, margin
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier
from robustcli.evaluation.alarms import autograd_calls, check_setup, differing, one_hot_rows, output_counts
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.rules import RULES, too_many
from robustcli.records.alarm import Alarm

_ORDER = ("rescale", "bpda", "eot", "minimal", "square", "transfer")
_BEYOND = 24  # samples that searches from outside the ball are tried on
_LEAD = 80.0  # e^-80, the factor of every gradient of cross-entropy, is about to underflow in float32


@dataclass(frozen=True)
class Diagnosis:
    """alarms and notes; evidence: shares in [0, 1] by name; escalations: extra stages called for, of rescale, bpda, eot, minimal, square, transfer."""

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
    search: Classifier | None = None,
    stop: Callable[[], None] | None = None,
    was_training: bool = False,
) -> Diagnosis:
    """Signs of masked gradients on n samples that the model classifies correctly; every alarm allows for chance (`alarms.Rule`).

    Args:
        model: held frozen in eval mode by the caller.
        x: pixels [n, C, H, W] in [0, 1]; y, ids: labels and sample ids, int64 [n]. n = 0 gives an empty diagnosis.
        ball: the threat; with eps = 0 only outputs and gradients are looked at, not attacks.
        seed: of all draws; they depend on it and the ids only.
        search: what gradients are taken of, when it is not the model. stop: raises to interrupt, called before every pass of an attack.
        was_training: the model was handed over in train mode.

    Cost per sample: about 25 passes, 10 to 40 with all pixels free, and 320 more for a sample that nothing breaks; for at most 24 of
    these again 320.
    Source: Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705; Athalye et al., ICML 2018,
        arXiv:1802.00420, section 3.1; the checks of AutoAttack, Croce & Hein, ICML 2020, arXiv:2003.01690.
    """
    probe = _Probe(model, search or model, x, y, ids, ball, seed, stop)
    if len(x):
        probe.outputs(was_training)
        probe.gradients()
        if (
            ball.eps > 0 and not probe.randomised
        ):  # one lucky draw would look like an attack that beats another
            probe.attacks()
    return Diagnosis(
        probe.alarms,
        probe.evidence,
        tuple(name for name in _ORDER if name in probe.helps - probe.useless),
        probe.randomised,
    )


class _Probe:
    """Counts what `alarms.RULES` name. Gradients come from `search`, every verdict from the judge."""

    def __init__(
        self,
        model: nn.Module,
        search: Classifier,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        ball: Ball,
        seed: int,
        stop: Callable[[], None] | None,
    ) -> None:
        self.model, self.search, self.x, self.y, self.ids, self.ball, self.seed, self.stop = (
            model,
            search,
            x,
            y,
            ids,
            ball,
            seed,
            stop,
        )
        self.alarms: list[Alarm] = []
        self.evidence: dict[str, float] = {}
        self.helps, self.useless = set[str](), set[str]()
        self.randomised = False

    def count(self, name: str, cases: Tensor | int, of: int, more: str = "") -> bool:
        """Book a count, or bool [n], under a rule; True when it raises the alarm."""
        count = int(cases.sum()) if isinstance(cases, Tensor) else cases
        self.evidence[name] = count / max(1, of)
        raised = RULES[name].alarm(count, of, more)
        self.alarms += raised
        self.helps.update(RULES[name].helps if raised else ())
        return bool(raised)

    def outputs(self, was_training: bool) -> None:
        """Forward passes alone: finite, repeatable, of logits, the same in another batch, without writes or an inner optimisation."""
        judge, x, n, before = (
            Judge(self.model, self.ball),
            self.x,
            len(self.x),
            [buffer.clone() for buffer in self.model.buffers()],
        )
        with autograd_calls() as calls, torch.enable_grad():
            self.model(x[:1])
        self.count("optimisation-at-inference", min(1, len(calls)), 1)
        logits, half, more = judge.logits(x), judge.logits(x[: n // 2]), [judge.logits(x) for _ in range(4)]
        again = max(
            more, key=lambda other: differing(logits, other, 1e-4)
        )  # a defence may draw once per batch, and now and then nothing
        for name, cases in output_counts(logits, again).items():
            wrong = (
                Judge(self.model, self.ball, draws=5).success_rate(x, Criterion(self.y))
                if name == "random-forward" and cases
                else None
            )
            self.count(
                name,
                cases,
                n,
                "" if wrong is None else f"; {float(wrong.mean()):.1%} of single passes over them are wrong",
            )
        self.randomised = self.evidence["random-forward"] > 0
        if one_hot_rows(logits).all():
            self.useless.add("rescale")  # no scale gives a step function a slope
        if not self.randomised:
            self.count("batch-dependent", differing(half, logits[: n // 2], 1e-3), n // 2)
        self.count(
            "model-mutated",
            sum(not torch.equal(old, new) for old, new in zip(before, self.model.buffers(), strict=True)),
            len(before),
        )
        self.alarms += check_setup(self.model, logits.shape[1], was_training)

    def gradients(self) -> None:
        """Where a search begins: is there a slope, finite and true, of the margin and of cross-entropy?"""
        n, (logits, loss, slope) = len(self.x), _slopes(self.search, self.x, self.y)
        zero, finite = (
            (slope == 0).flatten(1).all(1),
            (torch.isfinite(slope) & torch.isfinite(loss)).flatten(1).all(1),
        )
        if self.count("zero-gradient", zero, n):
            still = (_slopes(straight_through(self.search), self.x, self.y)[2] == 0).flatten(1).all(1)
            self.evidence["zero-gradient-straight-through"] = float(still.float().mean())
            if int(still.sum()) * 2 > int(zero.sum()):
                self.useless.add("bpda")
                self.helps.add("transfer")
        self.count("non-finite-gradient", ~finite, n)
        flat = (loss == 0).flatten(1).all(1) & ~zero
        self.count("saturated-loss", flat | (-margin(logits, self.y) > _LEAD), n)
        self.evidence["cross-entropy-zero"] = float((ce(logits, self.y) == 0).float().mean())
        span = logits.amax(1) - logits.amin(1)
        self.count(
            "float-noise",
            (span < 1000 * torch.finfo(torch.float32).eps * logits.abs().amax(1)) & torch.isfinite(span),
            n,
        )
        rise = self.ball.eps * (slope * self.ball.steepest(slope, self.x)).flatten(1).sum(1)
        self.count("exploding-gradient", finite & (rise > 1e6 * span), n)
        if self.ball.eps > 0 and not self.randomised:
            self._small_step(slope.nan_to_num(0.0, 0.0, 0.0))

    def _small_step(self, slope: Tensor) -> None:
        """Does the margin grow as its gradient promises, over eps / 32?"""
        judge = Judge(self.model, self.ball)
        moved = self.ball.project(self.x, self.x + self.ball.eps / 32 * self.ball.steepest(slope, self.x))
        promised = (slope * (moved - self.x)).flatten(1).sum(1)
        here, there = judge.logits(self.x), judge.logits(moved)
        poor = margin(there, self.y) - margin(here, self.y) < 0.1 * promised
        telling = promised > 1e-4 * (here.amax(1) - here.amin(1))  # less drowns in rounding
        self.count("gradient-mismatch", telling & poor, int(telling.sum()))

    def attacks(self) -> None:
        """More effort must find more, gradients more than chance, and a ball without limits everything."""
        n, everyone = len(self.x), torch.ones_like(self.y, dtype=torch.bool)
        fgsm = self._fallen("fgsm", everyone) > 0
        at = self._fallen("pgd", everyone, steps=60, step_size=self.ball.eps / 8)
        early = (at > 0) & (at <= 32)  # call 1 scores the clean point, call 2 the start
        self.evidence |= {
            f"pgd-{steps}": float(((at > 0) & (at <= steps + 2)).float().mean()) for steps in (10, 30, 60)
        } | {"fgsm": float(fgsm.float().mean())}
        self.count("fgsm-beats-pgd", fgsm & ~early, int((fgsm ^ early).sum()))
        if (
            self.ball.norm != "l1"
        ):  # PGD is slow there on any model (Croce & Hein, ICML 2021, arXiv:2103.01208)
            self.count("not-converged", at > 32, n)
        stands = at == 0
        others: dict[str, tuple[str, dict[str, Any]]] = {
            "loss-dependent": ("pgd", {"steps": 20, "loss": "margin"}),
            "noise-beats-gradient": ("noise", {"draws": 10}),
            "black-box-beats-white-box": ("square", {"queries": 150}),
        }
        for rule, (name, params) in others.items():
            fell = self._fallen(name, stands, **params) > 0
            self.count(rule, fell, n)
            stands &= ~fell
            if (
                rule == "loss-dependent" and self.ball.norm == "l1"
            ):  # what PGD is too slow for there is no sign of masked gradients
                stands &= self._fallen("apgd", stands, steps=50) == 0
        self._beyond(stands)
        if too_many(round(self.evidence["loss-dependent"] * n), n, 0.05):
            self.helps.add(
                "rescale"
            )  # honest logits of a very small span do this; another scale helps the search all the same
        box = Ball("linf", self.ball.high - self.ball.low, self.ball.low, self.ball.high)
        self.count("survives-huge-eps", self._fallen("pgd", everyone, box, steps=20, loss="margin") == 0, n)

    def _beyond(self, stands: Tensor) -> None:
        """Of the samples that still stand: does a search in a shrinking ball, or one without a radius, break what one inside the ball cannot?"""
        asked = torch.zeros_like(stands)
        chance = (
            RowRandom(self.seed, "diagnosis beyond", self.ids).uniform().masked_fill(~stands, 2.0)
        )  # whatever the order of the samples
        asked[chance.argsort()[: min(_BEYOND, int(stands.sum()))]] = True
        left = asked & (self._fallen("apgd", asked, steps=50, loss="margin") == 0)
        wide = self._fallen("apgd", left, steps=50, loss="margin", widest=3.0) > 0
        minimal = self._fallen("fab", left & ~wide, steps=40, targets=1) > 0
        self.evidence |= {"wide-beats-fixed": float(wide.sum()) / max(1, int(left.sum()))}
        self.count("minimal-beats-fixed", wide | minimal, int(left.sum()))

    def _fallen(self, name: str, rows: Tensor, ball: Ball | None = None, **params: Any) -> Tensor:
        """int64 [n]: the number of the model call at which each of the rows bool [n] fell to an attack; 0 for those that stand."""
        ball, index = ball or self.ball, rows.nonzero()[:, 0]
        judge, criterion, x = Judge(self.model, ball), Criterion(self.y[index]), self.x[index]
        at = torch.zeros_like(self.y)
        calls, broken = 0, torch.zeros((), dtype=torch.int64, device=x.device)

        def counted(x_adv: Tensor) -> Tensor:
            nonlocal calls, broken
            calls += 1
            logits = self.search(x_adv)
            broken = broken + (~torch.isfinite(logits)).any(1).sum()
            return logits

        def confirm(part: Tensor, candidates: Tensor) -> Tensor:
            hit = judge.hits(x[part], candidates, criterion, part)
            at[index[part[hit]]] = calls
            return hit

        if len(index):
            rng = RowRandom(self.seed, f"diagnosis {name} {sorted(params)}", self.ids[index])
            call = AttackCall.of(registry.attacks.get(name), params)
            oracle = call.oracle(counted, x, criterion, rng=rng, watch=confirm, stop=self.stop, ball=ball)
            call.points(oracle, x, ball)
        if int(broken) and "non-finite-logits" not in {alarm.name for alarm in self.alarms}:
            self.count("non-finite-logits", min(int(broken), len(index)), len(index), f" under {name}")
        return at


def _slopes(model: Classifier, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logits [n, K], gradient of cross-entropy, gradient of the margin), both [n, C, H, W] and as they come."""
    point = x.detach().requires_grad_(True)
    with torch.enable_grad():
        try:
            logits = model(point).float()
        except RuntimeError as error:
            if "derivative" not in str(error):  # floor division, heaviside: no slope at all
                raise
            logits = model(x).float()
        logits = logits + 0 * point.flatten(1).sum(1, keepdim=True)  # a model may answer without any graph
        first, second = (
            torch.autograd.grad(loss(logits, y).sum(), point, retain_graph=True)[0] for loss in (ce, margin)
        )
    return logits.detach().float(), first, second
