from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robustcli.errors import ResourceError, UsageError
from robustcli.runtime import device
from robustcli.runtime.device import (
    describe_devices,
    pick_device,
    threads,
    why_no_cuda,
)
from robustcli.runtime.machine import answer_or_reason, cpu_name, driver_version


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CUDA devices that describe themselves and cannot compute."""
    properties = SimpleNamespace(
        name="Test GPU", total_memory=8 << 30, major=9, minor=0, multi_processor_count=132
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (1 << 30, 8 << 30))


def test_cpu_without_a_gpu(no_gpu: None) -> None:
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_missing_device_says_what_is_there(no_gpu: None, name: str) -> None:
    with pytest.raises(ResourceError, match=f"no device {name}: .+; device; here: cpu$") as caught:
        pick_device(name)
    assert (caught.value.code, caught.value.exit_code) == ("E-DEVICE", 6)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:1234", "CPU", "xpu", "cuda:0 "])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UsageError, match="unknown device") as caught:
        pick_device(name)
    assert caught.value.exit_code == 2


def test_too_large_an_index_and_a_broken_device(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match="there are 2 CUDA devices; device; here: cpu.*cuda:0, cuda:1"):
        pick_device("cuda:2")

    def broken(*args: object, **options: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nlong story")

    monkeypatch.setattr(torch, "ones", broken)
    for name in ("auto", "cuda:1"):
        with pytest.raises(ResourceError, match="does not work: CUDA error: no kernel image") as caught:
            pick_device(name)
        assert "long story" not in str(caught.value) and caught.value.code == "E-DEVICE"


def test_auto_prefers_cuda_then_mps(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[str] = []
    monkeypatch.setattr(torch, "ones", lambda n, device: (asked_for.append(str(device)), torch.zeros(n))[1])
    assert pick_device("auto") == torch.device("cuda", 0)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    assert asked_for == ["cuda", "cuda:1", "mps"], "each device proves itself with a kernel"


def test_description_of_this_cpu() -> None:
    cpu = describe_devices()[0]
    assert (
        cpu["device"] == "cpu"
        and cpu["name"]
        and cpu["cores"] >= 1
        and cpu["threads"] == torch.get_num_threads()
    )
    assert isinstance(cpu["bf16"], bool) and cpu["errors"] == []
    assert 1 << 28 < cpu["free"] + (1 << 28) <= cpu["memory"] + (1 << 28)


def test_description_of_gpus(two_gpus: None) -> None:
    gpus = describe_devices()[-2:]
    assert [gpu["device"] for gpu in gpus] == ["cuda:0", "cuda:1"]
    assert gpus[1]["name"] == "Test GPU" and gpus[1]["memory"] == 8 << 30 and gpus[1]["free"] == 1 << 30
    assert gpus[1]["capability"] == "9.0" and gpus[1]["tf32"] is True and gpus[1]["multiprocessors"] == 132


def test_description_never_raises(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> Any:
        raise RuntimeError("driver\nlost")

    for owner, name in [
        (torch.cuda, "get_device_properties"),
        (torch.cuda, "mem_get_info"),
        (torch.backends.mps, "is_available"),
        (os, "sysconf"),
        (device, "Path"),
    ]:
        monkeypatch.setattr(owner, name, fails)
    found = describe_devices()
    assert len(found) == 3 and found[0]["memory"] is None and found[2]["name"] is None
    assert "free: RuntimeError: driver" in found[2]["errors"]
    monkeypatch.setattr(torch.cuda, "device_count", fails)
    assert [entry["device"] for entry in describe_devices()] == ["cpu"]


def test_why_no_cuda(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert why_no_cuda() == "this PyTorch was built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" in why_no_cuda()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert why_no_cuda() == "no NVIDIA driver found"
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert "does not answer" in why_no_cuda()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert why_no_cuda() == ""


def test_threads() -> None:
    before = threads()
    try:
        assert threads(1) == 1 == torch.get_num_threads()
        for n in (0, -1):
            with pytest.raises(UsageError, match="at least 1"):
                threads(n)
    finally:
        threads(before)


def test_asked_and_cpu_name_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer_or_reason(lambda: 3) == (3, "")
    assert answer_or_reason(lambda: 1 / 0) == (None, "ZeroDivisionError: division by zero")

    def gone(self: Path, *args: object) -> str:
        raise FileNotFoundError(2, "gone")

    monkeypatch.setattr(Path, "read_text", gone)
    assert cpu_name()
    assert driver_version() is None
    monkeypatch.setattr(
        Path, "read_text", lambda self, *args: "processor : 0\nmodel name\t: Some CPU @ 2 GHz \n"
    )
    assert cpu_name() == "Some CPU @ 2 GHz"
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *args: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\n",
    )
    assert driver_version() == "550.54.15"
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda self, *args: "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.1.2  Release\n",
    )
    assert driver_version() == "570.1.2"
