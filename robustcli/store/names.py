"""Names of tensors in weights from outside: which of them are the network's, under which prefix.

Wrappers put their own names in front (``module.``, ``model.``, ``attacker.model.``, in any nesting), and
tensors of their own beside the network's: a normaliser's mean and std, the counters of an average, the class
weights of a loss.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustcli.errors import CheckpointError

Kind = Literal["auto", "averaged", "raw"]
Normaliser = tuple[Tensor, Tensor]  # (mean, std), one value per channel
_AVERAGE = re.compile(r"(^|[._])(ema|swa|averaged?|avg)([._]|$)", re.IGNORECASE)
_PAIRS = {"mean": "std", "new_mean": "new_std", "mu": "sigma", "_mean": "_std", "means": "stds"}
_COUNTERS = {"n_averaged", "num_updates", "initted", "step", "decay"}
_MOST_CHANNELS = 16
_SHOWN = 5


@dataclass(frozen=True)
class Found:
    """The network's tensors in a file.

    Args:
        tensors: under the network's own names; what fits nowhere keeps its name.
        normaliser: of the wrapper that stood around the network, None without one.
    """

    tensors: dict[str, Tensor]
    normaliser: Normaliser | None


def is_average(name: str) -> bool:
    """Whether a name says that the weights under it are an average: ``state_dict_ema``, ``ema_model.``"""
    return _AVERAGE.search(name) is not None


def find(
    state: Mapping[str, Tensor],
    expected: Collection[str],
    *,
    where: str,
    kind: Kind = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """The tensors of a network that has the names `expected`, without the names of wrappers.

    The prefix is the one under which most names of the network stand. Of two complete sets that differ,
    `kind` says which is meant; auto takes the average.

    Args:
        where: the file, for messages.
        say: told what was chosen, and which tensors were left aside.

    Raises CheckpointError E-CKPT-SHAPE: two sets that differ, and neither is an average.
    """
    prefix = _prefix(state, expected, where, kind, say)
    tensors = {name: state[prefix + name] for name in expected if prefix + name in state}
    other_sets = [p for p in _complete(state, expected) if p != prefix]
    rest = {
        name: tensor
        for name, tensor in state.items()
        if not (name.startswith(prefix) and name[len(prefix) :] in tensors)
        and not any(name.startswith(p) and name[len(p) :] in tensors for p in other_sets)
    }
    normalisers = _normalisers(rest)
    used = {name for pair in normalisers for name in pair}
    used |= {name for name, tensor in rest.items() if _counts_something(name, tensor)}
    if prefix and len(tensors) == len(expected):
        aside = [
            name for name, tensor in rest.items() if name not in used and _elsewhere(name, tensor, prefix)
        ]
        used |= {*aside}
        if aside:
            say(f"{where}: left aside, for they are not the network's: {_first(aside)}")
    tensors |= {_faulty(name, prefix): tensor for name, tensor in rest.items() if name not in used}
    if not normalisers:
        return Found(tensors, None)
    mean, std = (state[name].flatten().float() for name in normalisers[0])
    return Found(tensors, (mean, std))


def _faulty(name: str, prefix: str) -> str:
    """How a tensor that fits nowhere is named: never as one of the network's."""
    if name.startswith(prefix):
        return name.removeprefix(prefix)
    return f"{name} (not under {prefix})"


def _prefix(
    state: Mapping[str, Tensor], expected: Collection[str], where: str, kind: Kind, say: Callable[[str], None]
) -> str:
    complete = _complete(state, expected)
    if not complete:
        counted = _counts(state, expected)
        return max(counted, key=lambda prefix: (counted[prefix], -len(prefix)), default="")
    averages = [prefix for prefix in complete if is_average(prefix)]
    raw = [prefix for prefix in complete if prefix not in averages]
    groups = {"averaged": averages, "raw": raw}
    wanted = groups["averaged" if kind == "auto" and averages else "raw" if kind == "auto" else kind]
    if not wanted:
        wanted = complete
    if averages and raw:
        told = f"raw weights under {raw[0] or 'no prefix'!r} and averaged ones under {averages[0]!r}"
        say(f"{where}: {told}; taken: {wanted[0] or 'no prefix'!r} (model.weights_kind)")
    for other in wanted[1:]:
        if not all(torch.equal(state[wanted[0] + name], state[other + name]) for name in expected):
            raise CheckpointError(
                f"two networks that differ: under {wanted[0] or 'no prefix'!r} and {other or 'no prefix'!r}",
                where=where,
                hint="save the state dict of the one that is meant",
                code="E-CKPT-SHAPE",
            )
    return wanted[0]


def _complete(state: Mapping[str, Tensor], expected: Collection[str]) -> list[str]:
    """The prefixes under which every name of the network stands, the shortest first."""
    counted = _counts(state, expected)
    return sorted((p for p, count in counted.items() if count == len(expected)), key=lambda p: (len(p), p))


def _counts(state: Mapping[str, Tensor], expected: Collection[str]) -> Counter[str]:
    """Prefix -> how many names of the network stand under it."""
    names = frozenset(expected)
    return Counter(prefix for name in state for prefix, end in _splits(name) if end in names)


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """(prefix with its dot, rest) at every dot of a name; first ("", name)."""
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _normalisers(rest: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The names of a wrapper's mean and std, which may stand in several places with the same values."""
    found: list[tuple[str, str]] = []
    for name, tensor in rest.items():
        parent, dot, end = name.rpartition(".")
        other = f"{parent}{dot}{_PAIRS.get(end, '')}"
        if end not in _PAIRS or other not in rest or tensor.numel() != rest[other].numel():
            continue
        if tensor.numel() > _MOST_CHANNELS:
            continue
        pairs = zip((name, other), found[0] if found else (name, other), strict=True)
        if all(torch.equal(rest[a].flatten(), rest[b].flatten()) for a, b in pairs):
            found.append((name, other))
    return found


def _elsewhere(name: str, tensor: Tensor, prefix: str) -> bool:
    """Whether it belongs to another part of the wrapper, such as a loss or a metric, and is no matrix."""
    return "." in name and not name.startswith(prefix) and tensor.ndim < 2


def _counts_something(name: str, tensor: Tensor) -> bool:
    """Whether it is a counter that an average of weights keeps beside them."""
    return name.rpartition(".")[2] in _COUNTERS and tensor.numel() == 1


def _first(names: list[str]) -> str:
    text = ", ".join(names[:_SHOWN])
    return text if len(names) <= _SHOWN else f"{text} (+{len(names) - _SHOWN} more)"
