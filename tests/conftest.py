"""Tests marked `cuda` need a GPU and are skipped without one. From all others a GPU is hidden.

So the suite gives the same answers everywhere: `device: auto` would compile, and round, in another way.
"""

import os

import pytest
import torch

#: Hundreds of tests train and measure: a page of each would cost more than they do.
os.environ.setdefault("ROBUSTCLI_NO_REPORT", "1")
GPU = torch.cuda.is_available()  # asked before it is hidden
_hidden = pytest.MonkeyPatch()


def _hide():
    """From this process and those that it starts."""
    if GPU:
        _hidden.setenv("CUDA_VISIBLE_DEVICES", "")
        _hidden.setattr(torch.cuda, "is_available", lambda: False)
        _hidden.setattr(torch.cuda, "device_count", lambda: 0)


_hide()


def pytest_collection_modifyitems(items):
    if GPU:
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A test marked `cuda` sees the GPU, and so do its fixtures."""
    if not (GPU and item.get_closest_marker("cuda")):
        return (yield)
    from robustcli.runtime import precision

    _hidden.undo()
    precision._bf16_native.cache_clear()  # a test before may have asked about a hidden GPU
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once in a process
    try:
        return (yield)
    finally:
        _hide()
