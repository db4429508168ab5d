"""What tests see of a GPU: nothing, unless they are marked `cuda`."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robustcli.runtime.device import cuda_count, pick_device


def test_other_tests_see_no_gpu():
    assert cuda_count() == 0 and pick_device("auto").type != "cuda"


@pytest.mark.cuda
def test_these_tests_see_it():
    assert cuda_count() > 0 and pick_device("auto").type == "cuda"


@pytest.fixture
def conftest(monkeypatch):
    """The conftest of all tests, as it is loaded on a machine with two GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    path = Path(__file__).resolve().parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("conftest_of_all", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    module._hidden.undo()


def seen():
    return torch.cuda.is_available(), torch.cuda.device_count(), os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize("marked", [True, False])
def test_a_gpu_is_there_during_a_marked_test_alone(conftest, marked):
    assert seen() == (False, 0, "")
    item = SimpleNamespace(get_closest_marker=lambda name: marked and name == "cuda")
    running = conftest.pytest_runtest_protocol(item)
    next(running)
    assert seen() == ((True, 2, "0,1") if marked else (False, 0, ""))
    with pytest.raises(StopIteration):
        running.send(None)
    assert seen() == (False, 0, "")
