"""Mutated checkpoints: refused with CheckpointError or loaded identically.

Never another exception, a silent change or a hang.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import shutil
import struct
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcli.errors import CheckpointError
from robustcli.store.checkpoint import save_checkpoint
from robustcli.store.snapshot import load_checkpoint

FILES = ("model.safetensors", "optimizer.safetensors", "manifest.json")
Mutation = Callable[[Path, Path, random.Random], None]


def state(seed: int) -> dict[str, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 8, generator=g)
    model = {
        "w": weight,
        "tied": weight,
        "half": torch.randn(7, generator=g).bfloat16(),
        "n": torch.tensor(seed),
        "none": torch.empty(0, 2),
    }
    return {
        "model": model,
        "optimizer": {
            "m": torch.randn(30, generator=g, dtype=torch.float64),
            "on": torch.tensor([True, False]),
        },
    }


def rewrite(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip_bit(at: Path, other: Path, r: random.Random) -> None:
    def change(data: bytearray) -> None:
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)

    rewrite(at / r.choice(FILES), change)


def flip_bytes(at: Path, other: Path, r: random.Random) -> None:
    def change(data: bytearray) -> None:
        for _ in range(r.randint(1, 8)):
            data[r.randrange(len(data))] = r.randrange(256)

    rewrite(at / r.choice(FILES), change)


def truncate(at: Path, other: Path, r: random.Random) -> None:
    path = at / r.choice(FILES)
    os.truncate(path, r.randrange(path.stat().st_size))


def extend(at: Path, other: Path, r: random.Random) -> None:
    path = at / r.choice(FILES)
    with open(path, "ab") as file:
        file.write(r.choice([b"\0", b" ", b"\n", r.randbytes(r.randint(1, 5000))]))


def swap_files(at: Path, other: Path, r: random.Random) -> None:
    name = r.choice(FILES)
    shutil.copy(other / name, at / name)


def swap_groups(at: Path, other: Path, r: random.Random) -> None:
    os.rename(at / FILES[0], at / "x")
    os.rename(at / FILES[1], at / FILES[0])
    os.rename(at / "x", at / FILES[1])


def swap_directories(at: Path, other: Path, r: random.Random) -> None:
    shutil.rmtree(at)
    shutil.copytree(other, at)


def delete(at: Path, other: Path, r: random.Random) -> None:
    (at / r.choice(FILES)).unlink()


def empty(at: Path, other: Path, r: random.Random) -> None:
    (at / r.choice(FILES)).write_bytes(b"")


def extra_file(at: Path, other: Path, r: random.Random) -> None:
    (at / r.choice(["notes.txt", "ema.safetensors", ".DS_Store"])).write_bytes(r.randbytes(20))


def odd_file(at: Path, other: Path, r: random.Random) -> None:
    path = at / r.choice(FILES)
    kind = r.randrange(3)
    path.unlink()
    if kind == 0:
        path.symlink_to(other / path.name)
    elif kind == 1:
        os.mkfifo(path)
    else:
        path.mkdir()


def zero_block(at: Path, other: Path, r: random.Random) -> None:
    def change(data: bytearray) -> None:  # what a lost page looks like after a power failure
        start = r.randrange(len(data))
        data[start : start + 512] = bytes(len(data[start : start + 512]))

    rewrite(at / r.choice(FILES), change)


def header_bomb(at: Path, other: Path, r: random.Random) -> None:
    def change(data: bytearray) -> None:
        data[:8] = struct.pack(
            "<Q", r.choice([0, 1, 2**63, 2**40, 99_999_999, len(data), len(data) - 8, 2**64 - 1])
        )

    name = r.choice(FILES[:2])
    rewrite(at / name, change)
    if r.random() < 0.5:
        forge(at, lambda d: None)


def edit(document: dict[str, Any], r: random.Random) -> None:
    """One wrong field; every kind of value that a hand or a bug may write."""
    values = [
        None,
        -1,
        2**70,
        1.5,
        True,
        "",
        "x" * 64,
        [],
        {},
        "../../etc/passwd",
        "model.safetensors\0",
        [[]] * 3,
    ]
    entry = document["files"]["model.safetensors"]
    name = r.choice(
        [
            "../model.safetensors",
            "/etc/passwd.safetensors",
            "a/b.safetensors",
            "a\nb.safetensors",
            ".safetensors",
            "con\0.safetensors",
            "x.safetensors",
        ]
    )
    edits: list[Callable[[], Any]] = [
        lambda: entry.__setitem__("sha256", r.choice([*values, entry["sha256"].upper(), "0" * 64])),
        lambda: entry.__setitem__("size", r.choice([*values, entry["size"] + 1, entry["size"] - 1, 10**15])),
        lambda: document.__setitem__("step", r.choice([*values, 2])),
        lambda: document.__setitem__(
            r.choice(["aliases", "files", "format", "schema_version", "meta"]),
            r.choice([v for v in values if v is not True]),
        ),
        lambda: document["meta"].__setitem__("shapes", {"w": [9, 9]}),
        lambda: document["files"].__setitem__(name, document["files"].pop("model.safetensors")),
        lambda: document["files"].__setitem__(name, dict(entry)),
        lambda: document.__setitem__("extra", 1),
        lambda: document.pop(r.choice(sorted(document))),
        lambda: document["aliases"].__setitem__(
            "model", r.choice([{"tied": "none such"}, {"tied": 1}, {"w": "n"}, {}, [], {"tied": "n"}])
        ),
        lambda: document["aliases"].__setitem__("ghost", {}),
    ]
    r.choice(edits)()


def edit_manifest(at: Path, other: Path, r: random.Random) -> None:
    document = json.loads((at / "manifest.json").read_bytes())
    edit(document, r)
    (at / "manifest.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def forge(at: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A changed manifest with all hashes made right again."""
    document = json.loads((at / "manifest.json").read_bytes())
    for name, entry in document["files"].items():
        data = (at / name).read_bytes()
        entry.update(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    change(document)
    document.pop("sha256", None)
    rest = json.dumps(document, indent=1, sort_keys=True) + "\n"
    document["sha256"] = hashlib.sha256(rest.encode()).hexdigest()
    (at / "manifest.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def reformat_manifest(at: Path, other: Path, r: random.Random) -> None:
    text = (at / "manifest.json").read_text()
    same = json.loads(text)
    line = '"step": 1'
    spelled = [
        json.dumps(same),
        json.dumps(same, indent=2, sort_keys=True),
        text.replace("\n", "\r\n"),
        text.replace("meta", "m\\u0065ta"),
        *(text.replace(line, line + more) for more in (".0", ',\n "step": 1', "e0", "9" * 5000)),
        text.replace(line, '"step": NaN'),
        "[" * 50_000,
    ]
    (at / "manifest.json").write_text(r.choice(spelled), newline="")


HARMLESS = (extra_file,)
MUTATIONS: tuple[Mutation, ...] = (
    flip_bit, flip_bytes, truncate, extend, swap_files, swap_groups, swap_directories, delete, empty,
    extra_file, odd_file, zero_block, header_bomb, edit_manifest, reformat_manifest,
)  # fmt: skip


def judge(at: Path, expected: dict[str, dict[str, Tensor]], meta: dict[str, Any]) -> str:
    """The word refused or identical, or what went wrong."""
    start = time.monotonic()
    try:
        got = load_checkpoint(at)
    except CheckpointError as error:
        outcome = (
            "refused"
            if error.code in ("E-CKPT-HASH", "E-CKPT-MISSING", "E-CKPT-FORMAT") and error.exit_code == 4
            else f"code {error.code}"
        )
    except BaseException:
        return traceback.format_exc()
    else:
        outcome = (
            "identical" if got.meta == meta and same_state(got.groups, expected) else "silently different"
        )
    return outcome if time.monotonic() - start < 2 else "hang"


def same_state(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    flat_a, flat_b = (
        {(group, name): t for group, tensors in state.items() for name, t in tensors.items()}
        for state in (a, b)
    )
    return flat_a.keys() == flat_b.keys() and all(
        t.dtype == flat_b[key].dtype and torch.equal(t, flat_b[key]) for key, t in flat_a.items()
    )


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutants(tmp_path: Path, count: int, forked: Any) -> None:
    a, b, meta = tmp_path / "a", tmp_path / "b", {"step": 1, "shapes": {"w": [8, 8]}, "loss": 0.25}
    source, other = save_checkpoint(a, 1, state(1), meta), save_checkpoint(b, 2, state(2), meta)
    assert judge(source, state(1), meta) == "identical"

    def body() -> int:
        bound_memory(256 << 20)
        work, bad, outcomes = tmp_path / "w" / source.name, 0, []
        for index in range(count):
            mutation = MUTATIONS[index % len(MUTATIONS)]
            shutil.copytree(source, work, symlinks=True)
            mutation(work, other, random.Random(index))
            outcomes.append(judge(work, state(1), meta))
            expected = "identical" if mutation in HARMLESS or same_files(work, source) else "refused"
            if outcomes[-1] != expected:
                bad += 1
                print(f"mutant {index} {mutation.__name__}: {outcomes[-1]}")
            shutil.rmtree(work)
        assert outcomes.count("refused") > 0.85 * count
        return min(bad, 90)

    assert forked.run(body, seconds=120) == 0


def same_files(a: Path, b: Path) -> bool:
    return all((a / name).is_file() and (a / name).read_bytes() == (b / name).read_bytes() for name in FILES)


def bound_memory(extra: int) -> None:
    """More than `extra` bytes of new address space is a MemoryError from here on: a bomb cannot hide."""
    import resource

    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra, mapped + extra))


def test_forged_manifests_never_leave_the_directory(tmp_path: Path) -> None:
    """With right hashes everywhere the content may differ.

    But only CheckpointError may come out, and no other file may be read.
    """
    meta = {"step": 1}
    source = save_checkpoint(tmp_path / "a", 1, state(1), meta)
    (tmp_path / "a" / "secret.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    refused = 0
    for index in range(60):
        work = tmp_path / "w" / source.name
        shutil.copytree(source, work)
        r = random.Random(index)
        forge(work, lambda document, r=r: edit(document, r))  # type: ignore[misc]
        outcome = judge(work, state(1), meta)
        assert outcome in ("refused", "identical", "silently different"), outcome
        refused += outcome == "refused"
        shutil.rmtree(work)
    assert refused > 40
    forge(
        source,
        lambda document: document["files"].__setitem__(
            "../secret.safetensors", document["files"]["model.safetensors"]
        ),
    )
    with pytest.raises(CheckpointError, match="not allowed"):
        load_checkpoint(source)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from /proc")
def test_memory_stays_below_three_times_the_file(tmp_path: Path, forked: Any) -> None:
    size = 48 << 20
    path = save_checkpoint(
        tmp_path, 1, {"model": {"a": torch.zeros(size // 8), "b": torch.ones(size // 8)}}, {}
    )

    def kilobytes(key: str) -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(key))

    def body() -> int:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed would hold the file without a new page
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = kilobytes("VmRSS")
        load_checkpoint(path)
        used = (kilobytes("VmHWM") - before) * 1024
        print(f"peak {used / size:.2f} x file size")
        return 0 if size // 2 < used < 3 * size else 1

    assert forked.run(body) == 0
