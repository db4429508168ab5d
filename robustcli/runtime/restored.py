"""What a training sets in the whole process, put back afterwards for whoever called it from Python."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from robustcli.runtime.generators import generators_as_before
from robustcli.runtime.precision import fp32_as_before

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_one_at_a_time = threading.RLock()


@contextmanager
def process_as_before() -> Iterator[None]:
    """On exit threads, generators, determinism, cuDNN's choices and TF32 are as before, after an error too.

    Inside, gradients are on and inference mode is off. Threads come in one after another: what a training
    sets is of the whole process.
    """
    with _one_at_a_time, fp32_as_before():
        cudnn: Any = torch.backends.cudnn
        threads, variable = torch.get_num_threads(), os.environ.get(_CUBLAS)
        kernels = cudnn.deterministic, cudnn.benchmark
        strict, warns = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        try:
            with (
                generators_as_before(),
                torch.random.fork_rng(devices),
                torch.inference_mode(mode=False),
                torch.enable_grad(),
            ):
                yield
        finally:
            torch.set_num_threads(threads)
            cudnn.deterministic, cudnn.benchmark = kernels
            if torch.are_deterministic_algorithms_enabled() != strict:
                torch.use_deterministic_algorithms(strict, warn_only=warns)
            if variable is None:
                os.environ.pop(_CUBLAS, None)
