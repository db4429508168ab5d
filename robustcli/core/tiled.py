"""Convolutions of stride 1 by Toom-Cook (Winograd) tiles: fewer products, in fp32, forward only.

Along one axis, m outputs of a kernel of r taps are A^T [(G g) * (B^T d)] with n = m + r - 1 products in place
of m r, where d are n inputs. In two dimensions the products become n^2 matrix products over channels. All
tiles of an axis are transformed by one matrix, which has the padding inside.

Rounding adds 2e-6 of a layer's norm at n = 8, 6e-6 at n = 9 and 4e-5 at n = 11, where a plain fp32 sum has
4e-7, TF32 5e-4 and bf16 4e-3.

Source: Winograd, 1980; Lavin and Gray, CVPR 2016, arXiv:1509.09308.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

# Interpolation points besides infinity, by n: those that rounded least among some thousand sets of fractions
# on random kernels. Up to n = 8 they are the first ones of a row.
_FEW = tuple(map(Fraction, ("0", "1", "-1", "2", "-1/2", "1/2", "-2")))
_POINTS = {
    9: tuple(map(Fraction, ("0", "1/2", "-1/2", "4/5", "-4/5", "4/3", "-4/3", "-4"))),
    10: tuple(map(Fraction, ("0", "5/4", "-5/4", "4/5", "-4/5", "5/2", "-5/2", "2/5", "-2/5"))),
    11: tuple(map(Fraction, ("0", "2/3", "-2/3", "1/3", "-1/3", "5/4", "-5/4", "8/5", "-8/5", "-4"))),
}
_MOST = 11  # products along an axis: more of them lose too many digits
_LEAST_CHANNELS = 16  # smaller matrix products waste what the tiles save
_WORTH = 2.5  # times fewer multiplications, transforms included, before tiles take less time
_CACHED = 3 << 20  # bytes of products that are made at once


class _Axis:
    """The tiles of one axis: T tiles of m outputs, each from n products.

    `into` [T, n, size] makes the factors of all tiles from inputs, padding included; `back` [m, n] makes the
    outputs of one tile; `kernel` [n, r] makes the factors of a kernel; float64.
    """

    def __init__(self, size: int, taps: int, padding: int) -> None:
        self.size, self.result = size, size + 2 * padding - taps + 1
        self.step = min(range(2, _MOST - taps + 2), key=lambda m: (_burden(self.result, m, taps), m))
        self.products, self.tiles = self.step + taps - 1, -(-self.result // self.step)
        self.rows = self.products * self.tiles
        self.back, self.kernel, there = _toom_cook(self.step, taps)
        self.into = torch.zeros(self.tiles, self.products, size, dtype=torch.float64)
        for tile in range(self.tiles):
            for k in range(self.products):
                place = tile * self.step + k - padding
                if 0 <= place < size:
                    self.into[tile, :, place] = there[:, k]

    def outwards(self) -> Tensor:
        """[size', n T]: outputs of all tiles from their products, which are ordered (product, tile)."""
        out = torch.zeros(self.tiles, self.step, self.products, self.tiles, dtype=torch.float64)
        for tile in range(self.tiles):
            out[tile, :, :, tile] = self.back
        return out.flatten(2).flatten(0, 1)[: self.result]


def _burden(result: int, step: int, taps: int) -> float:
    """What decides on the size of tiles: all products, and a little for the digits that large tiles lose."""
    products = step + taps - 1
    return -(-result // step) * products * (1 + 0.03 * products)


def _toom_cook(step: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """A^T [step, n], G [n, taps] and B^T [n, n], float64, each exact up to its own rounding.

    Rows are scaled so that those of A and B^T have the largest entry 1: intermediate numbers stay alike.
    """
    n = step + taps - 1
    points = _POINTS.get(n) or _FEW[: n - 1]
    outputs, kernel = _powers(points, step), _powers(points, taps)
    inverse = _inverse(_powers(points, n))
    columns = [list(column) for column in zip(*inverse, strict=True)]
    for k in range(n):
        wide, tall = max(map(abs, columns[k])), max(map(abs, outputs[k]))
        columns[k] = [value / wide for value in columns[k]]
        outputs[k] = [value / tall for value in outputs[k]]
        kernel[k] = [value * wide * tall for value in kernel[k]]
    return _numbers(outputs).T, _numbers(kernel), _numbers(columns)


def _powers(points: tuple[Fraction, ...], count: int) -> list[list[Fraction]]:
    """[len(points) + 1, count]: powers 0, 1, ... of each point, and the highest alone for infinity."""
    infinity = [Fraction(0)] * (count - 1) + [Fraction(1)]
    return [[point**k for k in range(count)] for point in points] + [infinity]


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """The exact inverse, by Gauss and Jordan."""
    n = len(matrix)
    rows = [[*row, *(Fraction(int(k == place)) for k in range(n))] for place, row in enumerate(matrix)]
    for column in range(n):
        pivot = next(k for k in range(column, n) if rows[k][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for k in range(n):
            if k != column:
                factor = rows[k][column]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[column], strict=True)]
    return [row[n:] for row in rows]


def _numbers(matrix: list[list[Fraction]]) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.float64)


def worth_tiles(conv: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether tiles need 2.5 times fewer products of a module on inputs [B, C, H, W], enough to be faster.

    Only a Conv2d of stride 1 in fp32 on a CPU, padded with zeros, undilated, in one group, without hooks.
    The answer depends on shapes alone: every process that computes with a network rounds alike.
    """
    if type(conv) is not nn.Conv2d or len(shape) != 4 or conv._forward_hooks or conv._forward_pre_hooks:
        return False
    plain = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1
    if not plain or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return False
    if conv.weight.dtype is not torch.float32 or conv.weight.device.type != "cpu":
        return False
    if min(conv.in_channels, conv.out_channels) < _LEAST_CHANNELS:
        return False
    sizes = list(zip(shape[2:], conv.kernel_size, conv.padding, strict=True))
    if any(not 3 <= taps <= _MOST - 4 or size + 2 * p < taps for size, taps, p in sizes):
        return False
    high, wide = (_Axis(*size) for size in sizes)
    ours = conv.in_channels * high.rows * wide.size * (high.size + wide.rows)
    ours += conv.in_channels * conv.out_channels * high.rows * wide.rows
    ours += conv.out_channels * high.result * wide.rows * (high.products + wide.result)
    return _WORTH * ours <= conv.weight.numel() * high.result * wide.result


class TiledConv(nn.Module):
    """pool(act(conv(x) + b)) for fp32 inputs x [B, C, H, W] of one H and W, without a gradient.

    The answer [B, K, H', W'] lies in memory as channels-last. Inputs of another size go the plain way.

    Args:
        conv: a layer that is `worth_tiles`. shape: of its inputs.
        relu: whether act is ReLU, or the identity.
        pool: whether a 2 x 2 max-pooling of stride 2 follows.
    """

    def __init__(self, conv: nn.Conv2d, shape: tuple[int, ...], relu: bool, pool: bool) -> None:
        super().__init__()
        self._plain, self._relu, self._pool, self._shape = conv, relu, pool, tuple(shape[1:])
        assert not isinstance(conv.padding, str)
        sizes = zip(shape[2:], conv.kernel_size, conv.padding, strict=True)
        self._high, self._wide = high, wide = [_Axis(*size) for size in sizes]
        weight = conv.weight.detach().double()
        factors = torch.einsum("ai,kcij,bj->abck", high.kernel, weight, wide.kernel).float()
        # [high tiles, high products, wide products, C, K]: one matrix for each row of tiles
        self._factors = factors.expand(high.tiles, -1, -1, -1, -1).flatten(0, 2)
        self._into = high.into.flatten(0, 1).float(), wide.into.transpose(0, 1).flatten(0, 1).float()
        self._out = high.back.float().expand(high.tiles, -1, -1), wide.outwards().float()
        images = _CACHED // (4 * high.rows * wide.rows * max(conv.in_channels, conv.out_channels))
        self._images = max(1, images)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, K, H', W'], halved where it pools."""
        if tuple(x.shape[1:]) != self._shape or x.dtype is not torch.float32:
            return self._plainly(x)
        return self.channels_last(x).permute(0, 3, 1, 2)

    def channels_last(self, x: Tensor) -> Tensor:
        """The answer as [B, H', W', K], of inputs of the size that the tiles are made for."""
        parts = [self._part(part) for part in x.split(self._images)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _plainly(self, x: Tensor) -> Tensor:
        out: Tensor = self._plain(x)
        if self._pool:
            out = nn.functional.max_pool2d(out, 2)
        return out.relu_() if self._relu else out

    def _part(self, x: Tensor) -> Tensor:
        """[N, H', W', K] of a few images; inside, images and channels are the last axes."""
        high, wide = self._high, self._wide
        (n, c), k = x.shape[:2], self._plain.out_channels
        h = self._into[0] @ x.permute(2, 3, 0, 1).reshape(high.size, -1)
        h = torch.bmm(self._into[1].expand(high.rows, -1, -1), h.view(high.rows, wide.size, n * c))
        h = torch.bmm(h.view(-1, wide.tiles * n, c), self._factors)
        h = torch.bmm(self._out[0], h.view(high.tiles, high.products, -1)).flatten(0, 1)[: high.result]
        h = torch.bmm(self._out[1].expand(high.result, -1, -1), h.view(high.result, wide.rows, n * k))
        h = h.view(high.result, wide.result, n, k)
        if self._pool:  # before bias and ReLU, which rise: the same numbers, from a quarter of them
            rows, columns = high.result // 2 * 2, wide.result // 2 * 2
            h = torch.maximum(h[:rows:2], h[1:rows:2])
            h = torch.maximum(h[:, :columns:2], h[:, 1:columns:2])
        if self._plain.bias is not None:
            h = h.add_(self._plain.bias)
        if self._relu:
            h = h.relu_()
        return h.permute(2, 0, 1, 3).contiguous()
