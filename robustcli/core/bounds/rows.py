"""The rows of a backward pass: which image each belongs to, and which part of a plane its coefficients fill.

The coefficients of a neuron deep in a network fill whole planes. Those of a neuron behind a few convolutions
are 0 outside a small window, and such rows hold their window alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flat(whole: Tensor) -> Tensor:
    """[B, *shape] as [B, n]; [B, 1] where the shape is empty, as of a network's only logit."""
    return whole.unsqueeze(-1).flatten(1)


class Rows:
    """Row q belongs to image rows[q] of a batch; its coefficients have the shape of the node."""

    def __init__(self, rows: Tensor, batch: int) -> None:
        self.rows, self.batch = rows, batch
        self._only: int | None = 0 if batch == 1 else None  # the image of all rows, if they have one
        if batch > 1 and len(rows) and bool((rows == rows[0]).all()):
            self._only = int(rows[0])

    def __call__(self, v: Tensor) -> Tensor:
        """v [B, *shape] for each row: [Q, *shape], or [1, *shape] where all rows are of one image."""
        return v[self.rows] if self._only is None else v[self._only : self._only + 1]

    def dot(self, a: Tensor, v: Tensor) -> Tensor:
        """a . v for each row, [Q]; a [Q, *shape], v [B, *shape]."""
        if self._only is None:
            return flat(a * self(v)).sum(1)
        return flat(a) @ v[self._only].flatten()

    def whole(self, a: Tensor) -> tuple[Tensor, Rows]:
        """The same coefficients in the shape of the node."""
        return a, self


class Window(Rows):
    """Coefficients [Q, C, h, w] that begin at `origin` [Q, 2] of planes (H, W).

    A window may reach over the border; the coefficients there are 0.
    """

    def __init__(
        self, rows: Tensor, batch: int, origin: Tensor, size: tuple[int, int], plane: tuple[int, int]
    ) -> None:
        super().__init__(rows, batch)
        self.origin, self.size, self.plane = origin, size, plane
        self._places: Tensor | None = None

    @property
    def wide(self) -> bool:
        """Whether it covers so much of the plane that whole planes are cheaper."""
        return 2 * self.size[0] * self.size[1] > self.plane[0] * self.plane[1]

    def moved(
        self, stride: Sequence[int], padding: Sequence[int], reach: Sequence[int], plane: tuple[int, int]
    ) -> Window:
        """The window that a kernel of side `reach` reads for this one, on planes of another size."""
        step = torch.tensor(list(stride), device=self.origin.device)
        start = self.origin * step - torch.tensor(list(padding), device=self.origin.device)
        sides = [(self.size[axis] - 1) * stride[axis] + reach[axis] for axis in (0, 1)]
        return Window(self.rows, self.batch, start, (sides[0], sides[1]), plane)

    def axes(self) -> tuple[Tensor, Tensor]:
        """Rows [Q, h, 1] and columns [Q, 1, w] of the plane."""
        steps = [torch.arange(side, device=self.origin.device) for side in self.size]
        return self.origin[:, :1, None] + steps[0][:, None], self.origin[:, 1:, None] + steps[1]

    def inside(self) -> Tensor:
        """bool [Q, 1, h, w]: what lies on the plane."""
        y, x = self.axes()
        on_plane = (y >= 0) & (y < self.plane[0]) & (x >= 0) & (x < self.plane[1])
        return on_plane[:, None]

    def places(self) -> Tensor:
        """int64 [Q, 1, h w]: places in the plane; any where a window reaches over the border."""
        if self._places is None:
            y, x = self.axes()
            place = y.clamp(0, self.plane[0] - 1) * self.plane[1] + x.clamp(0, self.plane[1] - 1)
            self._places = place.flatten(1)[:, None]
        return self._places

    def __call__(self, v: Tensor) -> Tensor:
        """v [B, C, H, W] in the window of each row: [Q, C, h, w]."""
        planes = torch.arange(v.shape[1], device=v.device)[:, None]
        if self.batch > 1:
            planes = self.rows[:, None, None] * v.shape[1] + planes
        index = planes * (self.plane[0] * self.plane[1]) + self.places()
        return torch.take(v, index).reshape(len(index), v.shape[1], *self.size)

    def dot(self, a: Tensor, v: Tensor) -> Tensor:
        return (a * self(v)).flatten(1).sum(1)

    def whole(self, a: Tensor) -> tuple[Tensor, Rows]:
        full = a.new_zeros((*a.shape[:2], self.plane[0] * self.plane[1]))
        full = full.scatter_add(2, self.places().expand(a.flatten(2).shape), a.flatten(2))
        return full.reshape(*a.shape[:2], *self.plane), Rows(self.rows, self.batch)
