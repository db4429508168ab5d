from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.errors import CheckpointError, NumericsError
from robustcli.store import manifest
from robustcli.store.manifest import Manifest

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
FILES = {"model.safetensors": ("a" * 64, 100), "ema.safetensors": ("b" * 64, 0)}
DATA = manifest.encode(Manifest(12, FILES, {"model": {"b": "a"}}, {"step": 12, "x": [1.5, None]}))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.integers(0, 10**18 - 1))
def test_round_trip(meta: dict[str, Any], step: int) -> None:
    data = manifest.encode(Manifest(step, FILES, {"model": {"b": "a"}, "ema": {}}, meta))
    got = manifest.parse(data, "m")
    assert (got.step, got.files, got.aliases, got.meta) == (step, FILES, {"model": {"b": "a"}}, meta)
    assert manifest.encode(got) == data


def test_no_changed_byte_passes() -> None:
    """Every single bit of the document, exhaustively."""
    for index in range(len(DATA)):
        for bit in range(8):
            changed = bytearray(DATA)
            changed[index] ^= 1 << bit
            with pytest.raises(CheckpointError):
                manifest.parse(bytes(changed), "m")
    for end in range(len(DATA)):
        with pytest.raises(CheckpointError):
            manifest.parse(DATA[:end], "m")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_checkpoint_error(data: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        manifest.parse(data, "m")
    assert caught.value.exit_code == 4


def test_a_newer_schema_is_named() -> None:
    document = {**json.loads(DATA), "schema_version": 2}
    with pytest.raises(CheckpointError, match="schema_version 2; this version of robustcli reads 1"):
        manifest.parse(json.dumps(document).encode(), "m")


def test_what_cannot_be_written() -> None:
    with pytest.raises(NumericsError, match=r"meta\.a\.0"):
        manifest.encode(Manifest(1, {}, {}, {"a": [float("nan")]}))
    with pytest.raises(ValueError, match="tensor group"):
        manifest.encode(Manifest(1, {}, {}, {"a": "x" * manifest.MAX_BYTES}))
    with pytest.raises(ValueError, match="identifier"):
        manifest.file_name("a/b")


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "manifest.json", "wb") as file:
        file.truncate(manifest.MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="limit"):
        manifest.read(tmp_path)
