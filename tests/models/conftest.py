"""One thread for each test: the machine is shared with the other workers of pytest-xdist."""

from __future__ import annotations

import pytest
import torch

from robustcli.models.info import ModelInfo


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def info() -> ModelInfo:
    return ModelInfo(3, 3, 8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
