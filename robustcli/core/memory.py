"""What an attack keeps from one training step to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_TURN, _MADE = "turn", ".made"


class Memory:
    """Tensors by name, each made anew after a number of steps.

    It has no place in an evaluation, where the points of a sample must not depend on what came before.

    Attributes:
        turn: training steps that are done.
    """

    def __init__(self) -> None:
        self.turn = 0
        self._made: dict[str, int] = {}
        self._tensors: dict[str, Tensor] = {}

    def renewed(self, name: str, every: int, make: Callable[[], Tensor], device: torch.device) -> Tensor:
        """The tensor of this name on `device`. It is made in the first step, and again `every` steps later.

        All micro-batches of a step see the same one. It must not be written to.
        """
        made = self._made.get(name)
        if made is None or self.turn - made >= every:
            self._tensors[name], self._made[name] = make(), self.turn
        elif self._tensors[name].device != device:  # a resume reads it on the CPU
            self._tensors[name] = self._tensors[name].to(device)
        return self._tensors[name]

    def state(self) -> dict[str, Tensor]:
        """All that a bitwise resume needs; {} while nothing is kept."""
        if not self._made:
            return {}
        counts = {name + _MADE: torch.tensor(turn) for name, turn in self._made.items()}
        return {**self._tensors, **counts, _TURN: torch.tensor(self.turn)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        names = [key.removesuffix(_MADE) for key in state if key.endswith(_MADE)]
        self.turn = int(state.get(_TURN, 0))
        self._made = {name: int(state[name + _MADE]) for name in names}
        self._tensors = {name: state[name] for name in names}
