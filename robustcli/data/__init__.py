"""Data sets: loading, checks, splits, batched augmentation, sampling. Importing it registers nothing; `datasets.discover()` does."""

from __future__ import annotations

from robustcli.data.augment import augment
from robustcli.data.bundle import DataBundle, epsilon_preset
from robustcli.data.check import check_classes, check_head, check_labels, check_range, check_shape
from robustcli.data.datasets import load_data
from robustcli.data.sampling import split_by_seed, stratified, train_order
from robustcli.data.split import MemorySplit, Split
from robustcli.data.stream import StreamSplit

__all__ = [
    "DataBundle", "MemorySplit", "Split", "StreamSplit", "augment", "check_classes", "check_head", "check_labels", "check_range", "check_shape",
    "epsilon_preset", "load_data", "split_by_seed", "stratified", "train_order",
]  # fmt: skip
