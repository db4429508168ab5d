"""Curriculum of the inner attack: its radius and its number of steps at each moment of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.registry import parameters

Shape = Literal["linear", "smoothed"]
_BEND = 0.25  # share of a smoothed ramp after which it is a straight line


@dataclass(frozen=True)
class Curriculum:
    """eps(t) = r(t) eps,  r(t) = s + (1 - s) h(p);  n(t) = n_0 + floor((n - n_0) min(1, t / v)).

    t is the share of all training steps done, and n(t) the number of attack steps. p = (t - w) / (u - w), cut
    to [0, 1], is the share of the ramp, and h its shape: p itself, or `smoothed`. A step size follows the
    radius: a(t) = r(t) a. Everything depends on t alone, so nothing is saved and a resumed run repeats it. A
    guard may add steps (`more_steps`); the guard remembers them.

    Args:
        fn: a registered attack of kind "fixed", (oracle, x, ball, *, ...) -> x_adv.
        params: its bound parameters. A given `step_size` is a length in pixel units, see `at`.
        ball: the threat at the end of the curriculum; eps in pixel units of [0, 1].
        eps_start: s, factor on eps at t = 0, in [0, 1].
        eps_until: u, share of all steps after which eps is whole, in [0, 1); 0 = whole from the first step.
        eps_from: w, share of all steps before the radius begins to grow, in [0, u); 0 where u is 0.
        eps_shape: "linear" or "smoothed", the shape of the ramp.
        steps_start: n_0, attack steps at t = 0, from 1 to the configured n; None = n.
        steps_until: v, share of all steps after which all n are taken, in [0, 1); 0 = from the first step.

    Raises:
        ValueError: a share out of range; steps_start for an attack without `steps`, or outside 1 to n.

    Source: steps: Cai et al., IJCAI 2018, arXiv:1805.04807. Radius: the linear eps schedules of Gowal et al.,
        2018, arXiv:1810.12715, and CROWN-IBP, Zhang et al., ICLR 2020, arXiv:1906.06316; "smoothed" as in
        Shi et al., NeurIPS 2021, arXiv:2103.17268, and auto_LiRPA.
    """

    fn: Callable[..., Tensor]
    params: Mapping[str, Any]
    ball: Ball
    eps_start: float = 1.0
    eps_until: float = 0.0
    steps_start: int | None = None
    steps_until: float = 0.0
    eps_from: float = 0.0
    eps_shape: Shape = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.eps_start <= 1:
            raise ValueError(f"eps_start must be in [0, 1], got {self.eps_start}")
        for name, value in (("eps_until", self.eps_until), ("steps_until", self.steps_until)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if self.eps_from and not 0 < self.eps_from < self.eps_until:
            raise ValueError(f"eps_from must be in [0, eps_until {self.eps_until}), got {self.eps_from}")
        if self.steps_start is not None:
            self._check_first_steps(self.steps_start)

    def _check_first_steps(self, first: int) -> None:
        """Raises ValueError for steps_start of an attack without `steps`, or outside 1 to n."""
        if self.steps is None:
            name = getattr(self.fn, "__name__", "this attack")
            raise ValueError(f"steps_start needs an attack with the parameter steps; {name} has none")
        if not 1 <= first <= self.steps:
            raise ValueError(f"steps_start must be from 1 to the attack's steps {self.steps}, got {first}")

    @cached_property
    def steps(self) -> int | None:
        """n, the configured steps of the attack; None where it has no parameter `steps`."""
        known = parameters(self.fn).get("steps")
        if known is None:
            return None
        return int(self.params.get("steps", known.default))

    def share(self, t: float) -> float:
        """r(t) in [0, 1], the factor on eps. Raises ValueError for t outside [0, 1]."""
        risen = _RAMPS[self.eps_shape](_risen(t, self.eps_until, self.eps_from))
        return self.eps_start + (1 - self.eps_start) * risen

    def steps_at(self, t: float, more_steps: int = 0) -> int | None:
        """Attack steps at t, `more_steps` included; None for an attack without steps.

        Raises ValueError: t outside [0, 1], more_steps < 0, or more_steps > 0 for an attack without steps.
        """
        risen, n = _risen(t, self.steps_until), self.steps
        if more_steps < 0 or (more_steps and n is None):
            name = getattr(self.fn, "__name__", "the attack")
            raise ValueError(
                f"cannot add {more_steps} steps to {name}; use an attack with steps, such as pgd"
            )
        if n is None:
            return None
        first = self.steps_start or n
        return first + math.floor((n - first) * risen) + more_steps

    def at(self, t: float, more_steps: int = 0) -> tuple[Callable[[Oracle, Tensor, Ball], Tensor], Ball]:
        """(attack, ball) at the share t in [0, 1] of the run. The attack is made for this ball.

        A given step size is scaled with the radius and shortened for added steps, see `_step_size`. At eps(t)
        = 0 the attack returns x without a model pass.

        Raises ValueError as `steps_at` does.
        """
        share, steps = self.share(t), self.steps_at(t, more_steps)
        ball = self.ball if share == 1 else self.ball.scaled(share)
        if not ball.eps:
            return _unmoved, ball
        params = dict(self.params)
        if steps is not None:
            params["steps"] = steps
        if params.get("step_size") is not None and ball.norm != "l0":  # there no step is a length
            params["step_size"] = share * self._step_size(float(params["step_size"]), steps)
        return partial(self.fn, **params), ball

    def _step_size(self, a: float, m: int | None) -> float:
        """min(a, max(n a, 2.5 eps) / m): the step size for m steps in place of n, at the whole radius.

        Up to n steps it is a. More than n steps are shorter, so that together they reach as far as n steps
        did, but not less than 2.5 eps, which is pgd's own reach. N-FGSM sets `clip` to false: nothing takes
        an overshoot back, so the reach stays n a.
        """
        if m is None or self.steps is None or m <= self.steps:
            return a
        reach = self.steps * a
        if self.params.get("clip", True):
            reach = max(reach, 2.5 * self.ball.eps)
        return min(a, reach / m)


def _risen(t: float, until: float, start: float = 0.0) -> float:
    """(t - start) / (until - start), cut to [0, 1]; 1 when until is 0."""
    if not 0 <= t <= 1:
        raise ValueError(f"t is a share of the run, in [0, 1], got {t}")
    return 1.0 if t >= until else max(0.0, t - start) / (until - start)


def smoothed(p: float) -> float:
    """h(p) = c p^4 up to p = 1/4, then the straight line of the slope that it has there, to h(1) = 1.

    It begins flat, so that the bounds of a network that never saw a box are not lost at once.
    """
    c = 1 / (_BEND**3 * (_BEND + 4 * (1 - _BEND)))
    if p < _BEND:
        return c * p**4
    return 1 - 4 * c * _BEND**3 * (1 - p)


def _unmoved(oracle: Oracle, x: Tensor, ball: Ball) -> Tensor:
    """x_adv = x, the only point of a ball of radius 0.

    The configured attack cannot run there. Attacks refuse a step size of 0, and the noise of N-FGSM leaves
    the ball.
    """
    return oracle.result(x)


_RAMPS: Mapping[str, Callable[[float], float]] = {"linear": float, "smoothed": smoothed}
