"""Contracts of a real device. Each body also runs on the CPU, so that no typo waits for a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from commands import cli

from robustcli.reporting.pictures import training
from robustcli.runtime.precision import allow_tf32

__all__ = ["cli"]


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the training."""
    monkeypatch.setattr(training, "training_curves", lambda *given, **options: None)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, or the first GPU, which then rounds no factor of a product in fp32."""
    if request.param == "cuda":
        allow_tf32(False)
        return torch.device("cuda", 0)
    return torch.device("cpu")


@pytest.fixture
def compiler(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU what is compiled runs as it is: a compilation there takes longer than all other tests."""
    if device.type == "cpu":
        monkeypatch.setattr(torch, "compile", lambda module, **options: module)
