"""Named things: attacks, objectives, regularisers, losses, models, data sets, schedules, optimisers, training hooks, trackers.

A registry never imports torch, so `--help` and shell completion stay fast. The instances live here, on the lowest
floor; the packages that fill them are imported by `discover`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_type_hints

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[F]):
    """One registered callable: its name, the function, and what it says of itself (`facts`)."""

    name: str
    fn: F
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """First line of the docstring: the formula."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0]


class Registry(Generic[F]):
    """name -> callable, with the closest name in the error when it is unknown.

    Args:
        kind: what is registered, in the singular, for messages ("attack").
        package: the package whose modules register themselves when imported.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, Entry[F]] = {}

    def register(self, name: str, **facts: Any) -> Callable[[F], F]:
        """Decorator. Raises ValueError when the name is taken by another function."""

        def add(fn: F) -> F:
            old = self._entries.get(name)
            if old is not None and (old.fn.__module__, old.fn.__qualname__) != (
                fn.__module__,
                fn.__qualname__,
            ):
                raise ValueError(
                    f"two {self.kind}s are named {name!r}: {old.fn.__module__} and {fn.__module__}"
                )
            self._entries[name] = Entry(name, fn, facts)
            return fn

        return add

    def discover(self) -> Registry[F]:
        """Import every module of the package once, so that all names are known."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        return self

    def names(self) -> list[str]:
        """Registered names, sorted."""
        return sorted(self._entries)

    def __iter__(self) -> Iterator[Entry[F]]:
        return iter(self._entries[name] for name in self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str) -> Entry[F]:
        """The entry. Raises ValueError naming the known names and the closest one."""
        if name not in self._entries:
            raise ValueError(
                f"unknown {self.kind} {name!r}; {suggestion(name, self.names())}known: {', '.join(self.names())}"
            )
        return self._entries[name]


def suggestion(word: str, known: list[str]) -> str:
    """``did you mean 'x'? `` or an empty string."""
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


@dataclass(frozen=True)
class Param:
    """One keyword-only parameter of a registered function: what YAML may set."""

    name: str
    annotation: Any
    default: Any  # inspect.Parameter.empty when required


def parameters(fn: Callable[..., Any]) -> dict[str, Param]:
    """The keyword-only parameters of `fn`: its public schema. Positional ones belong to the caller."""
    hints = get_type_hints(fn, include_extras=True)
    return {
        p.name: Param(p.name, hints.get(p.name, Any), p.default)
        for p in inspect.signature(fn).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


attacks: Registry[Callable[..., Any]] = Registry("attack", "robustcli.attacks")
ensembles: Registry[Callable[..., Any]] = Registry("attack ensemble", "robustcli.attacks")
losses: Registry[Callable[..., Any]] = Registry("loss", "robustcli.core")
objectives: Registry[Callable[..., Any]] = Registry("objective", "robustcli.objectives")
regularizers: Registry[Callable[..., Any]] = Registry("regularizer", "robustcli.objectives")
models: Registry[Callable[..., Any]] = Registry("model", "robustcli.models")
datasets: Registry[Callable[..., Any]] = Registry("data set", "robustcli.data")
optimizers: Registry[Callable[..., Any]] = Registry("optimizer", "robustcli.training")
schedules: Registry[Callable[..., Any]] = Registry("schedule", "robustcli.training")
steps: Registry[Callable[..., Any]] = Registry("training step", "robustcli.training")
hooks: Registry[Callable[..., Any]] = Registry("training hook", "robustcli.training")
trackers: Registry[Callable[..., Any]] = Registry("tracker", "robustcli.reporting")
