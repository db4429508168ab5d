"""Examples: a bounded file, chosen by ids alone, that comes back as it was or not at all."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robustcli.errors import CheckpointError
from robustcli.store.examples import (
    ROOM,
    Example,
    Examples,
    chosen,
    place,
    read_examples,
    sealed_examples,
    write_examples,
)


def example(k: int, shape: tuple[int, int, int] = (2, 2, 1)) -> Example:
    change = np.full(shape, 0.25 + k / 64, np.float16)
    return Example(k, "a\nb", "c", 0.5, np.full(shape, k, np.uint8), change)


def test_the_choice_depends_on_ids_alone() -> None:
    rows = [example(k) for k in range(100)]
    first = [row.id for row in chosen(rows, 8)]
    assert len(first) == 8 and first == sorted(first) and max(first) > 20, "not the first ones"
    random.Random(0).shuffle(rows)
    assert [row.id for row in chosen([*rows, *rows], 8)] == first
    halves = [chosen(rows[:50], 8), chosen(rows[50:], 8)]
    assert [row.id for row in chosen([*halves[0], *halves[1]], 8)] == first
    assert sorted(range(100), key=place)[:8] == sorted(first, key=place)
    assert chosen([], 8) == [] and chosen(rows, 0) == []


def test_large_images_are_fewer_or_none() -> None:
    rows = [example(k, (512, 512, 3)) for k in range(8)]
    assert len(chosen(rows, 8)) == ROOM // (3 * 3 * 512 * 512) == 1
    assert chosen([example(0, (2000, 2000, 3))], 8) == []


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        replace(
            example(k),
            clean=draw.integers(0, 256, (3, 4, 5), dtype=np.uint8).transpose(1, 2, 0),
            change=draw.uniform(-1, 1, (3, 4, 5)).astype(np.float16).transpose(1, 2, 0),
        )
        for k in (3, 5)
    ]  # as they come out of a network: channels first in memory
    write_examples(tmp_path / "examples-0.safetensors", Examples(rows, "linf", "<title>", "seal"))
    found = read_examples(tmp_path / "examples-0.safetensors")
    assert (found.norm, found.title, found.seal) == ("linf", "<title>", "seal")
    for row, again in zip(rows, found.rows, strict=True):
        assert (row.id, row.true, row.predicted, row.distance) == (
            again.id,
            again.true,
            again.predicted,
            again.distance,
        )
        assert np.array_equal(row.clean, again.clean) and np.array_equal(row.change, again.change)


def test_other_evaluations_and_damaged_files_do_not_count(tmp_path: Path) -> None:
    said: list[str] = []
    for k, seal in enumerate(("ours", "theirs", "ours")):
        write_examples(tmp_path / f"examples-{k}.safetensors", Examples([example(k)], "l2", seal=seal))
    damaged = tmp_path / "examples-2.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    assert [row.id for row in sealed_examples(tmp_path, "ours", said.append)] == [0]
    assert len(said) == 1 and "examples-2.safetensors does not count" in said[0]
    for content in (b"", b"{}", (tmp_path / "examples-0.safetensors").read_bytes() + b"x"):
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_examples(damaged)
