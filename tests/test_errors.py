"""Which failures are which."""

from __future__ import annotations

import pytest
import torch

from robustcli.errors import exit_code_of, out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:120] DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 9 bytes"
        ),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_to_run_out_of_memory(error: BaseException) -> None:
    assert out_of_memory(error) and exit_code_of(error) == 6


@pytest.mark.parametrize(
    "error",
    [
        None,
        ValueError("out of memory"),
        RuntimeError("shapes do not fit"),
        OSError("No space left on device"),
    ],
)
def test_what_is_no_lack_of_memory(error: BaseException | None) -> None:
    assert not out_of_memory(error)
