from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data
from robustcli.data.extra import extra_split
from robustcli.data.images import Decoder
from robustcli.data.mixture import (
    JoinedSplit,
    MixedSplit,
    epoch_batches,
    epoch_size,
    mixed_order,
)
from robustcli.data.sampling import train_order
from robustcli.data.split import MemorySplit, Split
from robustcli.data.stream import StreamSplit
from robustcli.errors import ConfigError, DataError

CPU = torch.device("cpu")
NAMES = ("a", "b", "c")


def memory(
    count: int,
    key: int = 0,
    *,
    classes: tuple[str, ...] = NAMES,
    side: int = 8,
    ids: torch.Tensor | None = None,
) -> MemorySplit:
    pixels = torch.from_numpy(
        np.random.default_rng(key).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    )
    return MemorySplit(pixels, (torch.arange(count) + key) % len(classes), classes, ids=ids)


@pytest.fixture
def streamed(tmp_path: Path, picture) -> Callable[..., StreamSplit]:
    """streamed(7, 100): files of picture(100) … picture(106)."""

    def make(count: int, key: int, **options) -> StreamSplit:
        for k in range(count):
            picture(key + k).save(tmp_path / f"{key + k:04d}.png")
        paths = np.array([os.fsencode(f"{key + k:04d}.png") for k in range(count)])
        return StreamSplit(
            paths, Decoder(str(tmp_path)), (torch.arange(count) + key) % 3, NAMES, (3, 8, 8), **options
        )

    return make


def everything(split: Split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ((x, y, ids),) = split.stream([torch.arange(len(split))], CPU)
    return x, y, ids


def check_stream(mixed: JoinedSplit, parts: list[Split], batches: list[torch.Tensor]) -> None:
    """Every row of every batch is the image, label and id of its position; `parts` are read one by one."""
    x = torch.cat([everything(part)[0] for part in parts])
    y = torch.cat([part.labels for part in parts])
    got = list(mixed.stream(batches, CPU))
    assert len(got) == len(batches)
    for positions, (bx, by, bids) in zip(batches, got, strict=True):
        assert (
            torch.equal(bx, x[positions])
            and torch.equal(by, y[positions])
            and torch.equal(bids, mixed.ids[positions])
        )
        assert bx.dtype == torch.float32 and by.dtype == bids.dtype == torch.int64


def some_batches(total: int, first: int) -> list[torch.Tensor]:
    """Both parts in disorder, one part alone each, a repeated row, none at all."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return [
        order[:5],
        torch.tensor([first - 1, first - 2]),
        torch.tensor([total - 1, first]),
        torch.tensor([0, first, 0]),
        order[5:],
        order[:0],
    ]


# ---- the split ---------------------------------------------------------------------------------------------


def test_labels_and_ids() -> None:
    original, extra = memory(6, ids=torch.tensor([9, 2, 40, 3, 5, 7])), memory(4, 1)
    mixed = MixedSplit(original, extra, 0.5)
    assert len(mixed) == 10 and mixed.classes == NAMES and mixed.shape == (3, 8, 8)
    assert torch.equal(mixed.labels, torch.cat((original.labels, extra.labels)))
    assert torch.equal(mixed.ids[:6], original.ids), "an original image keeps its draws"
    assert mixed.ids[6:].tolist() == [41, 42, 43, 44]
    assert len(set(mixed.ids.tolist())) == 10


def test_mixed_batches_from_memory() -> None:
    original, extra = memory(11), memory(9, 1)
    check_stream(MixedSplit(original, extra, 0.5), [original, extra], some_batches(20, 11))


@pytest.mark.parametrize("workers", [0, 1])
def test_mixed_batches_from_files(streamed, workers: int) -> None:
    original, extra = streamed(11, 0), streamed(9, 300)
    mixed = MixedSplit(streamed(11, 0, workers=workers), streamed(9, 300, workers=workers), 0.5)
    check_stream(mixed, [original, extra], some_batches(20, 11))
    assert not multiprocessing.active_children()


def test_files_beside_memory(streamed) -> None:
    files, held = streamed(11, 0, workers=0), memory(9, 1)
    check_stream(MixedSplit(files, held, 0.5), [files, held], some_batches(20, 11))
    check_stream(MixedSplit(held, files, 0.5), [held, files], some_batches(20, 9))


def test_leaving_early_leaves_no_process(streamed) -> None:
    before = set(multiprocessing.active_children())
    stream = MixedSplit(streamed(6, 0, workers=1), streamed(6, 300, workers=1), 0.5).stream(
        [torch.tensor([k, 6 + k]) for k in range(6)], CPU
    )
    next(stream)
    assert len(set(multiprocessing.active_children()) - before) == 2
    stream.close()
    assert set(multiprocessing.active_children()) <= before


def test_an_unreadable_extra_image_ends_both_streams(streamed, tmp_path: Path) -> None:
    mixed = MixedSplit(streamed(6, 0, workers=1), streamed(6, 300, workers=0), 0.5)
    (tmp_path / "0302.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"0302\.png") as caught:
        list(
            mixed.stream(
                [torch.tensor([0, 6]), torch.tensor([1, 8]), *torch.arange(6).repeat(8).split(1)], CPU
            )
        )  # the worker is far from its end
    # The kept traceback keeps the frames alive: the other part's worker must have been ended, not left to the
    # garbage collector.
    assert not multiprocessing.active_children() and caught.traceback


def test_part_without_images_is_not_read(streamed) -> None:
    mixed = MixedSplit(memory(5), streamed(3, 300, workers=1), 0.5)
    stream = mixed.stream([torch.tensor([1, 2])], CPU)
    next(stream)
    assert not multiprocessing.active_children()
    assert list(mixed.stream([], CPU)) == []


@given(st.lists(st.integers(0, 11), min_size=1, max_size=12), st.data())
@settings(max_examples=30, deadline=None)
def test_subset_keeps_ids_and_pixels(chosen: list[int], data: st.DataObject) -> None:
    mixed = MixedSplit(memory(7), memory(5, 1), 0.5)
    again = data.draw(st.lists(st.integers(0, len(chosen) - 1), min_size=1, max_size=6))
    part = mixed.subset(torch.tensor(chosen)).subset(torch.tensor(again))
    positions = torch.tensor(chosen)[torch.tensor(again)]
    x, y, ids = everything(mixed)
    px, py, pids = everything(part)
    assert (
        torch.equal(px, x[positions]) and torch.equal(py, y[positions]) and torch.equal(pids, ids[positions])
    )
    assert torch.equal(part.ids, pids) and torch.equal(part.labels, py) and len(part) == len(again)


def test_empty_parts() -> None:
    joined = JoinedSplit((memory(0), memory(3, 1), memory(0), memory(2, 2)))
    check_stream(joined, [memory(3, 1), memory(2, 2)], [torch.tensor([4, 0, 3]), torch.tensor([2])])
    assert joined.ids.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="one part"):
        JoinedSplit(())


@pytest.mark.parametrize(
    ("extra", "code", "text"),
    [
        (memory(4, classes=("a", "x", "y")), "E-CLASS", "class 1 is 'x', in the training data 'b'"),
        (memory(4, classes=("a", "c", "b")), "E-CLASS", "class 1 is 'c', in the training data 'b'"),
        (memory(4, classes=("a", "b")), "E-CLASS", "2 classes, 3 in the training data: missing 'c'"),
        (
            memory(4, classes=("a", "b", "c", "d")),
            "E-CLASS",
            "4 classes, 3 in the training data: unexpected 'd'",
        ),
        (memory(4, side=4), "E-SHAPE", "expected 3x8x8, got 3x4x4"),
    ],
)
def test_parts_that_do_not_fit(extra: MemorySplit, code: str, text: str) -> None:
    with pytest.raises(DataError) as caught:
        MixedSplit(memory(4), extra, 0.5)
    assert caught.value.code == code and text in caught.value.what and caught.value.where == "extra data"


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_bad_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio must be in"):
        MixedSplit(memory(4), memory(4), ratio)
    with pytest.raises(ValueError, match="ratio must be in"):
        mixed_order(4, 4, 2, ratio, 0, 0)


# ---- the order ---------------------------------------------------------------------------------------------


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_ratio_zero_is_the_order_of_plain_training(n: int, batch: int, n_extra: int, epoch: int) -> None:
    assume(batch <= n)
    plain = list(train_order(n, 3, epoch)[: n // batch * batch].split(batch))
    assert same(mixed_order(n, n_extra, batch, 0.0, 3, epoch), plain)
    alone, mixed = memory(n, side=1), MixedSplit(memory(n, side=1), memory(n_extra, side=1), 0.0)
    assert same(epoch_batches(alone, batch, 3, epoch), plain) and same(
        epoch_batches(mixed, batch, 3, epoch), plain
    )
    assert epoch_size(alone) == epoch_size(mixed) == n


@given(st.integers(2, 30), st.integers(1, 60), st.integers(2, 12), st.floats(0.05, 0.95), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_counts_and_even_visits(n: int, n_extra: int, batch: int, ratio: float, epochs: int) -> None:
    count = round(ratio * batch)
    assume(batch <= n and 0 < count < batch)
    visits = torch.zeros(n + n_extra, dtype=torch.int64)
    for epoch in range(epochs):
        order = mixed_order(n, n_extra, batch, ratio, 3, epoch)
        assert len(order) == n // batch
        for positions in order:
            assert positions.dtype == torch.int64 and positions.shape == (batch,)
            assert int((positions >= n).sum()) == count
            visits += torch.bincount(positions, minlength=n + n_extra)
        for part in (visits[:n], visits[n:]):  # after every epoch, not only at the end
            assert int(part.max() - part.min()) <= 1
    assert int(visits.sum()) == epochs * (n // batch) * batch


def test_epochs_continue_the_permutation() -> None:
    """24 originals, 6 batches of 2 extra and 2 original: one permutation of 24 lasts for two epochs.

    The next one begins with the third epoch.
    """
    draws = [torch.stack(mixed_order(24, 12, 4, 0.5, 3, epoch)) for epoch in range(4)]
    originals = [d[d < 24] for d in draws]
    assert torch.equal(torch.cat(originals[:2]), train_order(24, 3, 0)) and torch.equal(
        torch.cat(originals[2:]), train_order(24, 3, 1)
    )
    extras = [d[d >= 24] - 24 for d in draws]
    assert all(sorted(part.tolist()) == list(range(12)) for part in extras)
    assert len({tuple(part.tolist()) for part in extras}) == 4, (
        "each pass over the extra images has its own order"
    )


def test_extra_order_is_not_that_of_the_originals() -> None:
    first = torch.stack(mixed_order(64, 64, 4, 0.5, 3, 0))
    assert not torch.equal(first[first < 64], first[first >= 64] - 64)


def test_extra_rows_are_spread_over_the_batch() -> None:
    """Each half, and each quarter, of a batch has its share of the extra rows, to within one."""
    for ratio, share in ((0.25, 4), (0.5, 8), (0.75, 12)):
        (positions,) = mixed_order(16, 99, 16, ratio, 0, 0)
        for size in (2, 4, 8):
            for stretch in positions.split(size):
                assert abs(int((stretch >= 16).sum()) - share * size / 16) < 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first = mixed_order(40, 90, 8, 0.7, 3, 2)
    assert same(first, mixed_order(40, 90, 8, 0.7, 3, 2))
    for other in (mixed_order(40, 90, 8, 0.7, 4, 2), mixed_order(40, 90, 8, 0.7, 3, 1)):
        assert not same(first, other)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((4, 4, 0, 0.5, 0, 0), "batch_size must be in"),
        ((4, 4, 5, 0.5, 0, 0), "batch_size must be in"),
        ((4, 4, 2, 0.5, 0, -1), "epoch >= 0"),
        ((4, 0, 2, 0.5, 0, 0), "1 of 0 extra images"),
        ((4, 4, 4, 0.1, 0, 0), "is 0 of 4 extra images"),
        ((4, 4, 4, 0.95, 0, 0), "is 4 of 4 extra images"),
        ((4, 4, 2, 0.5, -1, 0), "seed must be in"),
        ((4, 4, 2, 0.5, 2**63, 0), "seed must be in"),
    ],
)
def test_bad_orders(arguments: tuple[int, int, int, float, int, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        mixed_order(*arguments)


def test_the_largest_seed() -> None:
    assert torch.stack(mixed_order(8, 8, 4, 0.5, 2**63 - 1, 0)).shape == (2, 4)


# ---- loading -----------------------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path: Path) -> tuple[DataBundle, DataConfig]:
    config = DataConfig(name=f"npz:{save(tmp_path / 'train.npz', 40, 0)}")
    return load_data(config), config


def arrays(count: int, key: int, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(key).integers(0, 256, (count, 3, side, side), dtype=np.uint8), np.arange(
        count
    ) % 3


def save(
    path: Path,
    count: int,
    key: int,
    *,
    classes: tuple[str, ...] = NAMES,
    side: int = 8,
    parts: tuple[str, ...] = (),
) -> Path:
    held = {"classes": np.array(classes)}
    for number, part in enumerate(parts or ("",)):
        held["x" + part], held["y" + part] = arrays(count, key + number, side)
    np.savez(path, **held)
    return path


def rows(x: torch.Tensor) -> list[bytes]:
    return sorted((image * 255).round().to(torch.uint8).numpy().tobytes() for image in x)


@pytest.mark.parametrize("parts", [(), ("_train", "_test"), ("_train", "_val", "_test"), ("_test",)])
def test_every_image_of_an_npz(training, tmp_path: Path, parts: tuple[str, ...]) -> None:
    bundle, config = training
    extra = extra_split(f"npz:{save(tmp_path / 'extra.npz', 12, 50, parts=parts)}", bundle, config)
    x, y, ids = everything(extra)
    stored = [arrays(12, 50 + number) for number in range(max(1, len(parts)))]
    assert len(extra) == 12 * len(stored) and len(set(ids.tolist())) == len(extra)
    assert rows(x) == sorted(image.tobytes() for pixels, _ in stored for image in pixels)
    labels = {
        image.tobytes(): int(label)
        for pixels, known in stored
        for image, label in zip(pixels, known, strict=True)
    }
    assert all(labels[rows(image[None])[0]] == int(label) for image, label in zip(x, y, strict=True))
    mixed = MixedSplit(bundle.train, extra, 0.5)
    assert len(set(mixed.ids.tolist())) == len(mixed)
    check_stream(mixed, [bundle.train, extra], epoch_batches(mixed, 8, 0, 0))


def test_an_extra_set_is_the_same_whatever_the_splits_of_the_run(training, tmp_path: Path) -> None:
    bundle, config = training
    source = f"npz:{save(tmp_path / 'extra.npz', 12, 50)}"
    first = extra_split(source, bundle, config)
    other = extra_split(
        source,
        bundle,
        config.model_copy(
            update={"split_seed": 5, "val_fraction": 0.4, "test_fraction": 0.5, "storage": "stream"}
        ),
    )
    assert all(torch.equal(a, b) for a, b in zip(everything(first), everything(other), strict=True))
    assert first.digest == other.digest and len(first.digest) == 64 and first.digest != bundle.digest
    assert first.subset(torch.tensor([1])).digest == first.digest


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_every_image_of_a_folder(training, make_folder, picture, storage: str) -> None:
    bundle, config = training
    root = make_folder({"a": 4, "b": 3, "c": 5})
    extra = extra_split(
        f"folder:{root}", bundle, config.model_copy(update={"storage": storage, "workers": 1})
    )
    x, y, _ = everything(extra)
    wanted = [
        np.asarray(picture(1000 * k + i)).transpose(2, 0, 1).tobytes()
        for k, count in enumerate((4, 3, 5))
        for i in range(count)
    ]
    assert rows(x) == sorted(wanted) and torch.bincount(y).tolist() == [4, 3, 5]
    if storage == "stream":
        assert [part.workers for part in extra.parts if isinstance(part, StreamSplit)] == [1, 0, 0]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("source", ["digits", "npz:", "npz", "folder:", "other:here", ""])
def test_unknown_sources(training, source: str) -> None:
    with pytest.raises(ConfigError, match="npz:PATH or wds:PATH"):
        extra_split(source, *training)


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ({"classes": ("a", "b", "x")}, "E-CLASS", "class 2 is 'x', in the training data 'c'"),
        ({"classes": ("a", "b", "c", "d")}, "E-EMPTY", "no image of class 'd'"),
        ({"side": 4}, "E-SHAPE", "expected 3x8x8, got 3x4x4"),
        ({"count": 4}, "E-EMPTY", "too few extra images"),
        ({"key": 0, "count": 40}, "E-SPLIT", "the data set itself"),
    ],
)
def test_extra_data_that_does_not_fit(training, tmp_path: Path, options, code: str, text: str) -> None:
    path = save(tmp_path / "extra.npz", **{"count": 12, "key": 50, **options})
    with pytest.raises(DataError) as caught:
        extra_split(f"npz:{path}", *training)
    assert (
        caught.value.code == code
        and text in caught.value.what
        and str(path) in caught.value.where
        and caught.value.hint
    )


def test_fewer_classes_and_a_missing_file(training, tmp_path: Path) -> None:
    x, y = arrays(12, 50)
    np.savez(tmp_path / "two.npz", x=x, y=y % 2, classes=np.array(["a", "b"]))
    with pytest.raises(DataError, match="2 classes, 3 in the training data: missing 'c'"):
        extra_split(f"npz:{tmp_path / 'two.npz'}", *training)
    with pytest.raises(DataError, match=r"none\.npz"):
        extra_split(f"npz:{tmp_path / 'none.npz'}", *training)
