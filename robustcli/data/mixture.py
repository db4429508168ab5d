"""Extra or generated training data beside the original: one split of both, and epochs that mix them at a fixed ratio."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.check import check_classes, check_shape
from robustcli.data.datasets import load_data
from robustcli.data.sampling import train_order
from robustcli.data.split import Batch, Split
from robustcli.data.stream import StreamSplit
from robustcli.errors import ConfigError, DataError

_EXTRA_KEY = 0x2545F4914F6CDD1D  # changes the seed, so that the orders of the two parts are independent


def check_fit(extra: Split, classes: Sequence[str], shape: Sequence[int], *, where: str) -> None:
    """`extra` has these classes, in this order and by name, and images of this shape. Raises DataError: E-CLASS, E-SHAPE."""
    if len(extra.classes) != len(classes):
        check_classes(classes, extra.classes, where=where, against="the training data")
    for k, (expected, got) in enumerate(zip(classes, extra.classes, strict=True)):
        if expected != got:
            hint = (
                "give the classes the names and the order of the training data; npz: classes=numpy.array([…])"
            )
            raise DataError(
                f"class {k} is {got!r}, in the training data {expected!r}",
                where=where,
                hint=hint,
                code="E-CLASS",
            )
    check_shape(extra.shape, shape, where=where)


class JoinedSplit:
    """Splits end to end: positions count through the parts, ids too (each part's ids start above the largest id of the part before).

    Args:
        parts: splits of the same classes and shape, in memory or streamed; DataError when they differ from the first, ValueError for none.
        rows: int64 [N], place of each sample in the parts end to end; None for all of them.
        where: what the later parts are, for messages.  digest: SHA-256 of the stored data, when known.
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
        self.parts, self.classes, self.shape, self.digest = (
            tuple(parts),
            parts[0].classes,
            parts[0].shape,
            digest,
        )
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        above = [int(part.ids.max()) + 1 if len(part) else 0 for part in parts]
        self._offsets = [sum(above[:k]) for k in range(len(above))]
        labels = torch.cat([part.labels for part in parts])
        ids = torch.cat([part.ids + offset for part, offset in zip(parts, self._offsets, strict=True)])
        self._rows = torch.arange(len(labels)) if rows is None else rows
        self.labels, self.ids = labels[self._rows], ids[self._rows]

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
            wanted = [
                row[owner == k] - start
                for row, owner, used in zip(rows, owners, present, strict=True)
                if k in used
            ]
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
        back = owner.argsort(stable=True).argsort().to(device)
        x, y, ids = (torch.cat(tensors)[back] for tensors in zip(*shifted, strict=True))
        return x, y, ids

    def subset(self, positions: Tensor) -> JoinedSplit:
        """See `Split.subset`; the parts are shared."""
        return JoinedSplit(self.parts, rows=self._rows[positions], digest=self.digest)


class MixedSplit(JoinedSplit):
    """Original images at positions 0 … n - 1, extra ones above, and the share of extra images in a training batch.

    Args:
        original: the training split; its ids stay.
        extra: more images of the same classes and shape; their ids start above the largest original one, so that all draws differ.
        ratio: share of each batch that is extra, in [0, 1).

    Raises:
        DataError: classes (the first that differs) or shape (both) do not agree.
        ValueError: ratio outside [0, 1).

    Source: Gowal et al., NeurIPS 2021, arXiv:2110.09468; Wang et al., ICML 2023, arXiv:2302.04638 (with 0.7, named by the original share, 0.3).
    """

    def __init__(self, original: Split, extra: Split, ratio: float) -> None:
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), got {ratio}")
        super().__init__((original, extra))
        self.original, self.extra, self.ratio = original, extra, ratio


def epoch_size(train: Split) -> int:
    """Images that make one epoch: the original ones of a `MixedSplit`, all of another split. batch_size must not be larger."""
    return len(train.original) if isinstance(train, MixedSplit) else len(train)


def epoch_batches(train: Split, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Positions of one epoch in `train`, mixed when it is a `MixedSplit`; see `mixed_order`."""
    extra, ratio = (len(train.extra), train.ratio) if isinstance(train, MixedSplit) else (0, 0.0)
    return mixed_order(epoch_size(train), extra, batch_size, ratio, seed, epoch)


def mixed_order(
    n_original: int, n_extra: int, batch_size: int, ratio: float, seed: int, epoch: int
) -> list[Tensor]:
    """S = floor(n / B) batches, each of round(ratio B) extra and B - round(ratio B) original samples: one epoch.

    With ratio 0 an epoch is the beginning of `train_order(n, seed, epoch)`. Otherwise each part is drawn from its own endless sequence of
    permutations, the epoch taking up where the last one ended: over any number of epochs the visits of two samples differ by one at most.
    Extra rows are spread evenly over the batch, so any stretch of it (one GPU's rows) has the ratio.

    Args:
        n_original, n_extra: sizes of the parts.  batch_size: B in [1, n].  ratio: in [0, 1).  seed: in [0, 2^63).  epoch: >= 0.

    Returns:
        S int64 vectors [B] of positions: originals are 0 … n - 1, extra ones n … n + n_extra - 1. A function of the arguments alone. Where a
        permutation ends inside an epoch, a sample may come twice in it, with the same augmentation, and even twice in one batch.

    Raises:
        ValueError: a value out of range; a ratio that leaves a batch without original samples, or, above 0, without extra ones.

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
        raise ValueError(
            f"ratio {ratio:g} of a batch of {batch_size} is {count} of {n_extra} extra images; both kinds need one at least"
        )
    is_extra = (torch.arange(batch_size + 1) * count // batch_size).diff() > 0
    batches = torch.empty(steps, batch_size, dtype=torch.int64)
    batches[:, ~is_extra] = _endless(n_original, seed, epoch, steps * (batch_size - count)).reshape(steps, -1)
    batches[:, is_extra] = n_original + _endless(n_extra, seed ^ _EXTRA_KEY, epoch, steps * count).reshape(
        steps, count
    )
    return list(batches)


def _endless(n: int, seed: int, epoch: int, count: int) -> Tensor:
    """int64 [count]: draws epoch * count … (epoch + 1) * count - 1 of train_order(n, seed, 0), train_order(n, seed, 1), … end to end."""
    first, start = divmod(epoch * count, n)
    last = (start + count - 1) // n
    return torch.cat([train_order(n, seed, first + k) for k in range(last + 1)])[start : start + count]


def extra_split(source: str, like: DataBundle, config: DataConfig) -> JoinedSplit:
    """All images of `source` as one split, whatever splits it holds, checked against the data set it is added to.

    Args:
        source: npz:PATH or folder:PATH.
        like: the data set trained on; gives classes and shape.
        config: its data section; size, storage (folders), workers, timeout, bad_image and max_bad hold for `source` too.

    Returns:
        a split whose `digest` (SHA-256) belongs to the identity of the run, beside that of `like`.

    Raises:
        ConfigError: `source` is neither npz:PATH nor folder:PATH.
        DataError: unreadable or invalid data, other classes or shape, a class of fewer than three images, or the data set with its test itself.
    """
    kind, _, path = source.partition(":")
    if kind not in ("npz", "folder") or not path:
        raise ConfigError(
            f"extra data {source!r} is not a file or folder",
            where="data.extra",
            hint="write npz:PATH or folder:PATH",
        )
    # No carving is asked for, but `build` wants three splits with images: one of each class goes to val and test, and all come back below.
    asked = {
        "name": source,
        "download": False,
        "augment": "none",
        "val_fraction": 1e-12,
        "test_fraction": 1e-12,
        "split_seed": 0,
    }
    asked["storage"] = (
        config.storage if kind == "folder" else "auto"
    )  # streaming the original files does not forbid arrays beside them
    try:
        bundle = load_data(config.model_copy(update=asked))
    except DataError as error:
        if error.code != "E-EMPTY":
            raise
        hint = "extra data needs three images of every class, and one in every split it holds"
        raise DataError(
            f"too few extra images: {error.what}", where=error.where, hint=hint, code=error.code
        ) from error
    if bundle.digest == like.digest:
        raise DataError(
            "the extra data is the data set itself, with its test images",
            where=source,
            hint="name other data",
            code="E-SPLIT",
        )
    check_fit(bundle.train, like.classes, like.shape, where=source)
    for part in (bundle.val, bundle.test):
        if isinstance(part, StreamSplit) and len(part) <= bundle.num_classes:
            part.workers = 0  # one image of each class is not worth processes of its own
    return JoinedSplit((bundle.train, bundle.val, bundle.test), where=source, digest=bundle.digest)
