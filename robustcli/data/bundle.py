"""A data set ready for use: three splits, class names, normalisation, augmentation, presets, and what was decided on the way."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcli.config.sections import Augment, DataConfig
from robustcli.data.check import check_classes, check_shape, check_split
from robustcli.data.sampling import carve
from robustcli.data.split import MemorySplit, Split
from robustcli.errors import ConfigError, DataError, printable
from robustcli.facts import DatasetFacts
from robustcli.registry import datasets

_STATISTICS = 5_000  # images read for mean and std, evenly spaced
_STATISTICS_STREAM = 512
_SKIPPABLE = ("E-IMAGE", "E-FILE")


@dataclass
class DataBundle:
    """train, val, test and all that the rest of the program must know of them.

    name: as shown in tables.  classes: names, class k is classes[k].  shape: (C, H, W).  augment: crop and flip of training images, resolved.
    mean, std: per channel, on the [0, 1] scale, for the model's own normalisation.  presets: norm -> usual radius.
    digest: SHA-256 of pixels, labels and class names (of paths and sizes for streamed files).  notes: what was chosen, in plain words.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    num_classes: int
    augment: Augment
    mean: tuple[float, ...]
    std: tuple[float, ...]
    presets: dict[str, float]
    digest: str
    notes: list[str] = field(default_factory=list)


def cpu_count() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or taskset may leave fewer
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def build(
    config: DataConfig, entry: str, *, name: str, where: str, stored: Mapping[str, Split], digest: str,
    notes: Sequence[str] = (), faults: Mapping[str, Mapping[int, DataError]] | None = None,
) -> DataBundle:  # fmt: skip
    """Carve, check and describe.

    Args:
        config: the data section.
        entry: registered name; its facts give presets, augment, mean and std.
        name: shown name.  where: path or name, for messages.
        stored: the splits as they are stored: one of any name, or train + test, train + val, all three.
        digest: of the stored data.
        notes: said by the loader.
        faults: unreadable images per stored split, by index.

    Raises:
        DataError: empty split or class, class names that differ, unreadable images that may not be skipped.
        ConfigError: an augmentation that does not fit the images.
    """
    first = _consistent(config, stored, where)
    labels = {part: split.labels for part, split in stored.items()}
    parts, said = carve(
        labels,
        val_fraction=float(config.val_fraction),
        test_fraction=float(config.test_fraction),
        seed=config.split_seed,
    )
    said = [*notes, *said]
    ready: dict[str, Split] = {}
    for part, (source, positions) in parts.items():
        kept, skipped = _readable(config, part, positions, (faults or {}).get(source, {}))
        said += skipped
        ready[part] = stored[source].subset(kept)
        carved = part == "val" and source != "val"
        lacking = check_split(ready[part].labels, first.classes, part, where=where, every_class=not carved)
        if lacking:
            said.append(
                f"val has no image of {len(lacking)} of {len(first.classes)} classes: raise data.val_fraction"
            )
    augment, why = _augment(config, datasets.get(entry).facts.augment, first.shape)
    mean, std, how = _normalisation(datasets.get(entry).facts, ready["train"])
    presets = dict(datasets.get(entry).facts.presets)
    return DataBundle(
        name=name, train=ready["train"], val=ready["val"], test=ready["test"], classes=first.classes, shape=first.shape,
        num_classes=len(first.classes), augment=augment, mean=mean, std=std, presets=presets, digest=digest, notes=[*said, why, how],
    )  # fmt: skip


def _consistent(config: DataConfig, stored: Mapping[str, Split], where: str) -> Split:
    """The first split, when all have its classes and shape, and that shape is the one asked for."""
    first = stored["train"] if "train" in stored else next(iter(stored.values()))
    for split in stored.values():
        check_classes(first.classes, split.classes, where=where)
        check_shape(split.shape, first.shape, where=where)
    if config.size is not None and config.size != first.shape[1]:
        hint = "data.size resizes folder:, imagenet and gtsrb; use it with those, or leave it out"
        raise DataError(
            f"data.size={config.size}, but the images are {first.shape[1]}x{first.shape[2]}",
            where=where,
            hint=hint,
            code="E-SHAPE",
        )
    return first


def _readable(
    config: DataConfig, part: str, positions: Tensor, faults: Mapping[int, DataError]
) -> tuple[Tensor, list[str]]:
    """Positions without the unreadable images, and a note on each. Only training images may be skipped, up to max_bad."""
    bad = (
        [(place, faults[index]) for place, index in enumerate(positions.tolist()) if index in faults]
        if faults
        else []
    )
    if not bad:
        return positions, []
    error = next((e for _, e in bad if e.code not in _SKIPPABLE), bad[0][1])
    cap = float(config.max_bad)
    if config.bad_image == "skip" and part == "train" and error.code in _SKIPPABLE:
        if len(bad) <= cap * len(positions):
            keep = torch.ones(len(positions), dtype=torch.bool)
            keep[torch.tensor([place for place, _ in bad])] = False
            return positions[keep], [printable(f"skipped {e.where}: {e.what}") for _, e in bad]
        what = f"{len(bad)} of {len(positions)} training images are unreadable, more than data.max_bad={cap:g}; first: {error.what}"
        raise DataError(
            what, where=error.where, hint="repair the files, or raise data.max_bad", code=error.code
        )
    more = f" (+{len(bad) - 1} more in {part})" if len(bad) > 1 else ""
    hint = (
        "repair or remove the file: evaluation images are never skipped"
        if part != "train" and error.code in _SKIPPABLE
        else error.hint
    )
    raise DataError(error.what + more, where=error.where, hint=hint, code=error.code)


def _augment(
    config: DataConfig, fact: tuple[int, bool] | None, shape: tuple[int, int, int]
) -> tuple[Augment, str]:
    """The augmentation and a note; without a fact, auto is a 4-pixel crop and a flip up to 64 pixels, only the flip above."""
    chosen = config.augment
    if isinstance(chosen, Augment):
        spec, source = chosen, "config"
    elif chosen == "none":
        spec, source = Augment(crop=0, flip=False), "config"
    else:
        crop, flip = fact if fact is not None else (4 if shape[1] <= 64 else 0, True)
        spec, source = Augment(crop=min(crop, shape[1] // 4), flip=flip), "auto"
    if spec.crop >= shape[1]:
        what = f"data.augment.crop={spec.crop} pads more than the image of {shape[1]} pixels"
        raise ConfigError(what, hint="4 is usual for 32 pixels")
    pose = [
        f"{name} {getattr(spec, name):g}" for name in ("rotate", "scale", "translate") if getattr(spec, name)
    ]
    said = ", ".join([f"crop {spec.crop}", "flip" if spec.flip else "no flip", *pose])
    return spec, f"augment: {'none' if spec.idle else said} ({source})"


def _normalisation(facts: DatasetFacts, train: Split) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """mean and std: the data set's constants, else measured on training images."""
    mean, std = facts.mean, facts.std
    if isinstance(mean, tuple) and isinstance(std, tuple) and len(mean) == train.shape[0]:
        return mean, std, "normalisation: the data set's constants"
    limit = _STATISTICS if isinstance(train, MemorySplit) else _STATISTICS_STREAM
    count = min(limit, len(train))
    mean, std = statistics(train, count)
    return mean, std, f"normalisation: measured on {count} training images"


def statistics(split: Split, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation (>= 1/255) of `count` evenly spaced images, on the [0, 1] scale.

    From a histogram of the values k/255 (k/65535 for float pixels), so the answer does not depend on the number of threads.
    """
    levels = 65535 if isinstance(split, MemorySplit) and split.store.pixels.dtype != torch.uint8 else 255
    counts = torch.zeros(split.shape[0], levels + 1, dtype=torch.int64)
    for x, _, _ in split.stream(_chunks(torch.arange(count) * len(split) // count, 256), torch.device("cpu")):
        whole = x.mul_(levels).round_().int()
        for channel in range(len(counts)):
            counts[channel] += torch.bincount(whole[:, channel].flatten(), minlength=levels + 1)
    share = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(levels + 1).double() / levels
    mean = (share * values).sum(1)
    std = (share * (values - mean[:, None]).square()).sum(1).sqrt()
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(max(v, 1 / 255), 6) for v in std.tolist())


def _chunks(positions: Tensor, size: int) -> list[Tensor]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def digest_memory(stored: Mapping[str, MemorySplit]) -> str:
    """SHA-256 (hex) over each stored split's name, classes, dtype, shape, labels and pixels."""
    state = hashlib.sha256()
    for part, split in sorted(stored.items()):
        state.update(
            json.dumps(
                [part, split.classes, str(split.store.pixels.dtype), len(split), *split.shape]
            ).encode()
        )
        state.update(split.labels.numpy().tobytes())
        for chunk in _chunks(torch.arange(len(split)), max(1, 2**26 // max(1, math.prod(split.shape)))):
            state.update(split.raw(chunk).contiguous().numpy().tobytes())
    return state.hexdigest()
