"""Test images among extra training images: planted copies are found, and honest images are none."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robustcli.data.split import MemorySplit
from robustcli.evaluation.leakage.features import features_of
from robustcli.evaluation.leakage.likeness import apart, same
from robustcli.evaluation.leakage.neighbours import Nearest
from robustcli.evaluation.leakage.rule import Rule
from robustcli.evaluation.leakage.search import Found, Images, search

CPU = torch.device("cpu")
TEST, TRAIN, EXTRA = 200, 300, 250


@cache
def scenes(count: int, seed: int, side: int = 20) -> Tensor:
    """uint8 [count, 3, side, side]: smooth random colours with some texture."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(size=(count, 3, side, side))
    x = 9 * gaussian_filter(rough, (0, 0, 4, 4)) + 0.5 * gaussian_filter(rough[::-1], (0, 0, 1, 1))
    return torch.from_numpy((255 / (1 + np.exp(-x))).round().astype(np.uint8))


def digits() -> Tensor:
    found = torch.from_numpy(np.rint(load_digits().images * 255 / 16).astype(np.uint8))[:, None]
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]


def split(x: Tensor) -> MemorySplit:
    return MemorySplit(x, torch.zeros(len(x), dtype=torch.int64), ("a", "b"))


def searched(test: Tensor, train: Tensor, extra: Tensor, model: nn.Module | None = None) -> Found:
    return search(Images(split(test), split(train), split(extra), CPU), model)


def jpeg(x: Tensor) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(x.permute(1, 2, 0).squeeze().numpy()).save(file, "JPEG", quality=75)
    stored = np.atleast_3d(np.asarray(Image.open(file)))
    return torch.from_numpy(stored.copy()).permute(2, 0, 1)


def noisy(x: Tensor) -> Tensor:
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return (x.float() + 4 * drawn).round().clamp(0, 255).to(torch.uint8)


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": lambda x: x,
    "flipped": lambda x: x.flip(2),
    "jpeg": jpeg,
    "shifted": lambda x: x.roll((1, -1), (1, 2)),
    "noisy": noisy,
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("data", ["scenes", "digits"])
def test_planted_copies_are_found(kind: str, data: str) -> None:
    x = scenes(TEST + TRAIN + EXTRA, 0) if data == "scenes" else digits()
    test, train, extra = x[:TEST], x[TEST : TEST + TRAIN], x[TEST + TRAIN :][:EXTRA]
    planted = torch.stack([COPIES[kind](image) for image in test[:10]])
    found = searched(test, train, torch.cat([extra, planted]))
    near, exact = found.pixels.near, found.exact
    assert found.n == TEST and found.m == EXTRA + 10
    assert near[:10].sum() >= 9 and not near[10:].any()
    assert found.pixels.position[:10][near[:10]].tolist() == [EXTRA + k for k in range(10) if near[k]], (
        "the copy itself is named"
    )
    assert exact.nonzero().flatten().tolist() == (list(range(10)) if kind in ("exact", "flipped") else [])
    rule = found.pixels.rule
    assert rule is not None and rule.unlikely(int(near.sum()))


@pytest.mark.parametrize(
    ("data", "seed"), [("scenes", 0), ("digits", 0), ("digits", 1), ("digits", 2), ("more", 0), ("more", 1)]
)
def test_honest_images_raise_no_alarm(data: str, seed: int) -> None:
    count = TEST + TRAIN + (4 * EXTRA if data == "more" else EXTRA)
    x = digits()[torch.randperm(1797, generator=torch.Generator().manual_seed(seed))]
    if data == "scenes":
        x = scenes(count, seed)
    found = searched(x[:TEST], x[TEST : TEST + TRAIN], x[TEST + TRAIN : count])
    rule = found.pixels.rule
    assert rule is not None and not rule.unlikely(int(found.pixels.near.sum())) and not found.exact.any()
    assert found.pixels.near.sum() <= 1 and rule.ratio <= 0.5


@pytest.mark.parametrize("side", [20, 72])
def test_an_exact_copy_differs_in_no_pixel_at_its_own_size(side: int) -> None:
    x = scenes(60, 0, side)
    test, planted = x[:5], x[:5].flip(3)
    planted[:2, 1, 5, 7] ^= 2
    found = searched(test, x[5:50], torch.cat([x[50:], planted]))
    assert found.exact.tolist() == [False, False, True, True, True]
    assert found.pixels.position.tolist() == [10, 11, 12, 13, 14]


class Net(nn.Module):
    """A random network whose last linear layer gets 24 features, mean over places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 24, 5, 2), nn.ReLU(), nn.Conv2d(24, 24, 3, 2), nn.ReLU())
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x).mean((2, 3)))
        return found


def test_features_of_the_network_find_them_too() -> None:
    with torch.random.fork_rng():
        net = Net()
    x = scenes(TEST + TRAIN + EXTRA, 0)
    test, train, extra = x[:TEST], x[TEST : TEST + TRAIN], x[TEST + TRAIN :]
    honest = searched(test, train, extra, net).features
    planted = torch.stack([COPIES[("exact", "flipped")[k % 2]](test[k]) for k in range(10)])
    found = searched(test, train, torch.cat([extra, planted]), net).features
    assert honest is not None and honest.rule is not None and not honest.rule.unlikely(int(honest.near.sum()))
    assert (
        found is not None and found.near[:10].all() and found.position[:10].tolist() == list(range(250, 260))
    )
    vectors = features_of(net, test[:4] / 255)
    assert vectors.shape == (4, 24) and torch.allclose(vectors.norm(dim=1), torch.ones(4))
    assert net.training and not net.head._forward_pre_hooks


def test_tiles_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(70, 2, 12, generator=torch.Generator().manual_seed(0)), torch.randn(90, 12)
    brute = (x[:, :, None] - y).norm(dim=3).amin(1)
    expected = brute.topk(3, largest=False)
    for tile, step in ((2**22, 90), (100, 7)):
        monkeypatch.setattr("robustcli.evaluation.leakage.neighbours._TILE", tile)
        near = Nearest(x, 3)
        for first in range(0, 90, step):
            near.show(y[first : first + step], first)
        assert torch.equal(near.position, expected.indices)
        assert torch.allclose(near.distance, expected.values, atol=1e-5)


def test_the_distance_is_that_of_the_best_shift_and_mirror_image() -> None:
    a = scenes(3, 7) / 255
    for change in (lambda x: x, lambda x: x.flip(3), lambda x: x.roll((1, 1), (2, 3))):
        assert apart(a, change(a)).max() < 1e-6
    assert same(a, a.flip(3)).all() and not same(a, a.roll(1, 2)).any()
    far = apart(torch.zeros(2, 3, 20, 20), torch.full((2, 3, 20, 20), 0.1))
    assert torch.allclose(far, torch.full((2,), 0.1))


def test_the_count_is_held_against_that_of_the_training_images() -> None:
    rng = np.random.default_rng(0)
    halves = torch.from_numpy(np.exp(rng.normal(0, 0.05, (2, 1000))))
    clean = Rule.of(halves, 1000, 1000)
    halves[0, :30] = 1e-3  # 30 test images have a copy in one half of the training images
    copied = Rule.of(halves, 1000, 1000)
    assert clean is not None and copied is not None
    assert (clean.honest, copied.honest) == (0, 30) and abs(clean.ratio - copied.ratio) < 0.02
    assert clean.unlikely(2) and not clean.unlikely(1) and not copied.unlikely(35) and copied.unlikely(50)
    larger = Rule.of(halves, 1000, 20_000)
    assert larger is not None and larger.ratio < copied.ratio
    assert Rule.of(halves[:, :20], 1000, 1000) is None
