"""Devices: pick one by name, describe all of them; describing never fails."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from robustcli.errors import ResourceError, UsageError
from robustcli.runtime.machine import answer_or_reason, cores, cpu_name, driver_version
from robustcli.runtime.precision import bf16_native, cpu_capability

_NAMES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?", re.ASCII)
_MPS = {
    "device": "mps",
    "name": "Apple GPU",
    "memory": None,
    "free": None,
    "bf16": False,
    "capability": None,
}


def pick_device(name: str = "auto") -> torch.device:
    """The named device; auto is cuda, else mps, else cpu. A tiny kernel proves that it works.

    name: auto, cpu, mps, cuda or cuda:N.
    Raises UsageError: not a device name; ResourceError E-DEVICE: not there or not working, saying what is
    there.
    """
    if not _NAMES.fullmatch(name):
        raise UsageError(
            f"unknown device {name!r}", where="device", hint="use auto, cpu, mps, cuda or cuda:N"
        )
    if name == "auto":
        name = _fastest()
    device = torch.device(name)
    reason = _why_missing(device)
    if reason:
        present = f"here: {', '.join(_present())}"
        raise ResourceError(f"no device {name}: {reason}", where="device", hint=present, code="E-DEVICE")
    _check_working(device, name)
    if device.type == "cuda":
        return torch.device("cuda", device.index or 0)
    return device


def _fastest() -> str:
    if cuda_count():
        return "cuda"
    return "mps" if _mps() else "cpu"


def _present() -> list[str]:
    names = [f"cuda:{index}" for index in range(cuda_count())]
    if _mps():
        names.insert(0, "mps")
    return ["cpu", *names]


def _why_missing(device: torch.device) -> str:
    """Why the device is not there, in plain words; empty when it is."""
    if device.type == "cuda" and (device.index or 0) >= cuda_count():
        return why_no_cuda() or f"there are {cuda_count()} CUDA devices"
    if device.type == "mps" and not _mps():
        return "this PyTorch or this machine has no MPS"
    return ""


def _check_working(device: torch.device, name: str) -> None:
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


def threads(n: int | None = None) -> int:
    """Set the CPU threads of PyTorch (None leaves them); returns how many there are.

    Raises UsageError: n < 1.
    """
    if n is not None:
        if n < 1:
            raise UsageError(f"threads={n}: at least 1 is needed", where="threads")
        torch.set_num_threads(n)
    return torch.get_num_threads()


def threads_each(processes: int) -> int:
    """CPU threads of each of several processes that share this machine; `OMP_NUM_THREADS` overrules it."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    if re.fullmatch(r"[1-9]\d{0,3}", named, re.ASCII):
        return int(named)
    return max(1, (cores() or 1) // processes)


def cuda_count() -> int:
    """Usable CUDA devices; 0 also when the driver fails."""
    if not answer_or_reason(torch.cuda.is_available)[0]:
        return 0
    return answer_or_reason(torch.cuda.device_count)[0] or 0


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

    Keys: device, name, memory (bytes), free (bytes), bf16 (native), capability; cpu also cores, threads; cuda
    also tf32, multiprocessors, cuda, cudnn, nccl, driver; `errors` lists what went wrong.
    """
    described = [_describe_cpu()]
    if _mps():
        described.append(dict(_MPS, errors=[]))
    return described + [_describe_cuda(index) for index in range(cuda_count())]


def _describe_cpu() -> dict[str, Any]:
    page = answer_or_reason(lambda: os.sysconf("SC_PAGE_SIZE"))[0] or 0
    questions: dict[str, Callable[[], Any]] = {
        "name": cpu_name,
        "cores": cores,
        "threads": torch.get_num_threads,
        "memory": lambda: os.sysconf("SC_PHYS_PAGES") * page,
        "free": lambda: os.sysconf("SC_AVPHYS_PAGES") * page,
        "bf16": lambda: bf16_native(torch.device("cpu")),
        "capability": cpu_capability,
    }
    return _answers("cpu", questions)


def _describe_cuda(index: int) -> dict[str, Any]:
    properties = answer_or_reason(lambda: torch.cuda.get_device_properties(index))[0]
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
    largest = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    if sys.platform == "darwin":  # bytes there, KiB elsewhere
        return largest
    return largest * 1024


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most allocated so far, elsewhere the largest resident size of this process.

    0 where the system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return process_memory() or 0


def nccl_version() -> str | None:
    """Version of NCCL inside this PyTorch, None without it."""
    version: Callable[[], tuple[int, ...]] = torch.cuda.nccl.version
    if not torch.version.cuda:
        return None
    return ".".join(map(str, version()))


def _answers(device: str, questions: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    answers = {key: answer_or_reason(question) for key, question in questions.items()}
    return {
        "device": device,
        **{key: value for key, (value, _) in answers.items()},
        "errors": [f"{key}: {why}" for key, (_, why) in answers.items() if why],
    }


def _mps() -> bool:
    return bool(answer_or_reason(torch.backends.mps.is_available)[0])
