"""What an attack needs of a model before its first step, kept from call to call while the model is as it was.

The contract of the network, and its search twins. They are dropped with the model. A model whose numbers
alone have changed, as in training, gets its twins refreshed: neither copied nor traced anew.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustcli.core.edge import hides_bounds, opened
from robustcli.core.likeness import Likeness
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Classifier
from robustcli.evaluation.plan import Search
from robustcli.models.contract.adapted import look, wrapped
from robustcli.models.contract.reading import Contract

_MOST = 8  # models of which something is kept: each keeps a copy of its weights, and its twins
_SHOWN, _GLANCE = 16, 2  # images on which a new twin is compared with the model, and one that is kept

_Place = tuple[torch.device, torch.Size]


class Ready:
    """What is kept of one model; `ready` hands it out.

    A twin is shared by threads, and refreshed only when no other thread works with it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.lock = threading.RLock()
        self.users = 0
        self._likeness = Likeness(model)
        self._contracts: dict[_Place, tuple[Contract | None, int]] = {}
        self._twins: dict[tuple[_Place, Search], SearchTwin | None] = {}
        self._stale: set[tuple[_Place, Search]] = set()
        self._hides: dict[_Place, bool | None] = {}  # whether it has no slope at 0 and 1
        self._over = False

    @property
    def copies(self) -> dict[int, Tensor]:
        """id of a tensor of the model -> a copy of its numbers, for `core.untouched.as_before`."""
        return self._likeness.copies

    def still(self, model: nn.Module) -> bool:
        """Whether what is kept can be used for the model as it is now."""
        change = self._likeness.change(model)
        if change == "numbers":
            self._over |= self.users > 0
            if not self._over:  # else somebody may search on a twin, and it stays as it is
                self._stale = {*self._twins}
        self._over |= change == "build"
        return not self._over

    def adapted(self, model: nn.Module, x: Tensor) -> tuple[nn.Module, int]:
        """As `models.contract.adapted.adapted`; x: pixels [B, C, H, W], B >= 1."""
        place = _place(x)
        with self.lock:
            if place not in self._contracts:
                self._contracts[place] = look(model, x[:1])
            contract, classes = self._contracts[place]
        return wrapped(model, contract), classes

    def twin(self, search: Search, model: nn.Module, x: Tensor) -> Classifier:
        """The classifier that attacks ask, as `Search.twin`; the caller holds the model frozen.

        A twin that was kept is compared with the model on two images: code may read what no module holds.

        Args:
            search: without `bpda` and `rescale`.
            model: from `adapted`.
            x: pixels [B, C, H, W] in [0, 1].
        """
        place = _place(x)
        with self.lock:
            if self._hides.get(place) is None:
                self._hides[place] = hides_bounds(model, x)
        if self._hides[place]:
            return opened(self._copy(search.beside_bounds(), model, x))
        return self._copy(search, model, x)

    def _copy(self, search: Search, model: nn.Module, x: Tensor) -> Classifier:
        """The twin that is kept, made where there is none; the model itself where none may be used."""
        if search.plain:
            return model
        key = (_place(x), search)
        with self.lock:
            try:
                if not self._usable(key, model, x[:_GLANCE]):
                    self._twins[key] = search.faithful(model, x[:_SHOWN])[0]
            finally:
                self._let_go()
            self._stale.discard(key)
            twin = self._twins[key]
        return model if twin is None else twin

    def _let_go(self) -> None:
        """No twin keeps the model alive."""
        for twin in self._twins.values():
            if twin is not None:
                twin.follow(None)

    def _usable(self, key: tuple[_Place, Search], model: nn.Module, x: Tensor) -> bool:
        """Whether the kept twin, brought up to date, agrees with the model on x; or none may be used."""
        if key not in self._twins:
            return False
        twin = self._twins[key]
        if twin is None:
            return key not in self._stale
        twin.follow(model)
        if key in self._stale:
            twin.refresh()
        return not twin.difference(x)


_kept: dict[int, tuple[weakref.ref[nn.Module], Ready]] = {}
_turn = threading.RLock()


@contextmanager
def ready(model: nn.Module) -> Iterator[Ready]:
    """What is kept of a model, which the caller holds frozen: made now where there is nothing, or it is old.

    While the block lasts, no other thread changes it.
    """
    with _turn:
        found = _kept.get(id(model))
    held = found[1] if found is not None and found[0]() is model else None
    if held is None:
        held = Ready(model)
    with held.lock:
        if not held.still(model):
            held = Ready(model)
        held.users += 1
    _keep(model, held)
    try:
        yield held
    finally:
        with held.lock:
            held.users -= 1


def _keep(model: nn.Module, held: Ready) -> None:
    number = id(model)
    with _turn:
        _kept.pop(number, None)
        _kept[number] = weakref.ref(model, lambda gone: _drop(number, gone)), held
        while len(_kept) > _MOST:
            _kept.pop(next(iter(_kept)), None)


def _drop(number: int, gone: weakref.ref[nn.Module]) -> None:
    """Forget a model that is gone; another may have its number by now."""
    with _turn:
        found = _kept.get(number)
        if found is not None and found[0] is gone:
            del _kept[number]


def _place(x: Tensor) -> _Place:
    return x.device, x.shape[1:]
