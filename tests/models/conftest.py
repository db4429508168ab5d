"""One thread for each test: the machine is shared with the other workers of pytest-xdist."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import torch

from robustcli.models.info import ModelInfo
from robustcli.store import convert, weights


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def info() -> ModelInfo:
    return ModelInfo(3, 3, 8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture
def converter_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Foreign files are converted here; tests/store/test_foreign_weights.py has the process of its own."""

    def run(path: Path, folder: Path) -> int:
        body, before, report = path.read_bytes(), os.getcwd(), {"outcome": "ok", "detail": ""}
        os.chdir(folder)
        try:
            convert.convert(io.BytesIO(body), len(body), lambda size: None)
        except Exception as error:
            report["outcome"], report["detail"] = convert.classify(error)
        finally:
            os.chdir(before)
        (folder / "report.json").write_text(json.dumps(report))
        return 0

    monkeypatch.setattr(weights, "_run_converter", run)
