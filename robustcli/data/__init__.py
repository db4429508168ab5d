"""Data sets: loading, checks, splits, batched augmentation, sampling. Imported when used."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "load_data":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from robustcli.data.datasets import load_data

    return load_data
