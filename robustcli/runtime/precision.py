"""Which floating type the work runs in; bf16 only where the hardware has it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustcli.errors import UsageError
from robustcli.runtime.switch import Switch

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def resolve(precision: str, device: torch.device, warn: Callable[[str], None] = _warn) -> torch.dtype:
    """auto = bf16 where `device` computes in it natively, else fp32; a named type as named.

    Args:
        precision: auto | fp32 | tf32 | bf16 | fp16; tf32 is float32 under `tf32_products(True)`.
        device: where the work runs.
        warn: told when bf16 is asked for where it is emulated (slower, same answers as bf16 elsewhere).

    Raises UsageError: unknown name, fp16 on a CPU, tf32 where there is none.
    """
    if precision == "auto":
        precision = "bf16" if bf16_native(device) else "fp32"
    if precision not in DTYPES:
        raise UsageError(
            f"unknown precision {precision!r}", where="precision", hint="use auto, fp32, tf32, bf16 or fp16"
        )
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 does not train on a CPU", where="precision", hint="use auto, bf16 or fp32")
    if precision == "tf32" and not tf32_native(device):
        raise UsageError(
            f"{device} has no tf32",
            where="precision",
            hint="use auto or fp32; tf32 needs CUDA with compute capability 8.0",
        )
    if precision == "bf16" and not bf16_native(device):
        warn(f"bf16 is emulated on {device}: slower than fp32; precision=auto picks the faster one")
    return DTYPES[precision]


def tf32_native(device: torch.device) -> bool:
    """Whether `device` can round factors of fp32 products to 10 bits: CUDA from compute capability 8.0 on."""
    return (
        device.type == "cuda"
        and getattr(torch.version, "hip", None) is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


class _Fp32(NamedTuple):
    """How CUDA computes products and convolutions of fp32.

    matmul, conv, rnn: "ieee", "tf32" or "none", as torch's newer settings say it. cudnn: the same as its
    older one does, which answers for convolutions and recurrent layers in one; None where these differ.
    """

    matmul: str
    conv: str
    rnn: str
    cudnn: bool | None

    @classmethod
    def of(cls, allowed: bool) -> _Fp32:
        """The same for all: old and new settings agree, or code that asks for the old ones would fail."""
        precision = "tf32" if allowed else "ieee"
        return cls(precision, precision, precision, allowed)

    @classmethod
    def present(cls) -> _Fp32:
        """What is set now."""
        cudnn: Any = torch.backends.cudnn
        return cls(
            torch.backends.cuda.matmul.fp32_precision,
            cudnn.conv.fp32_precision,
            cudnn.rnn.fp32_precision,
            _old_setting(),
        )

    def set(self) -> None:
        """From now on, in the whole process."""
        cudnn: Any = torch.backends.cudnn
        if self.cudnn is not None:
            cudnn.allow_tf32 = self.cudnn
        torch.backends.cuda.matmul.fp32_precision = self.matmul
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = self.conv, self.rnn


def _old_setting() -> bool | None:
    try:
        return _asked_quietly()
    except RuntimeError:  # someone set convolutions and recurrent layers apart
        return None


def _asked_quietly() -> bool:
    """torch.backends.cudnn.allow_tf32; torch 2.9 and 2.10 warn at the first question, whoever asks it."""
    global _warned
    if _warned:
        return bool(torch.backends.cudnn.allow_tf32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _warned = True
        return bool(torch.backends.cudnn.allow_tf32)


_warned = False
_fp32 = Switch(_Fp32.present, _Fp32.set)


def allow_tf32(allowed: bool) -> None:
    """From now on in this process: may products and convolutions in fp32 use TF32 on CUDA?

    PyTorch's own default allows it for convolutions only.
    """
    _old_setting()  # the first look at it may warn
    _fp32.settle(_Fp32.of(allowed))


@contextmanager
def fp32_as_before() -> Iterator[None]:
    """What `allow_tf32` says inside the block does not hold after it."""
    _old_setting()  # the first look at it may warn
    before = _Fp32.present()
    try:
        yield
    finally:
        _fp32.settle(before)


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """`allow_tf32` inside the block, in the whole process; afterwards the settings are as before.

    A thread that wants another answer waits, see `Switch`.
    """
    with _fp32.held(_Fp32.of(allowed)):
        yield


def bf16_native(device: torch.device) -> bool:
    """Whether matrix products in bf16 run in hardware.

    That is AMX-BF16, AVX512-BF16 or ARM BF16 on a CPU, and compute capability >= 8.0 on CUDA.
    """
    return _bf16_native(device.type, device.index or 0)


@cache
def _bf16_native(kind: str, index: int) -> bool:
    if kind == "cpu":
        has_kernels: Callable[[], bool] = torch.backends.mkldnn.is_available
        return has_kernels() and "bf16" in cpu_features()
    if kind == "cuda" and torch.cuda.is_available():
        if getattr(torch.version, "hip", None) is not None:
            return bool(torch.cuda.is_bf16_supported())
        return torch.cuda.get_device_capability(index) >= (8, 0)
    return False


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """Those of {avx2, avx512, amx, bf16} that the CPU has.

    The first source that answers counts: PyTorch's public table, its private tests, the system's list.
    """
    for source in (_from_public, _from_private, _from_system):
        flags = source()
        if flags is not None:
            return frozenset(flags)
    return frozenset()


def cpu_capability() -> str:
    """``AVX512 + AMX, bf16``: PyTorch's kernel level and what else counts here."""
    shown = {"amx": "AMX", "bf16": "bf16"}
    extra = [text for name, text in shown.items() if name in cpu_features()]
    return " + ".join([torch.backends.cpu.get_cpu_capability(), *extra])


def _from_public() -> set[str] | None:
    table = getattr(torch.cpu, "get_capabilities", lambda: None)()
    if not table:
        return None
    keys = {
        "avx2": ("avx2",),
        "avx512": ("avx512_f",),
        "amx": ("amx_tile",),
        "bf16": ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"),
    }
    return {name for name, aliases in keys.items() if any(table.get(alias) is True for alias in aliases)}


def _from_private() -> set[str] | None:
    tests = {
        "avx2": "_is_avx2_supported",
        "avx512": "_is_avx512_supported",
        "amx": "_is_amx_tile_supported",
        "bf16": "_is_avx512_bf16_supported",
    }
    functions = {name: getattr(torch.cpu, test, None) for name, test in tests.items()}
    if any(function is None for function in functions.values()):
        return None
    flags = {name for name, function in functions.items() if function is not None and function()}
    if "amx" in flags:  # no CPU has AMX tiles without AMX-BF16
        flags.add("bf16")
    return flags


def _from_system() -> set[str] | None:
    try:
        words = set(Path("/proc/cpuinfo").read_text("utf-8", "replace").split())
    except OSError:
        return None
    keys = {
        "avx2": {"avx2"},
        "avx512": {"avx512f"},
        "amx": {"amx_tile"},
        "bf16": {"amx_bf16", "avx512_bf16", "bf16"},
    }
    return {name for name, flags in keys.items() if flags & words}
