"""Weights from outside.

Plain formats are read. Formats that can run code are refused, or converted in a cage. No payload ever runs.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robustcli.errors import CheckpointError, PolicyError
from robustcli.store import convert, weights
from robustcli.store.names import find
from robustcli.store.weights import read_weights, without_prefixes

needs_safe_torch = pytest.mark.skipif(
    weights.torch_version() < weights.SAFE_TORCH, reason="foreign files need torch >= 2.10"
)
STATE = {
    "w": torch.arange(6.0).reshape(2, 3),
    "n": torch.tensor(3),
    "half": torch.ones(2, dtype=torch.bfloat16),
}


@pytest.fixture
def caged(monkeypatch: pytest.MonkeyPatch, forked: Any) -> None:
    """The converter in a forked child instead of a new interpreter.

    It has the same code and limits, but does not import torch again.
    """

    def run(command: list[str], *, cwd: str, timeout: float, **rest: Any) -> SimpleNamespace:
        def body() -> int:
            os.chdir(cwd)
            return 1 if convert.main(command[4], json.loads(command[5])) else 0

        return SimpleNamespace(returncode=forked.run(body))

    monkeypatch.setattr(weights.subprocess, "run", run)


def equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return got.keys() == expected.keys() and all(
        got[n].dtype == t.dtype and torch.equal(got[n], t) for n, t in expected.items()
    )


def test_safetensors_and_prefixes(tmp_path: Path) -> None:
    save_file({f"module._orig_mod.{name}": t for name, t in STATE.items()}, tmp_path / "a.safetensors")
    (tmp_path / "link.safetensors").symlink_to("a.safetensors")
    assert equal(read_weights(tmp_path / "a.safetensors"), STATE)
    assert equal(read_weights(tmp_path / "link.safetensors"), STATE), "a cache of downloads holds links"
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert without_prefixes(mixed) == mixed, "a prefix that only some names have is part of the names"


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    data = path.read_bytes()
    for bad in (
        data[:-1],
        data + b"\0",
        b"",
        b"PK\3\4" + data,
        b"\xff" * 8 + data[8:],
        pickle.dumps({"w": 1}),
    ):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError) as caught:
            read_weights(path)
        assert caught.value.exit_code == 4


def npz(path: Path, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path: Path, compressed: bool) -> None:
    arrays = {
        "module.w": np.arange(6.0, dtype=">f8").reshape(2, 3),
        "module.f": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    }
    arrays |= {
        "module.s": np.float32(2.5),
        "module.e": np.zeros((0, 2), np.uint8),
        "module.b": np.array([True, False]),
        "module.h": np.ones(1, np.float16),
    }
    got = read_weights(npz(tmp_path / "a.npz", compressed, **arrays))
    assert {name: t.tolist() for name, t in got.items()} == {
        name.removeprefix("module."): a.tolist() for name, a in arrays.items()
    }
    assert (
        got["w"].dtype is torch.float64
        and got["s"].shape == ()
        and got["h"].dtype is torch.float16
        and got["f"].is_contiguous()
    )


class Touch:
    """Unpickling this runs a shell command, if anything unpickles it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def npy(header: str, body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + body


def test_hostile_npz(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    good = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"1234")
    bodies = {
        "object array": None,
        "shape bomb": npy(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999,), }", b"12345678"
        ),
        "shape overflow": npy(
            f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**62}, {2**62}), }}", b"12345678"
        ),
        "negative": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }", b"12345678"),
        "code in header": npy(f"__import__('os').system('touch {canary}')"),
        "nested header": npy("(" * 9000),
        "text": npy("{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }", b"1" * 16),
        "record": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", b"1234"),
        "void (bfloat16)": npy("{'descr': '|V2', 'fortran_order': False, 'shape': (1,), }", b"12"),
        "version 3": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"1234", b"\3\0"),
        "too long": good + b"5",
        "too short": good[:-1],
        "not npy": b"hello",
        "empty": b"",
    }
    for name, body in bodies.items():
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w") as archive:
            if body is None:
                file = io.BytesIO()
                np.save(file, np.array([Touch(canary)], dtype=object), allow_pickle=True)
                body = file.getvalue()
            archive.writestr("w.npy", body)
        with pytest.raises(CheckpointError) as caught:
            read_weights(path)
        assert caught.value.code == "E-CKPT-FORMAT", name
    path.write_bytes(b"not a zip")
    with pytest.raises(CheckpointError):
        read_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", good)
    with pytest.raises(CheckpointError, match="not an array"):
        read_weights(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "w.npy",
            npy("{'descr': '|u1', 'fortran_order': False, 'shape': (80000000,), }") + bytes(80_000_000),
        )
    with pytest.raises(CheckpointError, match="100 times"):
        read_weights(path)
    assert not canary.exists()


def test_what_is_no_weight_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "dcp").mkdir()
    for name, match in (
        ("none.safetensors", "no such file"),
        ("none.pt", "no such file"),
        ("a.txt", "unknown weight format"),
        ("dcp", "run:PATH"),
    ):
        with pytest.raises(CheckpointError, match=match) as caught:
            read_weights(tmp_path / name)
        assert caught.value.exit_code == 4
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Touch(tmp_path / "canary")))
    for place in (tmp_path / "dcp", Path("https://example.org/w.safetensors")):
        with pytest.raises(PolicyError) as refused:
            read_weights(place, allow_pickle=True)
        assert refused.value.exit_code == 9
    os.mkfifo(tmp_path / "fifo.pt")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_weights(tmp_path / "fifo.pt", allow_pickle=True)
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match="no tensor"):
        read_weights(tmp_path / "empty.safetensors")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("suffix", weights.CODE_FORMATS)
def test_refused_by_default_and_on_old_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save(STATE, path)
    monkeypatch.setattr(weights.subprocess, "run", lambda *a, **k: pytest.fail("something was started"))
    with pytest.raises(PolicyError, match="may run code") as caught:
        read_weights(path)
    assert caught.value.exit_code == 9 and "--allow-pickle-weights" in caught.value.hint
    monkeypatch.setattr(weights, "torch_version", lambda: (2, 9))
    with pytest.raises(PolicyError, match=r"torch 2\.9 cannot load a .* safely \(CVE-2025-32434") as caught:
        read_weights(path, allow_pickle=True)
    assert caught.value.exit_code == 9


WRAPPED: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "bare": lambda s: s,
    "ordered": lambda s: collections.OrderedDict(s),
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "best": 0.5},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}},
    "net": lambda s: {"net": s, "acc": 93.1},
    "namespace": lambda s: {
        "state_dict": s,
        "args": argparse.Namespace(lr=1, out=Path("a"), nested={"a": [1]}),
    },
    "numpy scalars": lambda s: {
        "net": s,
        "acc": np.float64(93.1),
        "epoch": np.int64(3),
        "best": np.bool_(True),
        "curve": np.ones(3),
    },
    "average beside raw": lambda s: {
        "model": {n: t * 2 for n, t in s.items()},
        "model_ema": s,
        "ema_decay": 0.9,
    },
    "twice": lambda s: {"model": {"state_dict": s}},
    "parallel": lambda s: {"state_dict": {f"module.{n}": t for n, t in s.items()}},
    "parameters": lambda s: {n: torch.nn.Parameter(t) if t.is_floating_point() else t for n, t in s.items()},
}


@needs_safe_torch
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_convert(tmp_path: Path, caged: None, wrapper: str) -> None:
    torch.save(WRAPPED[wrapper](STATE), tmp_path / "a.pt")
    read = read_weights(tmp_path / "a.pt", allow_pickle=True)
    assert equal(find(read, STATE, where="a.pt").tensors, STATE)


@needs_safe_torch
def test_of_raw_and_averaged_weights_the_user_chooses(tmp_path: Path, caged: None) -> None:
    raw = {n: t * 2 for n, t in STATE.items()}
    path, said = tmp_path / "a.pt", []
    torch.save({"state_dict": raw, "state_dict_ema": STATE, "epoch": 3}, path)
    both = read_weights(path, allow_pickle=True)
    assert equal(find(both, STATE, where="a.pt", say=said.append).tensors, STATE)
    assert "'state_dict_ema'; taken: 'state_dict_ema'" in said[0] and "weights_kind" in said[0]
    assert equal(find(both, STATE, where="a.pt", kind="averaged").tensors, STATE)
    assert equal(find(both, STATE, where="a.pt", kind="raw").tensors, raw)
    torch.save({"state_dict": raw}, path)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        read_weights(path, allow_pickle=True, kind="averaged")
    torch.save({"model_ema": raw}, path)
    with pytest.raises(CheckpointError, match="averaged weights only"):
        read_weights(path, allow_pickle=True, kind="raw")
    torch.save({"epoch": 3, "optimizer": {}}, path)
    with pytest.raises(
        CheckpointError, match="holds epoch, optimizer, and no tensor; expected a state"
    ) as caught:
        read_weights(path, allow_pickle=True)
    assert "damaged" not in caught.value.hint, "the file is sound"


@needs_safe_torch
def test_old_format_tied_and_strided_tensors_convert(tmp_path: Path, caged: None) -> None:
    big = torch.randn(4, 4)
    state = {"a": big, "b": big, "t": big.t(), "row": big[1]}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert equal(read_weights(tmp_path / "a.pth", allow_pickle=True), state)


class Eval(Touch):
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.eval, (f"__import__('os').system('touch {self.canary}')",)


class GetAttr(Touch):
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.getattr, (Touch(self.canary), "__class__")


class Popen(Touch):
    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.Popen, (["touch", str(self.canary)],)


class Write(Touch):
    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.open, (str(self.canary), "w")


class Legacy(Touch):
    def __reduce__(self) -> tuple[Any, ...]:
        return torch.load, (str(self.canary), None)


def global_call(module: str, name: str, argument: str) -> bytes:
    """Protocol 2, as torch writes it: module.name(argument)."""
    text = argument.encode()
    return (
        b"\x80\x02c"
        + f"{module}\n{name}\n".encode()
        + b"X"
        + len(text).to_bytes(4, "little")
        + text
        + b"\x85R."
    )


def torch_zip(path: Path, program: bytes, **extra: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": program, "byteorder": b"little", "version": b"3\n", **extra}.items():
            archive.writestr(f"a/{name.replace('_pkl', '.pkl')}", data)


def set_item_on_a_tensor(path: Path) -> None:
    """The SETITEM opcode applied to something that is no dict."""
    torch.save(torch.zeros(4), path)
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data[:-1] + b"K\x02K\x07s." if name.endswith("data.pkl") else data)


HOSTILE: dict[str, Callable[[Path, Path], object]] = {
    "os.system": lambda path, canary: torch.save({"w": Touch(canary)}, path),
    "eval": lambda path, canary: torch.save({"w": Eval(canary)}, path),
    "getattr chain": lambda path, canary: torch.save({"w": GetAttr(canary)}, path),
    "Popen": lambda path, canary: torch.save({"w": Popen(canary)}, path),
    "open for writing": lambda path, canary: torch.save({"w": Write(canary)}, path),
    "torch.load inside": lambda path, canary: torch.save({"w": Legacy(canary)}, path),
    "raw pickle": lambda path, canary: path.write_bytes(pickle.dumps(Touch(canary), protocol=2)),
    "old format": lambda path, canary: torch.save(
        {"w": Touch(canary)}, path, _use_new_zipfile_serialization=False
    ),
    "posix.system by opcode": lambda path, canary: torch_zip(
        path, global_call("posix", "system", f"touch {canary}")
    ),
    "builtins.exec by opcode": lambda path, canary: torch_zip(
        path, global_call("builtins", "exec", f"open({str(canary)!r}, 'w')")
    ),
    "torch.hub by opcode": lambda path, canary: torch_zip(
        path, global_call("torch.hub", "load_state_dict_from_url", f"file://{canary}")
    ),
    "torch.jit by opcode": lambda path, canary: torch_zip(
        path, global_call("torch.jit", "load", str(canary))
    ),
    "numpy.load by opcode": lambda path, canary: torch_zip(path, global_call("numpy", "load", str(canary))),
    "whole module": lambda path, canary: torch.save(torch.nn.Linear(2, 2), path),
    "TorchScript": lambda path, canary: torch_zip(path, b"\x80\x02}.", constants_pkl=b"\x80\x02)."),
    "stride bomb": lambda path, canary: torch.save({"w": torch.zeros(1).expand(10**12)}, path),
    "SETITEM on a tensor": lambda path, canary: set_item_on_a_tensor(path),
}


@needs_safe_torch
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_corpus(tmp_path: Path, caged: None, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path, canary = tmp_path / "a.pt", tmp_path / "canary"
    HOSTILE[name](path, canary)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises((PolicyError, CheckpointError)) as caught:
        read_weights(path, allow_pickle=True)
    assert isinstance(caught.value, PolicyError) or name == "SETITEM on a tensor"
    assert ("its tensors claim 4000000000000 bytes" in caught.value.what) == (name == "stride bomb"), (
        "refused before anything is allocated"
    )
    assert ("a TorchScript archive is a program" in caught.value.what) == (name == "TorchScript")
    assert caught.value.exit_code in (4, 9)
    assert not canary.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert "forbidden" not in capfd.readouterr().err, (
        "weights_only itself must refuse; the audit hook is the second wall"
    )


@needs_safe_torch
def test_deflated_zip_bomb(tmp_path: Path, caged: None) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/data.pkl", "a/data/0"):
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(64):
                    file.write(bytes(1 << 20))
    with pytest.raises(PolicyError, match="compressed"):
        read_weights(path, allow_pickle=True)


@needs_safe_torch
@pytest.mark.parametrize(
    "body", [b"", b"hello world, this is text", b"\x80\x02", b"PK\x03\x04" + b"\0" * 100, b"\x80\x02}q\0."]
)
def test_damaged_foreign_files(tmp_path: Path, caged: None, body: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(body)
    with pytest.raises((CheckpointError, PolicyError)):
        read_weights(path, allow_pickle=True)


@needs_safe_torch
def test_truncated_and_mixed_files_are_damaged_not_dangerous(tmp_path: Path, caged: None) -> None:
    path = tmp_path / "a.pt"
    torch.save(STATE, path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="not readable"):
        read_weights(path, allow_pickle=True)
    torch.save({"w": torch.zeros(1), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="entry 'epoch' is a int"):
        read_weights(path, allow_pickle=True)


def test_the_cage_holds_without_weights_only(
    tmp_path: Path, forked: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Were weights_only broken again: no program, no socket, no endless memory or file."""
    canary = tmp_path / "canary"

    def attempt(action: Callable[[], object]) -> int:
        def body() -> int:
            convert.confine(1000)
            action()
            return 0

        return int(forked.run(body))

    import socket

    assert attempt(lambda: os.system(f"touch {canary}")) == 99
    assert attempt(lambda: subprocess.run(["touch", str(canary)], check=False)) == 99
    assert attempt(lambda: socket.create_connection(("127.0.0.1", 9), timeout=1)) == 99
    assert attempt(lambda: torch.empty(1 << 32, dtype=torch.uint8)) == 99
    assert attempt(lambda: (tmp_path / "long").write_bytes(bytes(64 << 20))) == 99
    assert attempt(lambda: sum(range(10))) == 0
    said = capfd.readouterr().err
    assert (
        "forbidden: os.system" in said and "forbidden: subprocess.Popen" in said and "File too large" in said
    )
    assert not canary.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are a Linux matter")
def test_the_cage_has_no_network(forked: Any) -> None:
    def body() -> int:
        before = os.stat("/proc/self/ns/net").st_ino
        convert._leave_network()
        if os.stat("/proc/self/ns/net").st_ino == before:
            return 77
        with open("/proc/self/net/dev") as file:
            return len([line for line in file if ":" in line and not line.strip().startswith("lo:")])

    code = forked.run(body)
    if code == 77:
        pytest.skip("namespaces are not permitted here")
    assert code == 0


@needs_safe_torch
def test_in_a_real_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One true subprocess, isolated: right tensors, nothing of our environment, an empty working folder."""
    seen: dict[str, Any] = {}
    real = subprocess.run

    def spy(command: list[str], **options: Any) -> Any:
        seen.update(options, command=command)
        return real(command, **options)

    monkeypatch.setattr(weights.subprocess, "run", spy)
    monkeypatch.setenv("SECRET_TOKEN", "x")
    torch.save({"state_dict": STATE}, tmp_path / "a.pt")
    assert equal(read_weights(tmp_path / "a.pt", allow_pickle=True), STATE)
    assert "-I" in seen["command"] and "SECRET_TOKEN" not in seen["env"] and "HOME" not in seen["env"]
    assert Path(seen["cwd"]) != Path.cwd() and not Path(seen["cwd"]).exists()
