"""A user's own model: ``path/to/file.py:factory``. Runs the user's code, so only an explicit argument may name it."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from robustcli.errors import RobustCliError, UsageError
from robustcli.models.blocks import seeded
from robustcli.registry import suggestion

_PLUGIN = re.compile(r"(?P<file>.+\.py)(:(?P<factory>\w*))?", re.DOTALL)


def is_plugin(spec: str) -> bool:
    """Whether `spec` names Python code: ``file.py`` or ``file.py:factory``. Such a name must never come from a YAML file."""
    return _PLUGIN.fullmatch(spec) is not None


def split_plugin(spec: str) -> tuple[Path, str]:
    """(file, factory); factory is "" when only a file is named. Raises UsageError E-PLUGIN for anything else."""
    match = _PLUGIN.fullmatch(spec)
    if match is None:
        raise UsageError(f"{spec!r} is no plugin", hint="write path/to/file.py:factory", code="E-PLUGIN")
    return Path(match["file"]), match["factory"] or ""


def run_plugin(path: Path) -> ModuleType:
    """Executes the file and returns its module; what it registers (``@models.register``) is known from then on.

    Raises UsageError E-PLUGIN naming file:line when the file is missing or its code raises.
    """
    if not path.is_file():
        raise UsageError(
            f"no such plugin file: {path}", hint="write path/to/file.py:factory", code="E-PLUGIN"
        )
    full = path.resolve()
    name = f"robustcli_plugin_{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the user's classes look it up
    with user_code(path):
        spec.loader.exec_module(module)
    return module


def call_factory(plugin: str, *, num_classes: int | None, params: Mapping[str, Any], seed: int) -> nn.Module:
    """The module that ``file.py:factory`` makes. The factory may take `num_classes`, the keys of `params`, or nothing.

    Global generators follow `seed` while it runs and are put back afterwards.

    Raises:
        UsageError E-PLUGIN: no such factory (the nearest is named), a parameter it does not take, an exception inside (with
        file:line), or a result that is no nn.Module.
    """
    path, factory = split_plugin(plugin)
    with seeded(seed):
        module = run_plugin(path)
        made = _callables(module)
        if factory not in vars(module) or not (callable(vars(module)[factory])):
            what = (
                f"{path} has no factory {factory!r}; {suggestion(factory, made)}"
                if factory
                else f"which factory of {path}? "
            )
            raise UsageError(
                f"{what}it defines: {', '.join(made) or 'none'}",
                hint=f"write {path}:FACTORY",
                code="E-PLUGIN",
            )
        fn = vars(module)[factory]
        if isinstance(fn, nn.Module):
            return fn
        arguments = _arguments(fn, plugin, num_classes, params)
        with user_code(path):
            net = fn(**arguments)
    if not isinstance(net, nn.Module):
        raise UsageError(
            f"{plugin} returned {type(net).__name__}, not an nn.Module",
            hint="return the network itself",
            code="E-PLUGIN",
        )
    return net


def factory_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """A factory's parameters as they are stored: everything but num_classes, which `ModelInfo` holds."""
    return {key: value for key, value in params.items() if key != "num_classes"}


def _callables(module: ModuleType) -> list[str]:
    """Public functions and classes that the file itself defines."""
    own = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
    }
    return [name for name, value in own.items() if callable(value) and not name.startswith("_")]


def _arguments(fn: Any, plugin: str, num_classes: int | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `fn`, checked against its signature before it runs."""
    try:
        signature = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a C function tells nothing: let it judge
        return dict(params)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    named = {name: p for name, p in signature.items() if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
    arguments = factory_params(params)
    if num_classes is not None and "num_classes" in named:
        arguments["num_classes"] = num_classes
    for key in arguments:
        if key not in named and not takes_all:
            raise UsageError(
                f"{plugin} takes no parameter {key!r}; {suggestion(key, list(named))}known: {', '.join(named) or 'none'}",
                code="E-PLUGIN",
            )
    missing = [name for name, p in named.items() if p.default is p.empty and name not in arguments]
    if missing:
        hint = "give the parameters a default, or set them in the config's model section"
        raise UsageError(f"{plugin} needs {', '.join(missing)}", hint=hint, code="E-PLUGIN")
    return arguments


@contextmanager
def user_code(path: Path) -> Iterator[None]:
    """Sibling files can be imported inside, no .pyc is written, and any exception comes out as one line with file:line."""
    before = sys.dont_write_bytecode
    folder = str(path.resolve().parent)
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    try:
        yield
    except RobustCliError:
        raise
    except (Exception, SystemExit) as error:
        text = (str(error).splitlines() or [""])[0][:300]
        raise UsageError(
            f"{type(error).__name__}: {text}".rstrip(": "),
            where=_place(error, path),
            hint="fix the plugin file",
            code="E-PLUGIN",
        ) from error
    finally:
        sys.dont_write_bytecode = before
        if folder in sys.path:
            sys.path.remove(folder)


def _place(error: BaseException, path: Path) -> str:
    """file:line of the deepest frame in the user's file; of the syntax error; else of the deepest frame at all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) == path.resolve()]
    last = (own or list(frames))[-1]
    return f"{last.filename}:{last.lineno}"
