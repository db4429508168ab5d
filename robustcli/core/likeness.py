"""Whether a network is still what it was: its structure, its attributes and the numbers of its tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.core.reading import OpaqueError, Reading
from robustcli.core.untouched import tensors_of

Change = Literal["none", "numbers", "build"]


class Likeness:
    """A network at one moment, remembered without keeping it alive.

    Numbers are compared with a copy of them. A write through `.data` moves no version counter of PyTorch, so
    counters would not show it. What a network reads outside its own attributes is not seen. A network with
    an attribute that cannot be compared by value counts as changed at each look.

    Attributes:
        copies: id of each tensor of the network -> its numbers at that moment.
    """

    def __init__(self, model: nn.Module) -> None:
        reading = _read(model)
        self._build = None if reading is None else reading.build
        self._remember(model, reading)

    def change(self, model: nn.Module) -> Change:
        """What of a network is no longer as it was.

        "numbers": only those of its parameters and buffers are; others of the same shapes may be in their
        place. "build": modules, attributes, shapes or types are others, or nobody can say; tensors that are
        neither parameters nor buffers are attributes.
        """
        if self._build is None:
            return "build"
        reading = _read(model)
        if reading is None or reading.build != self._build or not _equal(reading.loose, self._loose):
            return "build"
        same = _equal(reading.registered, self._numbers)
        if not same or [id(tensor) for tensor in _all(reading)] != [*self.copies]:
            self._remember(model, reading)
        return "none" if same else "numbers"

    def _remember(self, model: nn.Module, reading: Reading | None) -> None:
        tensors = tensors_of(model) if reading is None else _all(reading)
        self.copies = {id(tensor): tensor.detach().clone() for tensor in tensors}
        if reading is not None:
            self._numbers = [self.copies[id(tensor)] for tensor in reading.registered]
            self._loose = [self.copies[id(tensor)] for tensor in reading.loose]


def _read(model: nn.Module) -> Reading | None:
    """What is compared of a network; None where it cannot be."""
    try:
        return Reading(model)
    except OpaqueError:
        return None


def _all(reading: Reading) -> list[Tensor]:
    """Each tensor once."""
    return [*{id(tensor): tensor for tensor in (*reading.registered, *reading.loose)}.values()]


@torch.no_grad()
def _equal(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether all numbers are equal; the kinds are. An accelerator is waited for once."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))
    same = [(a == b).all() for a, b in zip(tensors, others, strict=True)]
    home = same[-1].device
    return bool(torch.stack([flag.to(home) for flag in same]).all())
