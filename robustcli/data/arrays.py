"""From pixel and label arrays to a bundle: the way of every data set that fits in memory as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.check import check_labels, check_range, check_shape, dim_warning
from robustcli.data.digest import digest_memory
from robustcli.data.layout.classes import chosen_order, stated_classes
from robustcli.data.split import MemorySplit
from robustcli.data.stored import Loaded
from robustcli.errors import DataError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's grey
Arrays = tuple[Callable[[], Tensor], object]


class NeedsFilesError(DataError):
    """data.storage asks for image files, and these are arrays."""


def bundle_arrays(
    config: DataConfig,
    entry: str,
    *,
    name: str,
    where: str,
    stored: Mapping[str, tuple[Tensor | Callable[[], Tensor], object]],
    classes: tuple[str, ...],
    notes: Sequence[str] = (),
    deep: bool = False,
) -> DataBundle:
    """The bundle of arrays. Those of a split are checked when the split is read.

    Args:
        config, entry, name, where, notes: as in `DataBundle`.
        stored: split -> (pixels uint8 or float [N, C, H, W], or a function that reads them, and labels [N]),
            all unchecked.
        classes: names of the K classes, in the order of the labels.
        deep: whether the pixels had 16 bits, so that data.max_value says what white is.

    Raises:
        DataError: labels, range or shape are wrong; `data.classes` lacks a class.
        NeedsFilesError: data.storage is stream or cached.
    """
    if config.storage in ("stream", "cached"):
        raise NeedsFilesError(
            f"data.storage={config.storage} needs image files",
            where=where,
            hint="use folder:PATH, or data.storage=auto",
        )
    readers = {part: (_reader(pixels), labels) for part, (pixels, labels) in stored.items()}
    stated = stated_classes(config)
    order = classes if stated is None else chosen_order(stated, classes, where=where)
    arrays = ArraySplits(config, where, readers, classes, order, deep and config.max_value is None)
    return DataBundle(config, entry, name=name, where=where, stored=arrays, notes=notes)


def _reader(pixels: Tensor | Callable[[], Tensor]) -> Callable[[], Tensor]:
    if isinstance(pixels, Tensor):
        return lambda: pixels
    return pixels


@dataclass(frozen=True)
class ArraySplits:
    """Arrays of each stored split, see `Stored`.

    Args:
        config: the data section.
        where: for messages.
        arrays: split -> (a function that reads the pixels, labels).
        own: names of the classes as the labels count them.
        classes: the same names, and perhaps more, in the order that is asked for.
        deep: whether data.max_value would mend pixels that are too dark.
    """

    config: DataConfig
    where: str
    arrays: Mapping[str, Arrays]
    own: tuple[str, ...]
    classes: tuple[str, ...]
    deep: bool
    _labels: dict[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    def labels(self, name: str) -> Tensor:
        """See `Stored.labels`. Raises DataError: no label in [0, K)."""
        if name not in self._labels:
            checked = check_labels(self.arrays[name][1], len(self.own), where=f"{self.where}: {name}")
            if self.own != self.classes:
                checked = torch.tensor([self.classes.index(own) for own in self.own])[checked]
            self._labels[name] = checked
        return self._labels[name]

    def load(self, names: Sequence[str]) -> Loaded:
        """See `Stored.load`."""
        splits: dict[str, MemorySplit] = {}
        warnings: list[str] = []
        shape: tuple[int, int, int] | None = None
        for part in names:
            here = f"{self.where}: {part}"
            pixels = self.arrays[part][0]()
            shape = check_shape(pixels.shape[1:], shape, where=here)
            labels = self._counted(part, len(pixels), here)
            check_range(pixels, where=here)
            if pixels.is_floating_point():
                pixels = pixels.clamp(0, 1)  # the check allows float rounding, the attacks' box does not
            warnings += dim_warning(pixels, part, deep=self.deep)
            splits[part] = MemorySplit(_in_channels(pixels, self.config.channels), labels, self.classes)
        self._check_size(shape)
        return Loaded(splits, {}, digest_memory(splits), warnings=warnings)

    def _counted(self, part: str, count: int, where: str) -> Tensor:
        check_labels(self.arrays[part][1], len(self.own), where=where, count=count)
        return self.labels(part)

    def _check_size(self, shape: tuple[int, int, int] | None) -> None:
        size = self.config.size
        if size is not None and shape is not None and size != shape[1]:
            raise DataError(
                f"data.size={size}, but the images are {shape[1]}x{shape[2]}",
                where=self.where,
                hint="data.size resizes folder:, imagenet and gtsrb; use it with those, or leave it out",
                code="E-SHAPE",
            )


def _in_channels(pixels: Tensor, channels: int | None) -> Tensor:
    """[N, C, H, W] with the channels that data.channels asks for."""
    have = pixels.shape[1]
    if channels is None or channels == have:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1).contiguous()
    grey = (pixels.float() * torch.tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    return grey.round().to(pixels.dtype) if pixels.dtype == torch.uint8 else grey.to(pixels.dtype)
