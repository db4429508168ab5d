"""Tests on a pretended CUDA device. Where a real one is, those that are marked `cuda` take their place."""

import pytest
import torch
from commands import cli
from pretended import pretended_cuda

from robustcli.core.graphs import CudaRecorder

__all__ = ["cli"]


def _pretend():
    if torch.cuda.is_available():
        pytest.skip("a real CUDA device is here")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pretended_cuda() as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CudaRecorder, "broken", False)  # its graphs refuse to be recorded; real ones may follow
        yield device
    torch.set_num_threads(threads)


device = pytest.fixture(_pretend)
device_of_module = pytest.fixture(_pretend, scope="module")
