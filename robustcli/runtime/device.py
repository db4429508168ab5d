"""Devices: pick one by name, describe all of them; describing never fails."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robustcli.errors import ResourceError, UsageError
from robustcli.runtime.precision import bf16_native, cpu_capability

_NAMES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?", re.ASCII)


def pick_device(name: str = "auto") -> torch.device:
    """auto = cuda, else mps, else cpu; `cuda`, `cuda:N`, `mps`, `cpu` as named. A tiny kernel proves that the device works.

    Raises UsageError: not a device name; ResourceError E-DEVICE: not there or not working, saying what is there.
    """
    if not _NAMES.fullmatch(name):
        raise UsageError(
            f"unknown device {name!r}", where="device", hint="use auto, cpu, mps, cuda or cuda:N"
        )
    if name == "auto":
        name = "cuda" if cuda_count() else "mps" if _mps() else "cpu"
    there = ", ".join(["cpu", *(["mps"] if _mps() else []), *(f"cuda:{i}" for i in range(cuda_count()))])
    device = torch.device(name)
    missing = ""
    if device.type == "cuda" and (device.index or 0) >= cuda_count():
        missing = why_no_cuda() or f"there are {cuda_count()} CUDA devices"
    if device.type == "mps" and not _mps():
        missing = "this PyTorch or this machine has no MPS"
    if missing:
        raise ResourceError(
            f"no device {name}: {missing}", where="device", hint=f"here: {there}", code="E-DEVICE"
        )
    try:
        float(torch.ones(1, device=device).add(1).sum())
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ResourceError(
            f"device {name} does not work: {reason}",
            where="device",
            hint="device=cpu works everywhere",
            code="E-DEVICE",
        ) from error
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def threads(n: int | None = None) -> int:
    """Set the CPU threads of PyTorch (None leaves them) and return how many there are. Raises UsageError: n < 1."""
    if n is not None:
        if n < 1:
            raise UsageError(f"threads={n}: at least 1 is needed", where="threads")
        torch.set_num_threads(n)
    return torch.get_num_threads()


def cuda_count() -> int:
    """Usable CUDA devices; 0 also when the driver fails."""
    return asked(lambda: torch.cuda.device_count() if torch.cuda.is_available() else 0)[0] or 0


def why_no_cuda() -> str:
    """Why there is no CUDA device, in plain words; empty when there is one."""
    if cuda_count():
        return ""
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return "this PyTorch was built without CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all of them"
    if not Path("/proc/driver/nvidia/version").exists() and not Path("/dev/nvidiactl").exists():
        return "no NVIDIA driver found"
    return "the NVIDIA driver does not answer this PyTorch (too old, or no GPU visible)"


def describe_devices() -> list[dict[str, Any]]:
    """One mapping per device, the CPU first; fields that cannot be had are None. Never raises.

    Keys: device, name, memory (bytes), free (bytes), bf16 (native), capability; cpu also cores, threads; cuda also tf32,
    multiprocessors, cuda, cudnn, nccl, driver; `errors` lists what went wrong.
    """
    found = [_describe_cpu()]
    if _mps():
        found.append(
            {
                "device": "mps",
                "name": "Apple GPU",
                "memory": None,
                "free": None,
                "bf16": False,
                "capability": None,
                "errors": [],
            }
        )
    return found + [_describe_cuda(index) for index in range(cuda_count())]


def asked(question: Callable[[], Any]) -> tuple[Any, str]:
    """(answer, "") or (None, why not): a driver, a missing file or an odd build must not break a description."""
    try:
        return question(), ""
    except Exception as error:  # noqa: BLE001  (drivers raise anything; the reason is returned, not lost)
        return None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def cpu_name() -> str:
    """Model name of the CPU, or the architecture where the system does not tell."""
    text = asked(lambda: Path("/proc/cpuinfo").read_text("utf-8", "replace"))[0] or ""
    named = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else asked(platform.machine)[0] or "unknown"


def _describe_cpu() -> dict[str, Any]:
    page = asked(lambda: os.sysconf("SC_PAGE_SIZE"))[0] or 0
    questions: dict[str, Callable[[], Any]] = {
        "name": cpu_name,
        "cores": lambda: len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads,
        "memory": lambda: os.sysconf("SC_PHYS_PAGES") * page,
        "free": lambda: os.sysconf("SC_AVPHYS_PAGES") * page,
        "bf16": lambda: bf16_native(torch.device("cpu")),
        "capability": cpu_capability,
    }
    return _answers("cpu", questions)


def _describe_cuda(index: int) -> dict[str, Any]:
    properties = asked(lambda: torch.cuda.get_device_properties(index))[0]
    questions: dict[str, Callable[[], Any]] = {
        "name": lambda: properties.name,
        "memory": lambda: properties.total_memory,
        "free": lambda: torch.cuda.mem_get_info(index)[0],
        "bf16": lambda: bf16_native(torch.device("cuda", index)),
        "capability": lambda: f"{properties.major}.{properties.minor}",
        "tf32": lambda: properties.major >= 8,
        "multiprocessors": lambda: properties.multi_processor_count,
        "cuda": lambda: torch.version.cuda,
        "cudnn": torch.backends.cudnn.version,
        "nccl": nccl_version,
        "driver": driver_version,
    }
    return _answers(f"cuda:{index}", questions)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked to do; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def process_memory() -> int | None:
    """The largest resident size of this process so far, bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most allocated so far, elsewhere the largest resident size of this process; 0 where nobody tells."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else process_memory() or 0


def nccl_version() -> str | None:
    """Version of NCCL inside this PyTorch, None without it."""
    version: Callable[[], tuple[int, ...]] = torch.cuda.nccl.version
    return ".".join(map(str, version())) if torch.version.cuda else None


def driver_version() -> str | None:
    """Version of the NVIDIA kernel driver, None when the system does not tell."""
    text = asked(lambda: Path("/proc/driver/nvidia/version").read_text("utf-8", "replace"))[0] or ""
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d[\d.]+)", text)
    return found[1] if found else None


def _answers(device: str, questions: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    answers = {key: asked(question) for key, question in questions.items()}
    return {
        "device": device,
        **{key: value for key, (value, _) in answers.items()},
        "errors": [f"{key}: {why}" for key, (_, why) in answers.items() if why],
    }


def _mps() -> bool:
    return bool(asked(torch.backends.mps.is_available)[0])
