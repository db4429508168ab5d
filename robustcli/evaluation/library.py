"""`torchattacks:NAME`: any attack of that package as one of ours. It is optional and imported when a run names it."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from robustcli.config.bind import TORCHATTACKS
from robustcli.config.number import parse_flag, parse_number
from robustcli.config.tree import Fault, config_error
from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.errors import ResourceError
from robustcli.evaluation.asked import Asked, contained, no_target, points_of, seed_of
from robustcli.evaluation.plan import AttackCall
from robustcli.facts import Kind, Needs
from robustcli.registry import suggestion

_RADIUS = ("eps", "max_epsilon")
_OURS = (*_RADIUS, "norm")  # filled in from `ball`
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_SCORES = ("GN", "OnePixel", "Pixle", "SPSA", "Square", "VANILA")  # all others ask for gradients


def torchattacks_call(name: str, params: Mapping[str, Any], norm: str, path: str = "attacks") -> AttackCall:
    """`torchattacks:PGD` as an attack call; eps and norm come from the ball, `params` are the class's own (alpha, steps ...).

    Args:
        name: torchattacks:CLASS. A class whose constructor has no radius (CW, DeepFool ...) is called as kind "minimal".
        params: keyword arguments of the constructor, as YAML gives them.
        norm: of the ball; must be one that the class searches in.
        path: names the spec in messages.

    Raises:
        ResourceError E-EXTRA: torchattacks is not installed.
        ConfigError: unknown class or parameter (the nearest is named), a value of the wrong type, another norm.
    """
    cls = _class_of(name, path)
    wanted = torchattacks_parameters(cls)
    _check_norm(cls, name, norm, path)
    values = _bound(name, wanted, params, path)
    fills = [key for key in ("norm", "seed", "n_classes") if key in wanted and key not in values]
    radius = next((key for key in _RADIUS if key in wanted), None)

    def run(oracle: Oracle, x: Tensor, ball: Ball, **params: Any) -> Tensor:
        if not len(x):
            return oracle.result(x)
        seed = seed_of(oracle)
        own = {
            "norm": _NORMS[ball.norm],
            "seed": seed,
            "n_classes": oracle.clean().shape[1] if "n_classes" in fills else 0,
        }
        more = {key: own[key] for key in fills} | ({} if radius is None else {radius: ball.eps})
        with contained(name, seed, x.device):
            attack = cls(Asked(oracle, x), **params, **more)
            if oracle.target is not None:
                _aim(attack, name)
            found = attack(x.contiguous(), oracle.y if oracle.target is None else oracle.target)
        return oracle.result(points_of(found, x, name))

    steps = values.get("steps", wanted.get("steps"))
    label = name if steps is None else f"{name}-{steps}"
    kind: Kind = "minimal" if radius is None else "fixed"
    needs: Needs = "scores" if cls.__name__ in _SCORES else "gradient"
    return AttackCall(
        label,
        name,
        run,
        values,
        kind,
        needs,
        precision="bf16" if (kind, needs) == ("fixed", "gradient") else "fp32",
        cost=lambda given, classes, norm: 2 * int(steps or 1) + 1,  # a gradient each: nothing states more
    )


def _aim(attack: Any, name: str) -> None:
    """Labels are targets from here on. Raises UsageError for an attack that cannot aim."""
    if (
        "targeted" not in attack.supported_mode or name == f"{TORCHATTACKS}FAB"
    ):  # its FAB takes the target for the true label and does nothing
        raise no_target(name)
    attack.set_mode_targeted_by_label(quiet=True)


def torchattacks_parameters(cls: type) -> dict[str, Any]:
    """Name -> default (`inspect.Parameter.empty` when there is none) of a constructor's arguments after the model."""
    found = list(inspect.signature(cls).parameters.values())
    return {
        p.name: p.default
        for p in found
        if p.name != "model" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def torchattacks_module(where: str) -> ModuleType:
    """The package. Raises ResourceError E-EXTRA with the command that installs it: it pins an old `requests`, which it does not need."""
    try:
        return importlib.import_module("torchattacks")
    except ImportError as error:
        missing = (error.name or "torchattacks").partition(".")[0]
        more = "" if missing == "torchattacks" else f" {missing}"
        what = f"torchattacks cannot be imported: {error}" if more else "torchattacks is not installed"
        raise ResourceError(
            what, where=where, hint=f"pip install --no-deps torchattacks{more}", code="E-EXTRA"
        ) from error


def _class_of(name: str, path: str) -> type[Any]:
    """The class that `torchattacks:CLASS` names. Raises ResourceError or ConfigError."""
    module = torchattacks_module(name)
    known = [
        key
        for key, item in vars(module).items()
        if inspect.isclass(item) and callable(getattr(item, "set_mode_targeted_by_label", None))
    ]
    wanted = name.removeprefix(TORCHATTACKS)
    if wanted not in known:
        raise config_error(
            [
                Fault(
                    f"{path}.name",
                    f"torchattacks has no attack {wanted[:80]!r}; {suggestion(wanted, known)}known: {', '.join(sorted(known))}",
                )
            ]
        )
    cls: type[Any] = getattr(module, wanted)
    needed = [
        key for key, default in torchattacks_parameters(cls).items() if default is inspect.Parameter.empty
    ]
    if needed:
        raise config_error(
            [Fault(f"{path}.name", f"{name} needs {', '.join(needed)}, which no config can give")]
        )
    return cls


def _check_norm(cls: type, name: str, norm: str, path: str) -> None:
    """Every class of torchattacks states its norms in its docstring. Raises ConfigError."""
    stated = re.search(r"Distance Measure\s*:(.*)", cls.__doc__ or "")
    norms = [f"l{p}" for p in re.findall(r"L(inf|[0-9])", stated[1])] if stated else []
    if norms and norm not in norms:
        raise config_error(
            [Fault(f"{path}.name", f"{name} searches in {', '.join(norms)}, and ball.norm is {norm}")]
        )


def _bound(name: str, wanted: Mapping[str, Any], params: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`params` checked against the constructor and converted after its defaults. Raises ConfigError with every mistake."""
    faults: list[Fault] = []
    values: dict[str, Any] = {}
    free = [key for key in wanted if key not in _OURS]
    for key, value in params.items():
        if key in _OURS:
            faults.append(
                Fault(
                    f"{path}.{key}", f"comes from ball.{'norm' if key == 'norm' else 'eps'}; remove it here"
                )
            )
        elif key not in free:
            faults.append(
                Fault(
                    f"{path}.{key}",
                    f"no such parameter of {name}; {suggestion(key, free)}it has: {', '.join(free) or 'none'}",
                )
            )
        else:
            try:
                values[key] = _converted(value, wanted[key])
            except ValueError as error:
                faults.append(Fault(f"{path}.{key}", str(error)))
    if faults:
        raise config_error(faults)
    return values


def _converted(value: Any, default: Any) -> Any:
    """A YAML value as the type of the default; whole numbers stay whole. Raises ValueError."""
    if isinstance(default, bool):
        return parse_flag(value)
    if isinstance(default, (int, float)):
        number = parse_number(value)
        return int(number) if isinstance(default, int) and number.is_integer() else number
    return tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value
