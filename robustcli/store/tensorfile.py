"""Tensors <-> one safetensors file, with the header checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors import torch as st
from torch import Tensor

from robustcli.errors import CheckpointError
from robustcli.regular import strict_loads

MAX_HEADER = 100_000_000  # bytes; the limit of the format itself
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


def encode(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, str]]:
    """(file, aliases): each distinct tensor once.

    ``aliases[name]`` is the name under which the same tensor was written. Non-contiguous tensors and views
    are written as what they show. Raises ValueError for what the format cannot hold: sparse, quantised or
    meta tensors, the name ``__metadata__``.
    """
    payload: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_name: dict[tuple[Any, ...], str] = {}
    storages: set[tuple[str, int]] = set()
    for name, tensor in tensors.items():
        t = _plain(name, tensor)
        identity = (str(t.device), t.data_ptr(), t.dtype, tuple(t.shape), t.stride())
        if t.numel() and first_name.setdefault(identity, name) != name:
            aliases[name] = first_name[identity]
            continue
        storage = (str(t.device), t.untyped_storage().data_ptr())
        payload[name] = t.to("cpu").contiguous()
        if storage in storages:  # a second view of one storage gets its own bytes
            payload[name] = payload[name].clone()
        storages.add(storage)
    try:
        return st.save(payload), aliases
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"the safetensors format cannot hold these tensors: {error}") from error


def decode(data: bytes, aliases: Mapping[str, str], where: str) -> dict[str, Tensor]:
    """The inverse of `encode`: tied tensors come back as one tensor. Raises CheckpointError E-CKPT-FORMAT."""
    check_header(data, where)
    try:
        tensors: dict[str, Tensor] = st.load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        _bad(f"not a readable safetensors file ({error})", where)
    for name, target in aliases.items():
        if name in tensors or target not in tensors:
            _bad(f"tied tensor {name!r} does not match the file", where)
        tensors[name] = tensors[target]
    return tensors


def check_header(data: bytes, where: str) -> None:
    """numel * itemsize = bytes of each tensor; tensors lie side by side, and nothing follows the last.

    Costs memory for the header only. Raises CheckpointError E-CKPT-FORMAT.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(MAX_HEADER, len(data) - 8):
        _bad(f"header length {length} does not fit into a file of {len(data)} bytes", where)
    try:
        header = strict_loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        _bad(f"header is not JSON ({error})", where)
    if not isinstance(header, dict):
        _bad("header is not a mapping", where)
    spans = sorted(_span(name, entry, where) for name, entry in header.items() if name != "__metadata__")
    end = 0
    for start, stop, name in spans:
        if start != end:
            _bad(f"hole or overlap before tensor {name!r}", where)
        end = stop
    if end != len(data) - 8 - length:
        _bad(f"tensors end at byte {end}, the file holds {len(data) - 8 - length}", where)


def _plain(name: str, tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(
            f"tensor {name!r} is sparse, quantised or without data; a checkpoint holds plain tensors"
        )
    if name == "__metadata__":
        raise ValueError("the tensor name '__metadata__' is reserved by the safetensors format")
    return tensor.detach().resolve_conj().resolve_neg()


def _span(name: str, entry: Any, where: str) -> tuple[int, int, str]:
    """(first byte, last byte + 1, name) of one tensor, its size proven from dtype and shape."""
    try:
        bits, shape, (start, stop) = BITS[entry["dtype"]], entry["shape"], entry["data_offsets"]
        sizes = [*shape, start, stop]
    except (KeyError, TypeError, ValueError):
        _bad(f"header entry of {name!r} is malformed", where)
    if any(type(n) is not int or not 0 <= n < 1 << 63 for n in sizes) or len(shape) > 64:
        _bad(f"header entry of {name!r} has an impossible number", where)
    if (stop - start) * 8 != math.prod(shape) * bits:
        _bad(f"tensor {name!r} of shape {shape} does not fit into {stop - start} bytes", where)
    return start, stop, name


def _bad(what: str, where: str, cause: BaseException | None = None) -> NoReturn:
    raise CheckpointError(
        what, where=where, hint="the file is damaged or not what its name says", code="E-CKPT-FORMAT"
    ) from cause
