"""Weights of others by the names in the file: which network they are of, and with which parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustcli.errors import CheckpointError
from robustcli.facts import LayoutFacts
from robustcli.models.layouts.names import Names
from robustcli.registry import Entry, layouts
from robustcli.store.convert import PLACE
from robustcli.store.names import holds_normaliser

Layout = Entry[LayoutFacts]
_OURS = "ours"
_SHOWN = 6


@dataclass(frozen=True)
class Recognised:
    """Weights under the names of our network.

    Args:
        tensors: what the file holds; wrappers' prefixes are still in front.
        params: parameters of the network: the caller's, else the file's, else those of published networks.
        normalize: what the published networks expect, as `--normalize` says it; None where it is not known.
        theirs: our name of a tensor -> its name in the file, for messages.
        recognised: whether the names are those of a known layout.
    """

    tensors: Mapping[str, Tensor]
    params: Mapping[str, Any]
    normalize: str | None = None
    theirs: Callable[[str], str] = str
    recognised: bool = True


def recognise(
    arch: str,
    state: Mapping[str, Tensor],
    params: Mapping[str, Any],
    *,
    where: str,
    normalize: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Recognised:
    """`state` as weights of `arch`, where a layout of it is known; else as it is.

    Args:
        arch: a registered model, or any other name.
        state: {name in the file: tensor}.
        params: what the caller says of the network.
        where: the file, for messages.
        normalize: what the caller says that the network expects.
        say: told what the file does not say, and is taken from the published networks.

    Raises CheckpointError E-CKPT-SHAPE: the names are of no layout of `arch`, or of another depth or width
    than `params` has. It names the network that they are of, where that is known.
    """
    of_arch = [entry for entry in layouts if entry.facts.arch == arch]
    found = [(entry, roots) for entry in of_arch if (roots := _roots(state, entry.facts))]
    if not found:
        if of_arch:
            raise _unknown(arch, of_arch, state, where)
        return Recognised(state, params, recognised=False)
    layout, roots = found[0]
    names = Names(layout.facts.names)
    tensors, unused = _renamed(state, roots, names, layout.facts)
    told = _told(layout, tensors, roots[0])
    _check_said(params, told, layout.facts, where)
    classes = _classes(layout.facts, names, tensors, roots[0], where)
    means = {k: _for(classes, v) for k, v in layout.facts.means.items() if k not in params}
    usual = None
    if layout.facts.published != _OURS:
        if normalize is None and not holds_normaliser(tensors):
            usual = _for(classes, layout.facts.normalize)
        _tell(layout.facts, told, means, usual, unused, f"{where}: ", say)
    return Recognised(tensors, {**told, **means, **params}, usual, names.theirs)


def told_by_names(state: Mapping[str, Tensor], arch: str = "") -> str:
    """``preact_resnet18 (Rice 2020, AWP)`` for names that are those of another model than `arch`; else ""."""
    for entry in layouts:
        if entry.facts.arch != arch and _roots(state, entry.facts):
            return f"{entry.facts.arch} ({entry.facts.published})"
    return ""


def _unknown(arch: str, known: list[Layout], state: Mapping[str, Tensor], where: str) -> CheckpointError:
    """The error for weights that are not those of `arch`."""
    told = told_by_names(state, arch)
    if told:
        what = f"the names in the file are those of {told}, not of {arch}"
        return CheckpointError(
            what, where=where, hint=f"write --model {told.partition(' ')[0]}", code="E-CKPT-SHAPE"
        )
    marks = "; ".join(f"{entry.facts.published}: {', '.join(entry.facts.marks)}" for entry in known)
    return CheckpointError(
        f"the names in the file are of no known layout of {arch}: it holds {_shown(sorted(state))}",
        where=where,
        hint=f"what is missing, for each layout: {marks}; any other network is read with its own code: "
        f"--plugin FILE.py:factory --weights {where}",
        code="E-CKPT-SHAPE",
    )


def _roots(state: Mapping[str, Tensor], facts: LayoutFacts) -> list[str]:
    """The prefixes under which all marks of a layout stand, the shortest first."""
    first, *others = facts.marks
    prefixes = [name.removesuffix(first) for name in state if name.endswith(first)]
    whole = [
        prefix
        for prefix in prefixes
        if (not prefix or prefix.endswith((".", PLACE)))
        and all(prefix + name in state for name in others)
        and not any(prefix + name in state for name in facts.never)
    ]
    return sorted(whole, key=lambda prefix: (len(prefix), prefix))


def _renamed(
    state: Mapping[str, Tensor], roots: list[str], names: Names, facts: LayoutFacts
) -> tuple[dict[str, Tensor], list[str]]:
    """(the tensors under our names, the names of those that the published network never asks)."""
    renamed: dict[str, Tensor] = {}
    unused = []
    for name, tensor in state.items():
        root = next((root for root in reversed(roots) if name.startswith(root)), None)
        if root is None:
            renamed[name] = tensor
            continue
        inner = name.removeprefix(root)
        if inner.startswith(facts.unused) and facts.unused:
            unused.append(name)
        else:
            renamed[root + (names.ours(inner) or inner)] = tensor
    return renamed, unused


def _told(layout: Layout, tensors: Mapping[str, Tensor], root: str) -> dict[str, Any]:
    """What the shapes say of the network; nothing where a tensor that would say it is missing."""
    inner = {name.removeprefix(root): t for name, t in tensors.items() if name.startswith(root)}
    try:
        return dict(layout.fn(inner))
    except (KeyError, IndexError, ZeroDivisionError):  # the comparison of all names then says what is missing
        return {}


def _check_said(params: Mapping[str, Any], told: Mapping[str, Any], facts: LayoutFacts, where: str) -> None:
    """Raises CheckpointError where the caller says another depth or width than the file has."""
    for key, value in told.items():
        if key in params and facts.published != _OURS and params[key] != value:
            raise CheckpointError(
                f"the weights are those of {key} {value}, and model.{key} is {params[key]}",
                where=where,
                hint=f"leave model.{key} out: the file says it",
                code="E-CKPT-SHAPE",
            )


def _classes(facts: LayoutFacts, names: Names, tensors: Mapping[str, Tensor], root: str, where: str) -> int:
    """Outputs of the last layer. Raises CheckpointError where published weights have none."""
    head = tensors.get(root + facts.head)
    if head is not None and head.ndim:
        return head.shape[0]
    if facts.published == _OURS:
        return 0  # who builds it says how many
    odd = [
        name
        for name in tensors
        if name.startswith(root) and names.theirs(name[len(root) :]) == name[len(root) :]
    ]
    raise CheckpointError(
        f"missing: {names.theirs(facts.head)}, the last layer of the layout of {facts.published}",
        where=where,
        hint=f"other names in the file: {_shown(sorted(odd))}" if odd and facts.names else "",
        code="E-CKPT-SHAPE",
    )


def _for(classes: int, value: Any) -> Any:
    """What is stated for so many classes, else for 0; a value that does not depend on them is itself."""
    return value.get(classes, value.get(0)) if isinstance(value, Mapping) else value


def _tell(
    facts: LayoutFacts,
    told: Mapping[str, Any],
    means: Mapping[str, Any],
    usual: str | None,
    unused: list[str],
    where: str,
    say: Callable[[str], None],
) -> None:
    read = ", ".join(f"{key} {value}" for key, value in told.items())
    text = f"{where}the layout of {facts.published}; {facts.arch} of {read}"
    if means:
        said = " ".join(f"model.{key}={_word(value)}" for key, value in means.items())
        text += f"; no tensor tells {said}, which these networks have"
    say(text)
    if usual is not None:
        say(f"{where}no normaliser in the file; normalised as these networks are: --normalize {usual}")
    if unused:
        say(f"{where}left aside, for the published network never asks them: {_shown(unused)}")


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(names: Iterable[str]) -> str:
    known = list(names)
    text = ", ".join(known[:_SHOWN])
    return text if len(known) <= _SHOWN else f"{text} (+{len(known) - _SHOWN} more)"
