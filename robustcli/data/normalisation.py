"""Mean and standard deviation of the channels, for the model's own normalisation."""

from __future__ import annotations

import torch

from robustcli.data.split import MemorySplit, Split
from robustcli.facts import DatasetFacts

_IMAGES = 5_000  # read for mean and deviation, evenly spaced
_IMAGES_STREAMED = 512
Channels = tuple[float, ...]


def normalisation(facts: DatasetFacts, split: Split, part: str) -> tuple[Channels, Channels, str]:
    """(mean, std, a note): the constants of the data set, else what is measured on the images of a split.

    Args:
        part: the name of that split: train, or test where nothing is there to train on.
    """
    if facts.mean is not None and facts.std is not None and len(facts.mean) == split.shape[0]:
        return facts.mean, facts.std, "normalisation: the data set's constants"
    limit = _IMAGES if isinstance(split, MemorySplit) else _IMAGES_STREAMED
    count = min(limit, len(split))
    mean, std = statistics(split, count)
    if part == "train":
        return mean, std, f"normalisation: measured on {count} training images"
    return mean, std, f"normalisation: measured on {count} {part} images; --normalize states the model's own"


def statistics(split: Split, count: int) -> tuple[Channels, Channels]:
    """Mean and standard deviation (>= 1/255) of each channel, on the [0, 1] scale.

    They are measured on `count` evenly spaced images.
    They come from a histogram of the values k/255, so the number of threads does not change them. Pixels that
    are stored as floats are counted at k/65535.
    """
    levels = _levels(split)
    counts = torch.zeros(split.shape[0], levels + 1, dtype=torch.int64)
    positions = torch.arange(count) * len(split) // count
    for x, _, _ in split.stream(positions.split(256), torch.device("cpu")):
        whole = x.mul_(levels).round_().int()
        for channel in range(len(counts)):
            counts[channel] += torch.bincount(whole[:, channel].flatten(), minlength=levels + 1)
    share = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(levels + 1).double() / levels
    mean = (share * values).sum(1)
    std = (share * (values - mean[:, None]).square()).sum(1).sqrt()
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(max(v, 1 / 255), 6) for v in std.tolist())


def _levels(split: Split) -> int:
    """The largest value of a stored pixel when [0, 1] is counted in whole steps."""
    if isinstance(split, MemorySplit) and split.store.pixels.dtype != torch.uint8:
        return 65535
    return 255
