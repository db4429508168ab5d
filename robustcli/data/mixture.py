"""Training data beside the original: one split of both, and epochs that mix them at a fixed ratio."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from robustcli.core.copies import sent
from robustcli.data.check import check_classes, check_shape
from robustcli.data.sampling import train_order
from robustcli.data.split import Batch, Split
from robustcli.errors import DataError

_EXTRA_KEY = 0x2545F4914F6CDD1D  # changes the seed, so that the orders of the two parts are independent


def check_fit(extra: Split, classes: Sequence[str], shape: Sequence[int], *, where: str) -> None:
    """`extra` has these classes, by name and in this order, and images of this shape.

    Raises:
        DataError: E-CLASS, the first class that differs; E-SHAPE, both shapes.
    """
    if len(extra.classes) != len(classes):
        check_classes(classes, extra.classes, where=where, against="the training data")
    for k, (expected, got) in enumerate(zip(classes, extra.classes, strict=True)):
        if expected != got:
            what = f"class {k} is {got!r}, in the training data {expected!r}"
            hint = "give the classes the names and the order of the training data"
            hint += "; npz: classes=numpy.array([…])"
            raise DataError(what, where=where, hint=hint, code="E-CLASS")
    check_shape(extra.shape, shape, where=where)


class JoinedSplit:
    """Splits end to end, whose positions count through all parts.

    The ids of a part start above the largest id of the part before, so no two samples have the same id.

    Args:
        parts: splits of the same classes and shape, in memory or streamed.
        rows: int64 [N], place of each sample in the parts end to end; None for all of them.
        where: what the later parts are, for messages.
        digest: SHA-256 of the stored data; "" when it is not known.

    Raises:
        DataError: a part differs from the first one in classes or shape.
        ValueError: no part.
    """

    def __init__(
        self,
        parts: Sequence[Split],
        *,
        rows: Tensor | None = None,
        where: str = "extra data",
        digest: str = "",
    ) -> None:
        if not parts:
            raise ValueError("a joined split needs at least one part")
        for part in parts[1:]:
            check_fit(part, parts[0].classes, parts[0].shape, where=where)
        self.parts, self.digest = tuple(parts), digest
        self.classes, self.shape = parts[0].classes, parts[0].shape
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self._offsets = [0, *accumulate(_ids_used(part) for part in parts[:-1])]
        labels = torch.cat([part.labels for part in parts])
        ids = torch.cat([part.ids + offset for part, offset in zip(parts, self._offsets, strict=True)])
        if rows is None:
            rows = torch.arange(len(labels))
        self._rows, self.labels, self.ids = rows, labels[rows], ids[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def stream(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[Batch]:
        """See `Split.stream`. The rows of a batch come in the order asked for, whichever part they lie in."""
        rows = [self._rows[positions] for positions in batches]
        owners = [torch.bucketize(row, self._ends, right=True) for row in rows]
        present = [owner.unique().tolist() or [0] for owner in owners]
        streams: list[Iterator[Batch]] = []
        for k, part in enumerate(self.parts):
            start = int(self._ends[k]) - len(part)
            uses = [k in used for used in present]
            wanted = [rows[b][owners[b] == k] - start for b, used in enumerate(uses) if used]
            streams.append(part.stream(wanted, device))
        try:
            for owner, used in zip(owners, present, strict=True):
                yield self._merged([(k, next(streams[k])) for k in used], owner, device)
        finally:  # worker processes end now, also when the reader leaves early or another part fails
            for stream in streams:
                if isinstance(stream, Generator):
                    stream.close()

    def _merged(self, drawn: Sequence[tuple[int, Batch]], owner: Tensor, device: torch.device) -> Batch:
        """One batch from its parts; owner int64 [B] is the part of each row."""
        shifted = [(x, y, ids + self._offsets[k]) for k, (x, y, ids) in drawn]
        if len(shifted) == 1:
            return shifted[0]
        back = sent(owner.argsort(stable=True).argsort(), device)
        x, y, ids = (torch.cat(tensors)[back] for tensors in zip(*shifted, strict=True))
        return x, y, ids

    def files(self, positions: Tensor) -> list[str | None]:
        """See `Split.files`; each path is below the root of its own part."""
        rows = self._rows[positions]
        owners = torch.bucketize(rows, self._ends, right=True).tolist()
        named: list[str | None] = []
        for row, k in zip(rows, owners, strict=True):
            place = row - self._ends[k] + len(self.parts[k])
            named += self.parts[k].files(place[None])
        return named

    def stored_ids(self, positions: Tensor) -> Tensor:
        """int64 [n]: the ids of these samples in their own parts, which count the stored images."""
        owners = torch.bucketize(self._rows[positions], self._ends, right=True)
        return self.ids[positions] - torch.tensor(self._offsets)[owners]

    def subset(self, positions: Tensor) -> JoinedSplit:
        """See `Split.subset`; the parts are shared."""
        return JoinedSplit(self.parts, rows=self._rows[positions], digest=self.digest)


def _ids_used(part: Split) -> int:
    """The smallest id above all ids of the part."""
    if not len(part):
        return 0
    return int(part.ids.max()) + 1


class MixedSplit(JoinedSplit):
    """Original images at positions 0 to n - 1, extra ones above, and the share of extra ones in a batch.

    Args:
        original: the training split; its ids stay.
        extra: more images of the same classes and shape. Their ids start above the largest original one, so
            that no two images share their draws.
        ratio: share of each batch that is extra, in [0, 1).

    Raises:
        DataError: classes (the first that differs) or shape (both) do not agree.
        ValueError: ratio outside [0, 1).

    Source: Gowal et al., NeurIPS 2021, arXiv:2110.09468; Wang et al., ICML 2023, arXiv:2302.04638, whose 0.3
    names the share of original images and is 0.7 here.
    """

    def __init__(self, original: Split, extra: Split, ratio: float) -> None:
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), got {ratio}")
        super().__init__((original, extra))
        self.original, self.extra, self.ratio = original, extra, ratio


def epoch_size(train: Split) -> int:
    """How many images make one epoch: the original ones of a `MixedSplit`, all of another split.

    batch_size must not be larger.
    """
    if isinstance(train, MixedSplit):
        return len(train.original)
    return len(train)


def epoch_batches(train: Split, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Positions of one epoch in `train`, mixed when it is a `MixedSplit`; see `mixed_order`."""
    if isinstance(train, MixedSplit):
        return mixed_order(len(train.original), len(train.extra), batch_size, train.ratio, seed, epoch)
    return mixed_order(len(train), 0, batch_size, 0.0, seed, epoch)


def mixed_order(
    n_original: int, n_extra: int, batch_size: int, ratio: float, seed: int, epoch: int
) -> list[Tensor]:
    """One epoch: S = floor(n / B) batches, each of round(ratio B) extra and B - round(ratio B) originals.

    With ratio 0 an epoch is the beginning of `train_order(n, seed, epoch)`. Otherwise each part is drawn from
    its own endless sequence of permutations, and an epoch goes on where the last one ended. So over any
    number of epochs the visits of two samples of a part differ by one at most. Extra rows are spread evenly
    over the batch, so any stretch of it, such as one GPU's rows, has the ratio.

    Args:
        n_original: n, the size of the original part.
        n_extra: size of the extra part.
        batch_size: B in [1, n].
        ratio: share of extra samples, in [0, 1).
        seed: in [0, 2^63).
        epoch: >= 0.

    Returns:
        S int64 vectors [B] of positions, a function of the arguments alone. Original samples are 0 to n - 1,
        extra ones n to n + n_extra - 1. Where a permutation ends inside an epoch, a sample may come twice in
        it, with the same augmentation, and even twice in one batch.

    Raises:
        ValueError: a value out of range; a batch without original samples; a ratio above 0 that leaves a
            batch without extra ones.

    Source: Gowal et al., NeurIPS 2021, arXiv:2110.09468.
    """
    if not 1 <= batch_size <= n_original or epoch < 0:
        raise ValueError(
            f"batch_size must be in [1, {n_original}] and epoch >= 0, got {batch_size} and {epoch}"
        )
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must be in [0, 1), got {ratio}")
    steps, count = n_original // batch_size, round(ratio * batch_size)
    if ratio == 0:
        return list(train_order(n_original, seed, epoch)[: steps * batch_size].split(batch_size))
    if not 0 < count < batch_size or n_extra < 1:
        share = f"ratio {ratio:g} of a batch of {batch_size} is {count} of {n_extra} extra images"
        raise ValueError(f"{share}; both kinds need one at least")
    is_extra = (torch.arange(batch_size + 1) * count // batch_size).diff() > 0
    batches = torch.empty(steps, batch_size, dtype=torch.int64)
    original = _endless(n_original, seed, epoch, steps * (batch_size - count))
    extra = n_original + _endless(n_extra, seed ^ _EXTRA_KEY, epoch, steps * count)
    batches[:, ~is_extra] = original.reshape(steps, -1)
    batches[:, is_extra] = extra.reshape(steps, -1)
    return list(batches)


def _endless(n: int, seed: int, epoch: int, count: int) -> Tensor:
    """int64 [count]: the draws of this epoch from an endless sequence, of which each epoch takes `count`.

    The sequence is train_order(n, seed, 0), train_order(n, seed, 1) and so on, end to end.
    """
    first, start = divmod(epoch * count, n)
    last = (start + count - 1) // n
    return torch.cat([train_order(n, seed, first + k) for k in range(last + 1)])[start : start + count]
