from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustcli.errors import UsageError
from robustcli.runtime import seed, source
from robustcli.runtime.seed import environment, seed_all
from robustcli.runtime.source import code_hash, hash_tree


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    python, numpy_state, torch_state, backend = (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
        torch.backends.cudnn,
    )
    flags = torch.are_deterministic_algorithms_enabled(), backend.deterministic, backend.benchmark
    yield
    random.setstate(python)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)
    torch.use_deterministic_algorithms(flags[0])
    backend.deterministic, backend.benchmark = flags[1:]


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_seeds_repeat_and_differ() -> None:
    seen = {}
    for value in (0, 1, 2**32, 2**32 + 1, 2**63 - 1, 0):
        seed_all(value)
        first = draws()
        assert seen.setdefault(value, first) == first
    assert all(len({draw[i] for draw in seen.values()}) == 5 for i in range(2)), "high bits count"
    assert len({draw[2] for draw in seen.values()}) == 3, "torch's CPU generator takes the low 32 bits"


@pytest.mark.parametrize("value", [-1, 2**63])
def test_seeds_out_of_range(value: int) -> None:
    with pytest.raises(UsageError, match="not in") as caught:
        seed_all(value)
    assert caught.value.exit_code == 2


def test_deterministic_is_set_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seed_all(0, deterministic=True)
    assert (
        torch.are_deterministic_algorithms_enabled()
        and torch.backends.cudnn.deterministic
        and not torch.backends.cudnn.benchmark
    )
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    seed_all(0, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "the user's choice stays"
    seed_all(0)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.benchmark, "kernels are timed where no run has to be repeated bit for bit"


def test_environment_is_complete_json() -> None:
    found = environment()
    assert set(found) == {
        "robustcli", "code", "python", "platform", "cpu", "threads", "torch", "torchvision", "numpy",
        "safetensors", "cuda", "cudnn", "driver", "gpus",
    }  # fmt: skip
    assert (
        found["torch"] == str(torch.__version__)
        and found["code"] == code_hash()
        and found["threads"] == torch.get_num_threads()
    )
    assert json.loads(json.dumps(found)) == found


def test_environment_without_home_proc_or_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object, **options: object) -> Any:
        raise FileNotFoundError(2, "gone")

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    for name in ("HOME", "USER", "PATH", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "read_text", gone)
    monkeypatch.setattr(Path, "home", gone)
    monkeypatch.setattr(seed.metadata, "version", missing)
    monkeypatch.setattr(seed.platform, "platform", gone)
    monkeypatch.setattr(torch.cuda, "device_count", gone)
    found = environment()
    assert (
        found["robustcli"] is None
        and found["torchvision"] is None
        and found["platform"] is None
        and found["gpus"] is None
    )
    assert found["cpu"] and found["torch"]


def test_the_code_hash_sees_content_and_names(tmp_path: Path) -> None:
    def tree(files: dict[str, str]) -> str:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return hash_tree(root)

    base = tree({"a.py": "x", "b/c.py": "y"})
    assert base == tree({"b/c.py": "y", "a.py": "x", "notes.txt": "not code"}) and len(base) == 64
    variants = [
        {"a.py": "x", "b/c.py": "z"},
        {"a.py": "x", "b/d.py": "y"},
        {"a.py": "xy", "b/c.py": ""},
        {"a.py": "x"},
    ]
    assert len({base, *map(tree, variants)}) == 5
    assert hash_tree(tmp_path / "none") == "unknown"


def test_the_code_hash_is_of_this_package_and_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    code_hash.cache_clear()
    assert source.PACKAGE.name == "robustcli" and (source.PACKAGE / "errors.py").is_file()
    first = code_hash()
    monkeypatch.setattr(source, "hash_tree", lambda root: pytest.fail("hashed twice"))
    assert code_hash() == first == hash_tree(source.PACKAGE)


def test_an_unreadable_source_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "no")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert hash_tree(tmp_path) == "unknown"
