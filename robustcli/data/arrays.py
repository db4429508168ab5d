"""From pixel and label arrays to a bundle: the way of every data set that fits in memory as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle, build
from robustcli.data.check import check_labels, check_range, check_shape
from robustcli.data.digest import digest_memory
from robustcli.data.split import MemorySplit
from robustcli.errors import DataError


class NeedsFilesError(DataError):
    """data.storage asks for image files, and these are arrays."""


def bundle_arrays(
    config: DataConfig,
    entry: str,
    *,
    name: str,
    where: str,
    stored: Mapping[str, tuple[Tensor, object]],
    classes: tuple[str, ...],
    notes: Sequence[str] = (),
) -> DataBundle:
    """Check the arrays of each stored split and build the bundle.

    Args:
        config, entry, name, where, notes: as in `bundle.build`.
        stored: split -> (pixels uint8 or float [N, C, H, W], labels [N]), still unchecked.
        classes: names of the K classes.

    Raises:
        DataError: labels, range or shape are wrong.
        NeedsFilesError: data.storage is stream or cached.
    """
    if config.storage in ("stream", "cached"):
        raise NeedsFilesError(
            f"data.storage={config.storage} needs image files",
            where=where,
            hint="use folder:PATH, or data.storage=auto",
        )
    splits: dict[str, MemorySplit] = {}
    shape: tuple[int, int, int] | None = None
    for part, (pixels, labels) in stored.items():
        here = f"{where}: {part}"
        shape = check_shape(pixels.shape[1:], shape, where=here)
        checked = check_labels(labels, len(classes), where=here, count=len(pixels))
        check_range(pixels, where=here)
        if pixels.is_floating_point():
            pixels = pixels.clamp(0, 1)  # the check allows float rounding, the attacks' box does not
        splits[part] = MemorySplit(pixels, checked, classes)
    return build(
        config, entry, name=name, where=where, stored=splits, digest=digest_memory(splits), notes=notes
    )
