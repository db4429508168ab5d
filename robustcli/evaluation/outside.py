"""Attacks of other libraries and of users: they search, our judge decides.

Whatever torchattacks, Foolbox, ART or a user's own code says about success is not asked for: its points are shown to the
oracle like those of any other attack. See docs/outside-attacks.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.errors import UsageError
from robustcli.evaluation.asked import Asked, contained, no_target, points_of, seed_of
from robustcli.evaluation.plan import AttackCall
from robustcli.facts import Kind
from robustcli.models.plugin import run_plugin, split_plugin
from robustcli.registry import suggestion

#: What a user's attack is: atk(x, y) -> x_adv, all over the same rows.
Outside = Callable[[Tensor, Tensor], Any]


def callable_call(fn: Outside, label: str, *, kind: Kind = "fixed") -> AttackCall:
    """Any `fn(x, y) -> x_adv` as an attack call; model passes that it makes itself are not counted.

    Args:
        fn: x float32 [R, C, H, W] in [0, 1], y int64 [R] -> tensor or array of x's shape.
        label: its name in tables.
        kind: "fixed" when it keeps to the radius it knows, "minimal" when it looks for the closest success.
    """

    def run(oracle: Oracle, x: Tensor, ball: Ball) -> Tensor:
        return _answer(fn, oracle, x, label)

    return AttackCall(label, label, run, {}, kind, precision="fp32")


def load_outside(plugin: str, *, kind: Kind = "fixed") -> AttackCall:
    """`FILE.py:NAME` as an attack call; runs the user's code, so only an explicit argument may name it.

    NAME(model) or NAME(model, eps, norm) returns `atk(x, y) -> x_adv`; model is an nn.Module, pixels -> logits, that counts its passes.

    Raises UsageError E-PLUGIN: no such file or name (the nearest is named), or an error of the user's code, with file:line.
    """
    path, name = split_plugin(plugin)
    module = run_plugin(path)
    factory = vars(module).get(name)
    if not callable(factory):
        own = [
            key
            for key, item in vars(module).items()
            if callable(item) and getattr(item, "__module__", "") == module.__name__
        ]
        what = f"{path} has no attack {name!r}; {suggestion(name, own)}it defines: {', '.join(own) or 'none'}"
        raise UsageError(what, hint=f"write {path}:NAME", code="E-PLUGIN")
    takes = inspect.signature(factory).parameters

    def run(oracle: Oracle, x: Tensor, ball: Ball) -> Tensor:
        given = {key: value for key, value in (("eps", ball.eps), ("norm", ball.norm)) if key in takes}
        with contained(plugin, seed_of(oracle), x.device):
            attack = factory(Asked(oracle, x), **given)
        return _answer(attack, oracle, x, plugin)

    return AttackCall(name, plugin, run, {}, kind, precision="fp32")


def _answer(fn: Any, oracle: Oracle, x: Tensor, label: str) -> Tensor:
    """fn(x, y) shown to the oracle."""
    if oracle.target is not None:
        raise no_target(label)
    if not len(x):
        return oracle.result(x)
    if not callable(fn):
        raise UsageError(
            f"{label} returned {type(fn).__name__}, not a function atk(x, y) -> x_adv", code="E-PLUGIN"
        )
    with contained(label, seed_of(oracle), x.device):
        found = fn(x.contiguous(), oracle.y)
    return oracle.result(points_of(found, x, label))
