from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustcli.errors import CheckpointError
from robustcli.regular import read_regular
from robustcli.store.tensorfile import check_header, decode, encode

DTYPES = [
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def same_bits(a: Tensor, b: Tensor) -> bool:
    raw = [t.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def round_trip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    data, aliases = encode(tensors)
    return decode(data, aliases, "test")


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=4),
    view=st.sampled_from(["plain", "transposed", "strided", "expanded", "slice"]),
    seed=st.integers(0, 2**31),
)
def test_every_dtype_shape_and_view(dtype: torch.dtype, shape: list[int], view: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(0, 256, [*shape, 2 * max(1, dtype.itemsize)], generator=generator, dtype=torch.uint8)
    t = (t % 2).to(torch.bool) if dtype is torch.bool else t.view(dtype)
    if view == "transposed":
        t = t.movedim(-1, 0)
    elif view == "strided":
        t = t[..., ::2]
    elif view == "expanded":
        t = t.unsqueeze(0).expand(3, *t.shape)
    elif view == "slice":
        t = t[..., 1:]
    got = round_trip({"a.b": t})["a.b"]
    assert same_bits(got, t)  # NaN payloads and signed zeros included
    assert got.is_contiguous()


def test_zero_dim_empty_and_no_tensor() -> None:
    state = {
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 3, dtype=torch.int64),
        "nan": torch.tensor([float("nan"), -0.0]),
    }
    got = round_trip(state)
    assert all(same_bits(got[name], state[name]) for name in state)
    assert got["scalar"].shape == ()
    assert round_trip({}) == {}


def test_tied_tensors_stay_tied_and_overlapping_views_get_their_own_bytes() -> None:
    weight = torch.randn(4, 4)
    state = {
        "embed": weight,
        "head": weight,
        "row": weight[1],
        "transposed": weight.t(),
        "flat": weight.view(-1),
    }
    data, aliases = encode(state)
    assert aliases == {"head": "embed"}
    got = decode(data, aliases, "test")
    assert got["head"] is got["embed"]
    assert all(same_bits(got[name], state[name]) for name in state)
    assert got["row"].data_ptr() != got["embed"][1].data_ptr()


def test_parameters_and_gradients_are_not_dragged_along() -> None:
    layer = torch.nn.Linear(3, 2)
    got = round_trip(dict(layer.named_parameters()))
    assert not any(t.requires_grad for t in got.values())
    assert same_bits(got["weight"], layer.weight.detach())


@pytest.mark.parametrize(
    "bad",
    [
        {"s": torch.eye(2).to_sparse()},
        {"m": torch.empty(2, device="meta")},
        {"__metadata__": torch.zeros(1)},
        {"c": torch.zeros(1, dtype=torch.complex128)},
    ],
)
def test_what_the_format_cannot_hold_is_refused(bad: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="sparse|reserved|cannot hold"):
        encode(bad)


def file(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD_HEADERS = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "length 0": file(b"", length=0),
    "length bomb": file({}, length=2**63),
    "length 100 GB": file({}, length=10**11),
    "length one too long": file({}, length=3),
    "not json": file(b"{{{{"),
    "not utf-8": file(b'{"\xff\xfe": 1}'),
    "a list": file([]),
    "a number": file(b"12"),
    "depth bomb": file(b"[" * 100_000),
    "repeated key": file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"1234",
    ),
    "NaN": file(b'{"a": NaN}'),
    "entry not a mapping": file({"a": 1}),
    "unknown dtype": file({"a": entry("F31")}, b"1234"),
    "dtype a list": file({"a": entry([])}, b"1234"),  # type: ignore[arg-type]
    "huge shape": file({"a": entry(shape=[2**62, 2**62])}, b"1234"),
    "negative side": file({"a": entry(shape=[-1, -1])}, b"1234"),
    "bool side": file({"a": entry(shape=[True])}, b"1234"),
    "float side": file({"a": entry(shape=[1.0])}, b"1234"),
    "text shape": file({"a": entry(shape="1")}, b"1234"),
    "too small": file({"a": entry(offsets=(0, 2))}, b"12"),
    "reversed": file({"a": entry(offsets=(4, 0))}, b"1234"),
    "three offsets": file({"a": entry(offsets=(0, 4, 8))}, b"1234"),
    "overlap": file({"a": entry(), "b": entry(offsets=(2, 6))}, b"123456"),
    "same bytes twice": file({"a": entry(), "b": entry()}, b"1234"),
    "hole": file({"a": entry(), "b": entry(offsets=(8, 12))}, b"1" * 12),
    "truncated": file({"a": entry()}, b"123"),
    "extended": file({"a": entry()}, b"12345"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers_are_refused_before_parsing(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_header(BAD_HEADERS[name], "f")
    assert (caught.value.code, caught.value.exit_code) == ("E-CKPT-FORMAT", 4)
    with pytest.raises(CheckpointError):
        decode(BAD_HEADERS[name], {}, "f")


def test_good_header_of_the_library_passes_with_metadata() -> None:
    assert decode(file({"__metadata__": {"a": "b"}, "a": entry()}, b"\0\0\x80?"), {}, "f")["a"].tolist() == [
        1.0
    ]


def test_aliases_must_fit() -> None:
    data, _ = encode({"a": torch.zeros(1)})
    for aliases in ({"b": "c"}, {"a": "a"}):
        with pytest.raises(CheckpointError, match="tied"):
            decode(data, aliases, "f")


def test_read_regular_refuses_links_fifos_directories_and_long_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    (tmp_path / "link").symlink_to("f")
    os.mkfifo(tmp_path / "fifo")
    for name, code in (
        ("link", "E-CKPT-FORMAT"),
        ("fifo", "E-CKPT-FORMAT"),
        (".", "E-CKPT-FORMAT"),
        ("none", "E-CKPT-MISSING"),
        ("a\0b", "E-CKPT-FORMAT"),
    ):
        with pytest.raises(CheckpointError) as caught:
            read_regular(tmp_path / name, 100)
        assert caught.value.code == code, name
    with pytest.raises(CheckpointError, match="limit"):
        read_regular(path, 4)
    with pytest.raises(CheckpointError, match="expected 4 bytes, got 5") as caught:
        read_regular(path, 4, exactly=4)
    assert caught.value.code == "E-CKPT-HASH"
