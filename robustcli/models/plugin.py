"""A user's own Python file, ``path/to/file.py:factory``: recognised, run, its faults told in one line.

It runs the user's code, so only an explicit argument may name it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from robustcli.config.spec import PluginConfig
from robustcli.errors import RobustCliError, UsageError, out_of_memory
from robustcli.foreign import MODULE
from robustcli.models.complaint import first_line

_PLUGIN = re.compile(r"(?P<file>.+\.py)(:(?P<factory>\w*))?", re.DOTALL)


def is_plugin(spec: str) -> bool:
    """Whether `spec` names Python code: ``file.py`` or ``file.py:factory``.

    Such a name must never come from a YAML file.
    """
    return _PLUGIN.fullmatch(spec) is not None


def split_plugin(spec: str) -> tuple[Path, str]:
    """(file, factory); factory is "" when only a file is named.

    Raises UsageError E-PLUGIN for anything else.
    """
    match = _PLUGIN.fullmatch(spec)
    if match is None:
        raise UsageError(f"{spec!r} is no plugin", hint="write path/to/file.py:factory", code="E-PLUGIN")
    return Path(match["file"]), match["factory"] or ""


def names_factory(spec: str) -> bool:
    """Whether `spec` names a factory, not a file alone. Raises as `split_plugin`."""
    return bool(split_plugin(spec)[1])


def record_of(plugin: str) -> PluginConfig:
    """What is recorded of FILE.py:factory. Raises UsageError E-PLUGIN for a file that cannot be read."""
    path, factory = split_plugin(plugin)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", code="E-PLUGIN") from error
    return PluginConfig(file=path.name, factory=factory, sha256=digest)


def reference_label(reference: str) -> str:
    """A reference to a model for records: of a user's code its file, factory and hash."""
    return record_of(reference).label if is_plugin(reference) else reference


def run_plugin(path: Path) -> ModuleType:
    """Executes the file and returns its module.

    Models that the file registers (``@models.register``) are known from then on.
    Raises UsageError E-PLUGIN naming file:line when the file is missing or its code raises.
    """
    if not path.is_file():
        raise UsageError(
            f"no such plugin file: {path}", hint="write path/to/file.py:factory", code="E-PLUGIN"
        )
    full = path.resolve()
    name = f"{MODULE}{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the user's classes look it up
    with user_code(path):
        spec.loader.exec_module(module)
    return module


@contextmanager
def user_code(path: Path) -> Iterator[None]:
    """Runs the user's code: sibling files can be imported inside, and no .pyc is written.

    Raises UsageError E-PLUGIN with file:line for any exception of that code, SystemExit too. Only a lack of
    memory passes unchanged.
    """
    before = sys.dont_write_bytecode
    folder = str(path.resolve().parent)
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    try:
        yield
    except RobustCliError:
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise
        raise UsageError(
            f"{type(error).__name__}: {first_line(error, 300)}".rstrip(": "),
            where=_place(error, path),
            hint="fix the plugin file",
            code="E-PLUGIN",
        ) from error
    finally:
        sys.dont_write_bytecode = before
        if folder in sys.path:
            sys.path.remove(folder)


def _place(error: BaseException, path: Path) -> str:
    """file:line of a syntax error, else of the deepest frame in the user's file, else of the last frame."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) == path.resolve()]
    last = (own or list(frames))[-1]
    return f"{last.filename}:{last.lineno}"
