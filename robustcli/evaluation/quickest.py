"""A short race at the start of a long run: in which of its forms does the search twin answer fastest?

The forms are the twin as it is, with its first convolution on eight channels, as CUDA graphs, and compiled.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from robustcli.core.graphs import Graphs
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.core.widened import narrow
from robustcli.errors import out_of_memory
from robustcli.runtime.device import synchronise

if TYPE_CHECKING:
    from robustcli.evaluation.plan import Search

_WARM, _ROUNDS, _CHAIN = 5, 3, 4  # gradients before the clock; rounds of it; gradients in a round
_WORTH = 1200  # gradients of a batch that must lie ahead: some 60 are the race
_LONG = 600.0  # seconds that must lie ahead for each size that is compiled: that takes a minute
GAIN = 0.95  # a form must take this share of the time of a plainer one


class Length(NamedTuple):
    """How long a run will last: input gradients of so many images, or so many seconds. 0: not known.

    sizes: how many batch sizes there will be; code is compiled for each.
    """

    gradients: float = 0.0
    seconds: float = 0.0
    sizes: int = 1

    def at(self, per_image: float) -> float:
        """Seconds that lie ahead, where the gradient of one image takes `per_image`."""
        return self.seconds or self.gradients * per_image

    def long(self, per_image: float) -> bool:
        """Whether the run lasts long enough for code to be compiled."""
        return self.at(per_image) >= _LONG * self.sizes

    def short(self, rows: int) -> bool:
        """Whether fewer gradients of batches of `rows` images lie ahead than a race is worth."""
        return self.seconds == 0 and self.gradients < _WORTH * rows


@dataclass(frozen=True)
class _Form:
    """A twin in one form, and the seconds of one gradient of a batch."""

    name: str
    search: Search
    twin: SearchTwin
    seconds: float


def quickest(search: Search, model: nn.Module, x: Tensor, twin: SearchTwin) -> SearchTwin:
    """`twin`, or a faster form of it on pixels x [B, C, H, W]; its `way` then says what was found.

    There is no race in a run that is short, that nobody knows the length of, or that is deterministic: what
    was fastest this time must not decide what the next run computes.
    """
    length = search.length
    if length is None or not len(x) or torch.are_deterministic_algorithms_enabled():
        return twin
    if length.short(len(x)):
        return twin
    return _Race(search, model, x, length).won_by(twin)


class _Race:
    """See `quickest`."""

    def __init__(self, search: Search, model: nn.Module, x: Tensor, length: Length) -> None:
        self._search, self._model, self._x, self._length = search, model, x, length
        self._lost: list[str] = []

    def won_by(self, twin: SearchTwin) -> SearchTwin:
        """The fastest twin. Plainer forms go first, and a later one must be faster by 5 %."""
        graphs, twin.graphs = twin.graphs, None
        best = _Form("as it is", replace(self._search, graph=False), twin, self._timed(twin))
        if self._length.at(best.seconds / len(self._x)) < _WORTH * best.seconds:
            twin.graphs = graphs
            return twin
        if narrow(twin.copied):
            best = self._faster(best, "first convolution on 8 channels", wide=True)
        plain, recorded = best, None
        if graphs is not None:
            recorded = self._form(plain, "CUDA graphs", graph=True)
            best = self._better(best, recorded)
        if self._length.long(best.seconds / len(self._x)):
            compiled = self._form(plain, "compiled", compile=True)
            best = self._better(best, compiled)
            if compiled is not None and recorded is not None:
                best = self._better(best, self._form(compiled, "CUDA graphs of compiled code", graph=True))
        best.twin.graphs = Graphs(checked=not best.search.compile) if best.search.graph else None
        best.twin.way = self._told(best)
        return best.twin

    def _faster(self, best: _Form, name: str, **changes: Any) -> _Form:
        return self._better(best, self._form(best, name, **changes))

    def _better(self, best: _Form, other: _Form | None) -> _Form:
        """The faster one, if the other one could be made; the slower one is named in the line."""
        if other is None:
            return best
        won, lost = best, other
        if other.seconds < GAIN * best.seconds:
            won, lost = other, best
        self._lost.append(f"{lost.name} {_ms(lost.seconds)}")
        return won

    def _form(self, of: _Form, name: str, **changes: Any) -> _Form | None:
        """Another form of the twin and its time; None where it fails or is not recorded."""
        search = replace(of.search, **changes)
        try:
            twin = search.copy_of(self._model)
            if twin.parity(self._x):
                return None
            seconds = self._timed(twin)
        except Exception as failure:  # a compiler that is missing, or code that it does not understand
            if out_of_memory(failure) and torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._lost.append(f"{name} fails ({type(failure).__name__})")
            return None
        if search.graph and (twin.graphs is None or not twin.graphs.recorded):
            self._lost.append(twin.graphs.note if twin.graphs is not None else name)
            return None
        return _Form(name, search, twin, seconds)

    def _timed(self, twin: SearchTwin) -> float:
        """Seconds of one gradient of the batch."""
        rows = torch.arange(len(self._x), device=self._x.device)
        with torch.no_grad():
            y = twin(self._x).argmax(1)
        oracle = Oracle(twin, self._x, Criterion(y), rng=RowRandom(0, "race", rows))
        for _ in range(_WARM):
            oracle.gradient(self._x)
        return seconds_of(lambda: oracle.gradient(self._x), self._x.device)

    def _told(self, best: _Form) -> str:
        """One line: what has won, and what the others took."""
        size = f"a step of {len(self._x)} images"
        return f"the search runs {best.name}: {_ms(best.seconds)} {size} ({', '.join(self._lost)})"


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work`, already warm: the median over three rounds of four in a row."""
    rounds: list[float] = []
    for _ in range(_ROUNDS):
        synchronise(device)
        began = time.perf_counter()
        for _ in range(_CHAIN):
            work()
        synchronise(device)
        rounds.append((time.perf_counter() - began) / _CHAIN)
    return statistics.median(rounds)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
