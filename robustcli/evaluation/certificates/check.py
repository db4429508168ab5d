"""Whether a certificate holds: what a stranger computes again, with the model and the image.

A proof by bounds is computed again as a whole. The draws of a smoothed classifier are too many for that: a
part of them is drawn anew, from another seed, and must not contradict the counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from robustcli.certificates.binomial import lower_bound, upper_bound
from robustcli.certificates.sequential import looks, sure
from robustcli.certificates.smoothing import Smoothed, Smoothing
from robustcli.core.bounds import METHODS, Method
from robustcli.core.geometry import Ball
from robustcli.core.modes import frozen
from robustcli.core.random import RowRandom
from robustcli.errors import UsageError
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.certificates.bounds import ALPHA, Bounds
from robustcli.evaluation.certificates.document import Certificate, image_digest, refused, versions
from robustcli.evaluation.judge import Judge, exact_fp32

SMOOTHING: Final = "smoothing"
POINTS = 64  # random points of a ball, at which a proven class must stand
DRAWS = 10_000  # fresh draws, at the most
CHANCE = 1e-6  # of refusing a smoothed certificate whose lower bound is exact
_CLOSE = 1e-6  # relative: two margins of one method, in float64 on two machines
_MOST_STEPS = 10_000


class Recheck:
    """One certificate beside the model and the image that it should be about.

    Args:
        certificate: what is claimed.
        model: pixels [B, C, H, W] -> logits [B, K].
        x: pixels [C, H, W] of the sample, on the device of the model.
        where: the file, for messages.
        seed: of what is drawn here.
    """

    def __init__(self, certificate: Certificate, model: nn.Module, x: Tensor, where: str, seed: int) -> None:
        self._certificate, self._model, self._x = certificate, model, x[None]
        self._where, self._seed = where, seed

    def __call__(self) -> dict[str, Any]:
        """What was computed again. Raises DataError E-CERTIFICATE where it contradicts the certificate."""
        claim = self._certificate
        self._same("image", claim.image.sha256, image_digest(self._x[0]))
        self._same("shape of the image", claim.image.shape, list(self._x.shape[1:]))
        self._same("model", claim.model, state_digest(self._model))
        with frozen(self._model), torch.no_grad():
            for method in METHODS:
                if claim.method == method:
                    return self._bounded(method)
            if claim.method == SMOOTHING:
                return self._smoothed()
        raise self._refused(f"no method is called {claim.method!r}")

    def _bounded(self, method: Method) -> dict[str, Any]:
        """The margins, all of them, and random points of the ball."""
        claim, label = self._certificate, torch.tensor([self._certificate.label], device=self._x.device)
        self._keys("evidence", claim.evidence, {"margin"})
        self._same("seed", claim.seed, None)
        if claim.norm == "translation":
            raise self._refused("bounds prove no translations")
        ball = Ball(claim.norm, claim.radius)
        answer = int(Judge(self._model, ball).label(self._x)[0])
        self._same("label", claim.label, answer)
        channels, height, width = self._x.shape[1:]
        bounds = Bounds(self._model, (channels, height, width), self._alpha_steps())
        margin = float(bounds.least(method, self._x, label, ball).margins[0])
        if not margin > 0:
            raise self._refused(f"{claim.method} proves {margin:.4g} as the least margin, not more than 0")
        self._margin(margin)
        return {"margin": margin, "points": self._points(ball)}

    def _alpha_steps(self) -> int:
        """The one parameter that a bound has."""
        given = self._certificate.parameters
        if self._certificate.method != ALPHA:
            self._keys("parameters", given, set())
            return 1
        self._keys("parameters", given, {"alpha_steps"})
        steps = given["alpha_steps"]
        if type(steps) is not int or not 1 <= steps <= _MOST_STEPS:
            raise self._refused(f"alpha_steps is {steps!r}, and 1 to {_MOST_STEPS} is meant")
        return steps

    def _margin(self, margin: float) -> None:
        """The margin of the file, where the same code wrote it; another version may prove a little more."""
        recorded = self._certificate.evidence["margin"]
        if not isinstance(recorded, float):
            raise self._refused("evidence.margin is no number")
        same_code = self._certificate.versions.get("code") == versions()["code"]
        if same_code and not math.isclose(margin, recorded, rel_tol=_CLOSE, abs_tol=_CLOSE):
            raise self._refused(f"the least margin is {margin:.6g}, and the file says {recorded:.6g}")

    def _points(self, ball: Ball) -> int:
        """Random points of the ball, half of them at its border, all of the claimed class; how many."""
        x = self._x.expand(POINTS, -1, -1, -1)
        rng = RowRandom(self._seed, "check", torch.arange(POINTS, device=x.device))
        inside = ball.random_point(x, rng)
        pushed = ball.project(x, x + 1e3 * (inside - x))
        points = torch.cat([inside[::2], pushed[1::2]])
        other = Judge(self._model, ball).label(points) != self._certificate.label
        if bool(other.any()):
            raise self._refused(f"{int(other.sum())} of {POINTS} random points are of another class")
        return POINTS

    def _smoothed(self) -> dict[str, Any]:
        """The radius from the counts; and fresh draws, which must not contradict the lower bound."""
        plan, counts, draws = self._sampled()
        label, radius = self._certificate.label, self._certificate.radius
        lower = self._lower(plan, counts[label], draws)
        if not radius <= plan.radius(lower) * (1 + _CLOSE):
            raise self._refused(f"the counts prove a radius of {plan.radius(lower):.6g}, not {radius:.6g}")
        hits, fresh = self._drawn(replace(plan, seed=self._seed), min(plan.n, DRAWS))
        needed = plan.family.chance(radius, plan.sigma)
        if upper_bound(hits, fresh, CHANCE) < needed:
            raise self._refused(
                f"class {label} has {hits} of {fresh} fresh draws, and a chance of {needed:.6g} is claimed"
            )
        return {"lower": lower, "hits": hits, "draws": fresh}

    def _lower(self, plan: Smoothing, hits: int, draws: int) -> float:
        """The lower bound of the chance of the claimed class, which the file must state, too."""
        lower = float(lower_bound(hits, draws, plan.level))
        if draws < plan.n:
            lower = sure(hits, draws, plan.alpha)
        recorded = self._certificate.evidence["lower"]
        if not isinstance(recorded, float) or not math.isclose(lower, recorded, rel_tol=_CLOSE):
            raise self._refused(f"the counts prove a chance of {lower:.6g}, and the file says {recorded}")
        return lower

    def _sampled(self) -> tuple[Smoothing, list[int], int]:
        """(how it was sampled, hits of each class, draws), each checked."""
        claim = self._certificate
        try:
            plan = Smoothing(**{**claim.parameters, "seed": claim.seed or 0})
        except (TypeError, UsageError) as error:
            raise self._refused(f"parameters: {error}") from error
        self._same("norm", claim.norm, plan.family.norm)
        self._keys("evidence", claim.evidence, {"counts", "draws", "chosen", "lower"})
        self._same("class", claim.label, claim.evidence["chosen"])
        counts, draws = claim.evidence["counts"], claim.evidence["draws"]
        whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
        if not whole or type(draws) is not int or sum(counts or []) != draws or draws > plan.n:
            raise self._refused("evidence: its counts are not those of its draws")
        assert isinstance(counts, list)
        if draws < plan.n and (plan.enough is None or draws not in looks(plan.n)):
            raise self._refused(f"evidence: sampling does not end with a claim after {draws} draws")
        if claim.label >= len(counts):
            raise self._refused(f"label {claim.label} of {len(counts)} classes")
        return plan, counts, draws

    def _drawn(self, plan: Smoothing, draws: int) -> tuple[int, int]:
        """(hits of the claimed class, draws), drawn now."""
        with exact_fp32():
            classes = self._model(self._x).shape[1]
            self._same("number of classes", len(self._certificate.evidence["counts"]), classes)
            ids = torch.tensor([self._certificate.id])
            hits = Smoothed(self._model, classes, plan).counts(self._x, ids, 0, draws)
        return int(hits[0, self._certificate.label]), draws

    def _keys(self, name: str, got: Mapping[str, Any], meant: set[str]) -> None:
        if set(got) != meant:
            raise self._refused(f"{name} has the keys {sorted(got)}, and {sorted(meant)} are meant")

    def _same(self, name: str, claimed: object, got: object) -> None:
        if claimed != got:
            raise self._refused(f"it is about another {name}: {claimed}, and here is {got}")

    def _refused(self, what: str) -> Exception:
        return refused(what, self._where)
