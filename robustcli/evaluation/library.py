"""`torchattacks:CLASS`: an attack of that optional package as one of ours, imported when a run names it."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from robustcli.config.bind import TORCHATTACKS
from robustcli.config.number import parse_flag, parse_number
from robustcli.config.tree import Fault, config_error
from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.errors import ConfigError, ResourceError
from robustcli.evaluation.asked import Asked, contained, handed, no_target, points_of, seed_of
from robustcli.evaluation.plan import AttackCall
from robustcli.facts import Kind, Needs
from robustcli.registry import suggestion

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_RADIUS = ("eps", "max_epsilon")
#: Their parameter -> the key of `ball` that it comes from.
_FROM_BALL = {"eps": "eps", "max_epsilon": "eps", "norm": "norm"}
_FILLED = ("norm", "seed", "n_classes")  # their parameters that the run knows
_SCORES = ("GN", "OnePixel", "Pixle", "SPSA", "Square", "VANILA")  # all others ask for gradients


def torchattacks_call(name: str, params: Mapping[str, Any], norm: str, path: str = "attacks") -> AttackCall:
    """`torchattacks:CLASS` as an attack call; eps and norm come from the ball.

    Args:
        name: torchattacks:CLASS. A class whose constructor takes no radius (CW, DeepFool) is called as kind
            "minimal".
        params: keyword arguments of the constructor (alpha, steps and so on), as YAML gives them.
        norm: of the ball; must be one that the class searches in.
        path: names the spec in messages.

    Raises:
        ResourceError E-EXTRA: torchattacks is not installed.
        ConfigError: unknown class or parameter (the nearest is named), a value of the wrong type, another
        norm.
    """
    cls = _class_of(name, path)
    wanted = torchattacks_parameters(cls)
    _check_norm(cls, name, norm, path)
    values = _bound(name, wanted, params, path)
    radius = [key for key in _RADIUS if key in wanted][:1]
    filled = [key for key in _FILLED if key in wanted and key not in values]
    kind: Kind = "fixed" if radius else "minimal"
    needs: Needs = "scores" if cls.__name__ in _SCORES else "gradient"
    steps = values.get("steps", wanted.get("steps"))
    return AttackCall(
        label=name if steps is None else f"{name}-{steps}",
        name=name,
        fn=_runner(cls, name, [*filled, *radius]),
        params=values,
        kind=kind,
        needs=needs,
        precision="bf16" if (kind, needs) == ("fixed", "gradient") else "fp32",
        cost=lambda given, classes, norm: 2 * int(steps or 1) + 1,  # a gradient each: nothing states more
    )


def _runner(cls: type[Any], name: str, filled: Sequence[str]) -> Callable[..., Tensor]:
    """An attack (oracle, x, ball, **params) -> x_adv that runs `cls`.

    filled: names of the constructor's arguments that the run knows, see `_arguments`.
    """

    def run(oracle: Oracle, x: Tensor, ball: Ball, **params: Any) -> Tensor:
        if not len(x):
            return oracle.result(x)
        seed = seed_of(oracle)
        more = _arguments(filled, oracle, ball, seed)
        with contained(name, seed, x.device):
            attack, labels = cls(Asked(oracle, x), **params, **more), oracle.y
            if oracle.target is not None:
                _aim(attack, name)
                labels = oracle.target
            answer = attack(handed(x), handed(labels))
        return oracle.result(points_of(answer, x, name))

    return run


def _arguments(filled: Sequence[str], oracle: Oracle, ball: Ball, seed: int) -> dict[str, Any]:
    """Values of the constructor's arguments `filled`, which the run knows and no configuration gives.

    The number of classes costs a model pass.
    """
    known: dict[str, Callable[[], Any]] = {
        "eps": lambda: ball.eps,
        "max_epsilon": lambda: ball.eps,
        "norm": lambda: _NORMS[ball.norm],
        "seed": lambda: seed,
        "n_classes": lambda: oracle.clean().shape[1],
    }
    return {key: known[key]() for key in filled}


def _aim(attack: Any, name: str) -> None:
    """Tell a torchattacks attack that its labels are targets. Raises UsageError for one that cannot aim."""
    ignores_it = name == f"{TORCHATTACKS}FAB"  # takes the target for the true label and does nothing
    if ignores_it or "targeted" not in attack.supported_mode:
        raise no_target(name)
    attack.set_mode_targeted_by_label(quiet=True)


def torchattacks_parameters(cls: type) -> dict[str, Any]:
    """Arguments of a constructor after the model: name -> default; `inspect.Parameter.empty` for none."""
    arguments = inspect.signature(cls).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default for p in arguments if p.name != "model" and p.kind in by_name}


def torchattacks_module(where: str) -> ModuleType:
    """The package torchattacks.

    It pins an old `requests` that it does not need, so the hint installs it without dependencies.

    Raises ResourceError E-EXTRA, at `where`, with the command that installs it.
    """
    try:
        return importlib.import_module("torchattacks")
    except ImportError as error:
        missing = (error.name or "torchattacks").partition(".")[0]
        what, packages = "torchattacks is not installed", "torchattacks"
        if missing != "torchattacks":
            what, packages = f"torchattacks cannot be imported: {error}", f"torchattacks {missing}"
        hint = f"pip install --no-deps {packages}"
        raise ResourceError(what, where=where, hint=hint, code="E-EXTRA") from error


def _class_of(name: str, path: str) -> type[Any]:
    """The class that `torchattacks:CLASS` names.

    Raises ResourceError: the package is missing. Raises ConfigError: unknown class, or one that no
    configuration can construct.
    """
    module = torchattacks_module(name)
    known = [key for key, item in vars(module).items() if _is_attack(item)]
    wanted = name.removeprefix(TORCHATTACKS)
    if wanted not in known:
        what = f"torchattacks has no attack {wanted[:80]!r}; {suggestion(wanted, known)}"
        raise _name_error(path, f"{what}known: {', '.join(sorted(known))}")
    cls: type[Any] = getattr(module, wanted)
    defaults = torchattacks_parameters(cls).items()
    needed = [key for key, default in defaults if default is inspect.Parameter.empty]
    if needed:
        raise _name_error(path, f"{name} needs {', '.join(needed)}, which no config can give")
    return cls


def _is_attack(item: Any) -> bool:
    return inspect.isclass(item) and callable(getattr(item, "set_mode_targeted_by_label", None))


def _name_error(path: str, what: str) -> ConfigError:
    return config_error([Fault(f"{path}.name", what)])


def _check_norm(cls: type, name: str, norm: str, path: str) -> None:
    """Raises ConfigError for a norm that the class does not search in.

    The docstring of a torchattacks class states its norms; one without a statement takes every norm.
    """
    stated = re.search(r"Distance Measure\s*:(.*)", cls.__doc__ or "")
    if stated is None:
        return
    norms = [f"l{p}" for p in re.findall(r"L(inf|[0-9])", stated[1])]
    if norms and norm not in norms:
        raise _name_error(path, f"{name} searches in {', '.join(norms)}, and ball.norm is {norm}")


def _bound(name: str, wanted: Mapping[str, Any], params: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`params` as the constructor takes them. wanted: name -> default. Raises ConfigError with all faults."""
    faults: list[Fault] = []
    values: dict[str, Any] = {}
    for key, value in params.items():
        try:
            values[key] = _argument(name, wanted, key, value)
        except ValueError as error:
            faults.append(Fault(f"{path}.{key}", str(error)))
    if faults:
        raise config_error(faults)
    return values


def _argument(name: str, wanted: Mapping[str, Any], key: str, value: Any) -> Any:
    """One argument as the constructor takes it. Raises ValueError that says what is wrong."""
    if key in _FROM_BALL:
        raise ValueError(f"comes from ball.{_FROM_BALL[key]}; remove it here")
    free = [other for other in wanted if other not in _FROM_BALL]
    if key not in free:
        has = ", ".join(free) or "none"
        raise ValueError(f"no such parameter of {name}; {suggestion(key, free)}it has: {has}")
    return _converted(value, wanted[key])


def _converted(value: Any, default: Any) -> Any:
    """A YAML value in the type of the default; a whole number stays int where the default is int.

    Raises ValueError.
    """
    if isinstance(default, bool):
        return parse_flag(value)
    if isinstance(default, (int, float)):
        number = parse_number(value)
        return int(number) if isinstance(default, int) and number.is_integer() else number
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    return value
