"""A data set ready for use: three splits, and all that the rest of the program must know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from robustcli.config.sections import Augment, DataConfig
from robustcli.data.augment import choose_augment
from robustcli.data.check import check_classes, check_shape, check_split
from robustcli.data.normalisation import normalisation
from robustcli.data.sampling import carve
from robustcli.data.split import Split
from robustcli.data.unreadable import readable
from robustcli.errors import DataError
from robustcli.registry import datasets


@dataclass
class DataBundle:
    """train, val, test and what describes them.

    name: as shown in tables.
    classes: names, class k is classes[k].
    shape: (C, H, W) of every image.
    augment: of training images, as resolved from the configuration and the data set.
    mean, std: per channel, on the [0, 1] scale, for the model's own normalisation.
    presets: norm -> usual radius.
    digest: SHA-256 of pixels, labels and class names; for streamed files, of paths and sizes.
    notes: what was chosen on the way, in plain words.
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


def build(
    config: DataConfig,
    entry: str,
    *,
    name: str,
    where: str,
    stored: Mapping[str, Split],
    digest: str,
    notes: Sequence[str] = (),
    faults: Mapping[str, Mapping[int, DataError]] | None = None,
) -> DataBundle:
    """Make train, val and test of the stored splits, check them, and describe them.

    Args:
        config: the data section.
        entry: registered name; its facts give presets, augment, mean and std.
        name: shown name.
        where: path or name, for messages.
        stored: one split of any name, or train + test, train + val, or all three.
        digest: of the stored data.
        notes: what the loader has to say.
        faults: unreadable images per stored split, by index.

    Raises:
        DataError: empty split or class, class names that differ, unreadable images that may not be skipped.
        ConfigError: an augmentation that does not fit the images.
    """
    classes, shape = _common(config, stored, where)
    splits, split_notes = _splits(config, stored, faults or {}, where)
    facts = datasets.get(entry).facts
    augment, augment_note = choose_augment(config, facts.augment, shape[1])
    mean, std, mean_note = normalisation(facts, splits["train"])
    return DataBundle(
        name=name,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        classes=classes,
        shape=shape,
        num_classes=len(classes),
        augment=augment,
        mean=mean,
        std=std,
        presets=dict(facts.presets),
        digest=digest,
        notes=[*notes, *split_notes, augment_note, mean_note],
    )


def _common(
    config: DataConfig, stored: Mapping[str, Split], where: str
) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """(classes, shape) that all stored splits have, the shape of the size that was asked for."""
    first = stored.get("train", next(iter(stored.values())))
    for split in stored.values():
        check_classes(first.classes, split.classes, where=where)
        check_shape(split.shape, first.shape, where=where)
    if config.size is not None and config.size != first.shape[1]:
        raise DataError(
            f"data.size={config.size}, but the images are {first.shape[1]}x{first.shape[2]}",
            where=where,
            hint="data.size resizes folder:, imagenet and gtsrb; use it with those, or leave it out",
            code="E-SHAPE",
        )
    return first.classes, first.shape


def _splits(
    config: DataConfig,
    stored: Mapping[str, Split],
    faults: Mapping[str, Mapping[int, DataError]],
    where: str,
) -> tuple[dict[str, Split], list[str]]:
    """train, val and test, without the images that may be skipped, and notes."""
    places, notes = carve(
        {part: split.labels for part, split in stored.items()},
        val_fraction=float(config.val_fraction),
        test_fraction=float(config.test_fraction),
        seed=config.split_seed,
    )
    splits: dict[str, Split] = {}
    for part, (source, positions) in places.items():
        kept, skip_notes = readable(config, part, positions, faults.get(source, {}))
        splits[part] = stored[source].subset(kept)
        notes += skip_notes
        notes += _complete(splits[part], part, where, carved=part == "val" and source != "val")
    return splits, notes


def _complete(split: Split, part: str, where: str, *, carved: bool) -> list[str]:
    """Check that every class has an image. A validation split carved by seed may lack some: then a note."""
    lacking = check_split(split.labels, split.classes, part, where=where, every_class=not carved)
    if not lacking:
        return []
    count = f"{len(lacking)} of {len(split.classes)} classes"
    return [f"val has no image of {count}: raise data.val_fraction"]
