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
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from robustcli.errors import CheckpointError
from robustcli.store.convert import PLACE

Kind = Literal["auto", "averaged", "raw"]
Normaliser = tuple[Tensor, Tensor]  # (mean, std), one value per channel
_AVERAGE = re.compile(r"(^|[._ ])(ema|swa|averaged?|avg|polyak)([._ ]|$)", re.IGNORECASE)
_PAIRS = {"mean": "std", "new_mean": "new_std", "mu": "sigma", "_mean": "_std", "means": "stds"}
BATCHES = "num_batches_tracked"
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


@dataclass(frozen=True)
class _Counted:
    """Where the names of a network stand in a file.

    Args:
        needed: the names without which the network is not whole.
        counts: prefix -> how many of them stand under it.
        complete: the prefixes under which all of them stand, the shortest first.
    """

    needed: frozenset[str]
    counts: Counter[str]
    complete: list[str]


def is_average(name: str) -> bool:
    """Whether a name says that the weights under it are an average: ``state_dict_ema``, ``ema_model.``"""
    return _AVERAGE.search(name) is not None


def place_of(name: str) -> str:
    """The place in a file of the set that a tensor belongs to, with its `PLACE`; empty for the only set."""
    return name[: name.rfind(PLACE) + len(PLACE)] if PLACE in name else ""


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
    counted = _counted(state, expected)
    prefix = _prefix(state, counted, where, kind, say)
    tensors = {name: state[prefix + name] for name in expected if prefix + name in state}
    other_sets = [p for p in counted.complete if p != prefix]
    place, needed = place_of(prefix), counted.needed
    rest = {
        name: tensor
        for name, tensor in state.items()
        if place_of(name) == place
        and not (name.startswith(prefix) and name[len(prefix) :] in tensors)
        and not any(name.startswith(p) and name[len(p) :] in tensors for p in other_sets)
    }
    normalisers = _normalisers(rest)
    used = {name for pair in normalisers for name in pair}
    used |= {name for name, tensor in rest.items() if _counts_something(name, tensor)}
    if prefix and len(tensors.keys() & needed) == len(needed):
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
    state: Mapping[str, Tensor], counted: _Counted, where: str, kind: Kind, say: Callable[[str], None]
) -> str:
    complete, counts = counted.complete, counted.counts
    if not complete:
        return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    averages = [prefix for prefix in complete if is_average(prefix)]
    raw = [prefix for prefix in complete if prefix not in averages]
    groups = {"averaged": averages, "raw": raw, "auto": averages or raw}
    wanted = groups[kind]
    if kind != "raw" and not averages:
        _check_no_average_is_left(state, counted, where, kind, say)
    if not wanted:
        wanted = complete
    for other in wanted[1:]:
        if not _equal(state, wanted[0], other, counted.needed):
            raise _differ(wanted[0], other, where)
    if averages and raw:
        told = f"raw weights under {_named(raw[0])} and averaged ones under {_named(averages[0])}"
        say(f"{where}: {told}; taken: {_named(wanted[0])} (model.weights_kind)")
    return wanted[0]


def _check_no_average_is_left(
    state: Mapping[str, Tensor], counted: _Counted, where: str, kind: Kind, say: Callable[[str], None]
) -> None:
    """An average that is not whole may be what is meant.

    Raises CheckpointError for one by names; `say` is told of one by position, unless an average is asked for.
    """
    needed = counted.needed
    for prefix, count in counted.counts.items():
        if is_average(prefix) and 2 * count >= len(needed):
            raise CheckpointError(
                f"the average under {_named(prefix)} holds {count} of the network's {len(needed)} tensors",
                where=where,
                hint="--weights-kind raw takes the others",
                code="E-CKPT-SHAPE",
            )
    places = {place_of(name) for name in state if name.rpartition(PLACE)[2].isdecimal()}
    for place in sorted(filter(is_average, places)):
        text = f"the average under {_named(place)} is a list of tensors without names"
        if kind == "averaged":
            raise CheckpointError(
                text,
                where=where,
                hint="copy it to the parameters of the network, and save its state dict",
                code="E-CKPT-SHAPE",
            )
        say(f"{where}: {text}, and was left aside")


def _differ(one: str, other: str, where: str) -> CheckpointError:
    hint = "save the state dict of the one that is meant"
    if place_of(one) and place_of(one) == one:
        keys = "".join(f"[{key!r}]" for key in one.split(PLACE)[:-1])
        hint = f"save the one that is meant alone, such as torch.save(torch.load(FILE){keys}, NEW)"
    return CheckpointError(
        f"two networks that differ: under {_named(one)} and {_named(other)}",
        where=where,
        hint=hint,
        code="E-CKPT-SHAPE",
    )


def _named(prefix: str) -> str:
    return repr(prefix.removesuffix(PLACE) or "no prefix")


def _equal(state: Mapping[str, Tensor], one: str, other: str, needed: Collection[str]) -> bool:
    """Whether two sets are the same network."""
    pairs = ((state[one + name], state[other + name]) for name in needed)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def _needed(expected: Collection[str]) -> frozenset[str]:
    """The names without which a network is not whole: no answer depends on a count of batches."""
    return frozenset(name for name in expected if not name.endswith(BATCHES)) or frozenset(expected)


def _counted(state: Mapping[str, Tensor], expected: Collection[str]) -> _Counted:
    needed = _needed(expected)
    splits = chain.from_iterable(map(_splits, state))
    counts = Counter(prefix for prefix, end in splits if end in needed)
    whole = [prefix for prefix, count in counts.items() if count == len(needed)]
    return _Counted(needed, counts, sorted(whole, key=lambda prefix: (len(prefix), prefix)))


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """(prefix with its dot, rest) at every dot of a name; first the place of its set, and the name there."""
    place = place_of(name)
    yield place, name.removeprefix(place)
    for dot in re.finditer(r"\.", name[len(place) :]):
        yield name[: len(place) + dot.end()], name[len(place) + dot.end() :]


def holds_normaliser(state: Mapping[str, Tensor]) -> bool:
    """Whether a mean and a std of images are among the tensors."""
    return bool(_normalisers(state))


def _normalisers(rest: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The names of a wrapper's mean and std, which may stand in several places with the same values."""
    found: list[tuple[str, str]] = []
    for name, tensor in rest.items():
        end = _end(name)
        other = name.removesuffix(end) + _PAIRS.get(end, "")
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
    return "." in name.removeprefix(place_of(name)) and not name.startswith(prefix) and tensor.ndim < 2


def _counts_something(name: str, tensor: Tensor) -> bool:
    """Whether it is a counter that an average of weights keeps beside them."""
    return _end(name) in _COUNTERS and tensor.numel() == 1


def _end(name: str) -> str:
    return name.rpartition(PLACE)[2].rpartition(".")[2]


def _first(names: list[str]) -> str:
    text = ", ".join(names[:_SHOWN])
    return text if len(names) <= _SHOWN else f"{text} (+{len(names) - _SHOWN} more)"
