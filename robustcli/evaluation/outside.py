"""Attacks of other libraries and of users. They search, and our judge decides.

No library and no user's code is asked whether it succeeded. Their points go to the oracle like those of any
other attack. See docs/outside-attacks.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.errors import UsageError
from robustcli.evaluation.asked import Asked, contained, handed, no_target, points_of, seed_of
from robustcli.evaluation.plan import AttackCall
from robustcli.models.plugin import run_plugin, split_plugin
from robustcli.registry import suggestion

#: A user's attack: atk(x, y) -> x_adv, for the same R rows.
Outside = Callable[[Tensor, Tensor], Any]


def callable_call(fn: Outside, label: str) -> AttackCall:
    """Any `fn(x, y) -> x_adv` as an attack call. Model passes that fn makes itself are not counted.

    Args:
        fn: x float32 [R, C, H, W] in [0, 1], y int64 [R] -> tensor or array of x's shape.
        label: its name in tables.
    """

    def run(oracle: Oracle, x: Tensor, ball: Ball) -> Tensor:
        return _points(fn, oracle, x, label)

    return AttackCall(label, label, run, {}, precision="fp32")


def load_outside(plugin: str) -> AttackCall:
    """`FILE.py:NAME` as an attack call. It runs the user's code, so only an explicit argument may name it.

    NAME(model) or NAME(model, eps, norm) returns `atk(x, y) -> x_adv`. model is an nn.Module, pixels [R, C,
    H, W] in [0, 1] -> logits [R, K]. Its passes are counted.

    Raises UsageError E-PLUGIN: no such file or name (the nearest is named), or an error of the user's code,
    with file:line.
    """
    path, name = split_plugin(plugin)
    module = run_plugin(path)
    factory = vars(module).get(name)
    if not callable(factory):
        own = _callables_of(module)
        what = f"{path} has no attack {name!r}; {suggestion(name, own)}it defines: {', '.join(own) or 'none'}"
        raise UsageError(what, hint=f"write {path}:NAME", code="E-PLUGIN")
    takes = inspect.signature(factory).parameters

    def run(oracle: Oracle, x: Tensor, ball: Ball) -> Tensor:
        given = {key: value for key, value in (("eps", ball.eps), ("norm", ball.norm)) if key in takes}
        with contained(plugin, seed_of(oracle), x.device):
            attack = factory(Asked(oracle, x), **given)
        return _points(attack, oracle, x, plugin)

    return AttackCall(name, plugin, run, {}, precision="fp32")


def _callables_of(module: ModuleType) -> list[str]:
    """Names of the functions and classes that a module defines itself."""
    return [
        name
        for name, item in vars(module).items()
        if callable(item) and getattr(item, "__module__", "") == module.__name__
    ]


def _points(fn: Any, oracle: Oracle, x: Tensor, label: str) -> Tensor:
    """fn(x, y), shown to the oracle. Raises UsageError: a target is set, or fn is no such function."""
    if oracle.target is not None:
        raise no_target(label)
    if not len(x):
        return oracle.result(x)
    if not callable(fn):
        raise UsageError(
            f"{label} returned {type(fn).__name__}, not a function atk(x, y) -> x_adv", code="E-PLUGIN"
        )
    with contained(label, seed_of(oracle), x.device):
        answer = fn(handed(x), handed(oracle.y))
    return oracle.result(points_of(answer, x, label))
