"""Seeds of the global generators, and a record of what a result was computed with."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy
import torch

from robustcli.errors import UsageError
from robustcli.runtime.machine import answer_or_reason, cpu_name, driver_version
from robustcli.runtime.source import code_hash


def seed_all(seed: int, deterministic: bool = False) -> None:
    """Seed python, numpy and torch, on all devices.

    With `deterministic`, operations without a deterministic kernel raise. Without it cuDNN times its kernels
    for each new shape and keeps the fastest.
    The CPU generator of torch takes the low 32 bits. Initial weights of layers draw from these generators;
    attacks and data order do not, since their draws are keyed by sample.
    Raises UsageError outside 0 <= seed < 2^63.
    """
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed {seed} is not in [0, 2^63)", where="seed")
    random.seed(seed)
    numpy.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first call
    if deterministic != torch.are_deterministic_algorithms_enabled():
        # Not called without need: the call imports torch's compiler, which takes a second.
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    # The fastest kernels, found by timing: another run may find others, which round differently.
    torch.backends.cudnn.benchmark = not deterministic


def environment() -> dict[str, Any]:
    """What the numbers depend on besides config and data. A value that cannot be had is None; never raises.

    Keys: robustcli, code (SHA-256 of our source), python, platform, cpu, threads, torch, torchvision, numpy,
    safetensors, cuda, cudnn, driver, gpus (names).
    """
    questions: dict[str, Callable[[], Any]] = {
        "robustcli": lambda: metadata.version("robustcli"),
        "code": code_hash,
        "python": platform.python_version,
        "platform": platform.platform,
        "cpu": cpu_name,
        "threads": torch.get_num_threads,
        "torch": lambda: str(torch.__version__),
        "torchvision": lambda: metadata.version("torchvision"),
        "numpy": lambda: metadata.version("numpy"),
        "safetensors": lambda: metadata.version("safetensors"),
        "cuda": lambda: torch.version.cuda,
        "cudnn": torch.backends.cudnn.version,
        "driver": driver_version,
        "gpus": lambda: [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    return {key: answer_or_reason(question)[0] for key, question in questions.items()}
