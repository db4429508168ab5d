"""A backward pass that holds windows gives the bounds of one that holds whole planes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustcli.core.bounds import margins, trace
from robustcli.core.bounds.rows import Window
from robustcli.core.geometry import Ball


class Block(nn.Module):
    """Two branches that meet, with strides, dilation, groups, BatchNorm and overlapping pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.side = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), nn.Conv2d(4, 4, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.c = nn.Conv2d(4, 2, 3, 2, 1)
        self.head = nn.Linear(2 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn(self.a(2 * x - 1)))
        h = torch.relu(self.b(h) + self.side(h))
        h = torch.relu(self.c(self.pool(h)))
        out: Tensor = self.head(h.flatten(1))
        return out


@pytest.mark.parametrize("batch", [1, 2])
def test_windows_and_whole_planes_agree(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x = Block().eval(), torch.rand(batch, 1, 15, 15)
    program, y = trace(net, (1, 15, 15)), net(x).argmax(1)
    seen: list[tuple[int, int]] = []
    inside = Window.inside
    monkeypatch.setattr(Window, "inside", lambda rows: seen.append(rows.size) or inside(rows))
    with_windows = [margins(program, x, y, Ball(norm, eps)) for norm, eps in (("linf", 0.01), ("l2", 0.01))]
    assert {(1, 1), (3, 3)} < set(seen) and max(seen) > (5, 5)
    monkeypatch.setattr(Window, "wide", property(lambda rows: True))
    whole = [margins(program, x, y, Ball(norm, eps)) for norm, eps in (("linf", 0.01), ("l2", 0.01))]
    for one, other in zip(with_windows, whole, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-9)
