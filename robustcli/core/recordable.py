"""Whether work on tensors can be recorded: the same operations on the same memory, whatever the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class NotRecordable(Exception):
    """Says which operation cannot be recorded."""


def check_recordable(work: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
    """Do work(*inputs) once, and look at each of its operations, those of a backward pass included.

    A recording that fails half-way leaves CUDA's allocator in a state that nobody describes. So what would
    fail is found out here.

    Raises NotRecordable for an operation that Python reads numbers from (a GPU would have to be waited for),
    that draws random numbers, that works on two devices, or that decomposes matrices (LAPACK reports errors
    to the CPU). What the work raises, passes through.
    """
    with _Looking(inputs[0].device):
        work(*inputs)


class _Looking(TorchDispatchMode):
    """Raises NotRecordable after an operation that cannot be recorded."""

    def __init__(self, device: torch.device) -> None:
        TorchDispatchMode.__init__(self)
        self._device = device

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not asked for: torch would import its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        why = _obstacle(func, args) or self._elsewhere((args, kwargs or {}, answer))
        if why:
            raise NotRecordable(f"{func} {why}")
        return answer

    def _elsewhere(self, used: Any) -> str:
        """What is wrong with the devices of the tensors in `used`, "" where nothing is."""
        for tensor in _tensors(used):
            if tensor.device != self._device:
                return f"works on {tensor.device}, too"
        return ""


def _obstacle(func: Any, args: tuple[Any, ...]) -> str:
    """What is wrong with an operation, whatever its tensors; "" where nothing is."""
    name = func.name().removeprefix("aten::").lstrip("_")
    if name.startswith("linalg") and "vector_norm" not in name:
        return "reports errors to the CPU"
    if torch.Tag.nondeterministic_seeded in func.tags and "scaled_dot_product" not in name:
        return "draws random numbers"
    if any(tag in func.tags for tag in _READS) and not _by_numbers(name, args):
        return "makes the CPU wait for numbers"
    return ""


def _by_numbers(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an operation is an index by integers, whose result has a known shape; a mask's has none."""
    if not name.startswith("index"):
        return False
    return all(index.dtype not in (torch.bool, torch.uint8) for index in _tensors(args[1]))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested sequences and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
