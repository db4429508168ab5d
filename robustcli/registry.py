"""Named things: attacks, losses, objectives, models, data sets, schedules, optimisers, hooks and so on.

A registry never imports torch, so `--help` and shell completion stay fast. The instances live here, on the
lowest floor; the modules that fill them are imported when somebody asks for a name.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints

from robustcli.facts import (
    AttackFacts,
    DatasetFacts,
    DefenceFacts,
    EnsembleFacts,
    HookFacts,
    LayoutFacts,
    LossFacts,
    ModelFacts,
    NoFacts,
    ObjectiveFacts,
    RegularizerFacts,
    StepFacts,
    TransformFacts,
)

Fn = TypeVar("Fn", bound=Callable[..., Any])
Facts = TypeVar("Facts")
Stated = ParamSpec("Stated")


@dataclass(frozen=True)
class Entry(Generic[Facts]):
    """One registered callable: its name, the function, and what it says of itself."""

    name: str
    fn: Callable[..., Any]
    facts: Facts

    @property
    def summary(self) -> str:
        """First line of the docstring: the formula."""
        return (inspect.getdoc(self.fn) or "").partition("\n")[0]


class Registry(Generic[Stated, Facts]):
    """name -> callable and its facts. The first question imports the package, which fills it.

    Args:
        kind: what is registered, in the singular, for messages ("attack").
        package: the package whose modules register themselves when imported; "" for none.
        facts: the class of what a registration must state.
    """

    def __init__(self, kind: str, package: str, facts: Callable[Stated, Facts]) -> None:
        self.kind, self.package, self._facts = kind, package, facts
        self._entries: dict[str, Entry[Facts]] = {}
        self._filled = not package

    def register(self, name: str, *args: Stated.args, **facts: Stated.kwargs) -> Callable[[Fn], Fn]:
        """Decorator. Raises ValueError when another function has the name, TypeError for a wrong fact."""
        stated = self._facts(*args, **facts)

        def add(fn: Fn) -> Fn:
            old = self._entries.get(name)
            if old is not None and _origin(old.fn) != _origin(fn):
                raise ValueError(
                    f"two {self.kind}s are named {name!r}: {old.fn.__module__} and {fn.__module__}"
                )
            self._entries[name] = Entry(name, fn, stated)
            return fn

        return add

    def names(self) -> list[str]:
        """Registered names, sorted."""
        self._fill()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[Entry[Facts]]:
        return iter([self._entries[name] for name in self.names()])

    def __contains__(self, name: object) -> bool:
        self._fill()
        return name in self._entries

    def get(self, name: str) -> Entry[Facts]:
        """The entry. Raises ValueError naming the known names and the closest one."""
        if name not in self:
            known = self.names()
            raise ValueError(
                f"unknown {self.kind} {name!r}; {suggestion(name, known)}known: {', '.join(known)}"
            )
        return self._entries[name]

    def _fill(self) -> None:
        """Import every module of the package, once."""
        if self._filled:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._filled = True


def _origin(fn: Callable[..., Any]) -> tuple[str, str]:
    """Where a function was defined: the same twice for a module that is imported twice."""
    return fn.__module__, fn.__qualname__


def suggestion(word: str, known: list[str]) -> str:
    """``did you mean 'x'? `` or an empty string."""
    swapped = [name for name in known if sorted(name) == sorted(str(word))]  # the commonest slip of all
    close = swapped or difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
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


attacks = Registry("attack", "robustcli.attacks", AttackFacts)
ensembles = Registry("attack ensemble", "robustcli.attacks", EnsembleFacts)
transforms = Registry("input transform", "robustcli.attacks.transforms", TransformFacts)
losses = Registry("loss", "robustcli.core", LossFacts)
objectives = Registry("objective", "robustcli.objectives", ObjectiveFacts)
regularizers = Registry("regularizer", "robustcli.objectives", RegularizerFacts)
models = Registry("model", "robustcli.models.architectures", ModelFacts)
layouts = Registry("layout of weights", "robustcli.models.layouts", LayoutFacts)
defences = Registry("defence", "robustcli.defences", DefenceFacts)
datasets = Registry("data set", "robustcli.data.sets", DatasetFacts)
optimizers = Registry("optimizer", "robustcli.training", NoFacts)
schedules = Registry("schedule", "robustcli.training", NoFacts)
steps = Registry("training step", "robustcli.training", StepFacts)
hooks = Registry("training hook", "robustcli.training.hooks", HookFacts)
trackers = Registry("tracker", "robustcli.reporting.trackers", NoFacts)
