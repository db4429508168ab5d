"""Does a saved state fit the model it is meant for?

The question is asked before anything is copied, so that nothing loads in part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from robustcli.errors import CheckpointError

_SHOWN = 5


def compare_state(
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    *,
    where: str,
    strict_dtype: bool = True,
    named: Callable[[str], str] = str,
) -> None:
    """names(expected) = names(got), and shape and dtype of each tensor are equal.

    Args:
        expected: state of the model as built.
        got: state read from a file; the order of names does not matter.
        where: the file, for the message.
        strict_dtype: False lets one floating type stand for another (half-precision foreign weights), but
            never an integer for a float.
        named: how a name of `expected` is called in the file, for the message.

    Raises CheckpointError E-CKPT-SHAPE listing the first 5 missing, unexpected and mismatching tensors.
    """
    both = [name for name in expected if name in got]
    parts = {
        "missing": [named(name) for name in expected if name not in got],
        "unexpected": [named(name) for name in got if name not in expected],
        "shape": [
            f"{named(n)} expected {_shape(expected[n])} got {_shape(got[n])}"
            for n in both
            if expected[n].shape != got[n].shape
        ],
        "dtype": [
            f"{named(n)} expected {_dtype(expected[n])} got {_dtype(got[n])}"
            for n in both
            if not _same_dtype(expected[n], got[n], strict_dtype)
        ],
    }
    text = "; ".join(f"{kind}: {_first(names)}" for kind, names in parts.items() if names)
    if text:
        text += f"; the file holds {len(got)} tensors, the model has {len(expected)}"
        hint = "build the model with the settings it was saved with"
        raise CheckpointError(
            f"weights do not fit the model: {text}", where=where, hint=hint, code="E-CKPT-SHAPE"
        )


def _first(names: list[str]) -> str:
    text = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        text += f" (+{len(names) - _SHOWN} more)"
    return text


def _same_dtype(a: Tensor, b: Tensor, strict: bool) -> bool:
    return a.dtype == b.dtype or (not strict and a.is_floating_point() and b.is_floating_point())


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
