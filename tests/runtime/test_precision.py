from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from robustcli.errors import UsageError
from robustcli.runtime import precision
from robustcli.runtime.precision import (
    _Fp32,
    allow_tf32,
    bf16_native,
    cpu_capability,
    cpu_features,
    resolve,
    tf32_native,
    tf32_products,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    for _ in range(2):
        precision.cpu_features.cache_clear()
        precision._bf16_native.cache_clear()
        if _ == 0:
            yield


def features(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(precision, "cpu_features", lambda: frozenset(names))


def no_warning(text: str) -> None:
    pytest.fail(text)


def test_auto_is_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    features(monkeypatch, "bf16")
    assert resolve("auto", CPU, no_warning) is torch.bfloat16
    precision._bf16_native.cache_clear()
    features(monkeypatch, "avx512")
    assert resolve("auto", CPU, no_warning) is torch.float32
    precision._bf16_native.cache_clear()
    features(monkeypatch, "bf16")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve("auto", CPU, no_warning) is torch.float32, "without oneDNN nobody uses the instruction"


@pytest.mark.parametrize(
    ("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)]
)
def test_cuda_capability(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    assert bf16_native(CUDA) is native
    assert resolve("auto", CUDA, no_warning) is (torch.bfloat16 if native else torch.float32)
    assert resolve("fp16", CUDA, no_warning) is torch.float16


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True)])
def test_tf32_is_float32_where_there_is_tf32(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    assert tf32_native(CUDA) is native and not tf32_native(CPU)
    if native:
        assert resolve("tf32", CUDA, no_warning) is torch.float32
    for device in (CPU,) if native else (CPU, CUDA):
        with pytest.raises(UsageError, match="has no tf32"):
            resolve("tf32", device, no_warning)


def test_tf32_is_allowed_only_inside() -> None:
    before = _Fp32.present()
    try:
        for outside in (True, False):
            allow_tf32(outside)
            for inside in (True, False):
                with pytest.raises(ZeroDivisionError), tf32_products(inside):
                    assert _Fp32.present() == _Fp32.of(inside)
                    raise ZeroDivisionError
                assert _Fp32.present() == _Fp32.of(outside)
    finally:
        before.set()


@pytest.fixture
def with_tf32() -> Iterator[None]:
    """Convolutions in TF32, as in a fresh process; commands that ran in this one have turned it off."""
    before = _Fp32.present()
    _Fp32.of(True).set()
    yield
    before.set()


@pytest.mark.usefixtures("with_tf32")
@pytest.mark.parametrize("allowed", [True, False])
def test_a_model_may_ask_for_the_older_settings(allowed: bool) -> None:
    before = _Fp32.present()
    with tf32_products(allowed):
        assert torch.backends.cudnn.allow_tf32 is allowed
        with torch.backends.cudnn.flags(enabled=True, deterministic=True):
            pass
        assert (_Fp32.present().conv == "tf32") is allowed
    assert _Fp32.present() == before and before.cudnn is True


@pytest.mark.usefixtures("with_tf32")
def test_settings_that_a_user_set_apart_come_back() -> None:
    before, cudnn = _Fp32.present(), torch.backends.cudnn
    try:
        cudnn.conv.fp32_precision = "ieee"
        apart = _Fp32.present()
        assert apart.cudnn is None
        with tf32_products(False):
            assert _Fp32.present()[:3] == ("ieee",) * 3
        assert _Fp32.present() == apart
    finally:
        before.set()


def test_a_run_in_fp32_is_fp32(tmp_path: Path) -> None:
    """PyTorch alone lets cuDNN round the factors of convolutions."""
    script = """
import torch
from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.assembly.setting import prepare
from robustcli.terminal.console import Console
words = ("data.name=fake", "ball.eps=0.1", "device=cpu")
loaded = load_config(None, [parse_assignment(word, "test") for word in words], environ={})
prepare(loaded.config, Console(quiet=True))
print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
"""
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert found.stdout == "ieee ieee\n"


def test_rocm_mps_and_a_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not bf16_native(CUDA)
    assert not bf16_native(torch.device("mps"))
    precision._bf16_native.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", "6.0", raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert bf16_native(CUDA)


def test_named_types_and_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    features(monkeypatch)
    warnings: list[str] = []
    assert resolve("fp32", CPU, warnings.append) is torch.float32 and warnings == []
    assert resolve("bf16", CPU, warnings.append) is torch.bfloat16
    assert len(warnings) == 1 and "emulated on cpu" in warnings[0]
    with pytest.warns(UserWarning, match="emulated"):
        resolve("bf16", CPU)
    with pytest.raises(UsageError, match="fp16 does not train on a CPU") as caught:
        resolve("fp16", CPU)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="unknown precision 'half'"):
        resolve("half", CPU)


def test_the_three_sources_agree_on_this_machine() -> None:
    found = [
        flags
        for flags in (precision._from_public(), precision._from_private(), precision._from_system())
        if flags is not None
    ]
    assert found and cpu_features() == found[0]
    x86 = [flags & {"avx2", "avx512", "amx"} for flags in found]
    assert all(flags == x86[0] for flags in x86)
    assert ("bf16" in cpu_capability()) == ("bf16" in cpu_features())


def test_older_torch_and_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision._from_public() is None
    for name in (
        "_is_avx2_supported",
        "_is_avx512_supported",
        "_is_amx_tile_supported",
        "_is_avx512_bf16_supported",
    ):
        monkeypatch.setattr(
            torch.cpu,
            name,
            lambda name=name: name in ("_is_avx2_supported", "_is_amx_tile_supported"),
            raising=False,
        )
    assert cpu_features() == {"avx2", "amx", "bf16"}
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    precision.cpu_features.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda self, *args: "flags : avx2 avx512f avx512_bf16\n")
    assert cpu_features() == {"avx2", "avx512", "bf16"}
    precision.cpu_features.cache_clear()

    def gone(self: Path, *args: object) -> str:
        raise FileNotFoundError(2, "gone")

    monkeypatch.setattr(Path, "read_text", gone)
    assert cpu_features() == frozenset() and not bf16_native(CPU)


def test_the_public_table_knows_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cpu,
        "get_capabilities",
        lambda: {"architecture": "aarch64", "neon": True, "bf16": True, "sve_max_length": 16},
        raising=False,
    )
    assert cpu_features() == {"bf16"}
