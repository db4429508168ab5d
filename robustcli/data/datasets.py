"""`load_data`: from the data section of a config to a checked `DataBundle`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle, enough_memory
from robustcli.data.split import PARTS
from robustcli.errors import ConfigError
from robustcli.facts import DatasetFacts
from robustcli.registry import Entry, datasets, suggestion


def load_data(
    config: DataConfig,
    *,
    allow_download: bool = False,
    parts: Sequence[str] = PARTS,
    whole: Callable[[str], bool] = lambda digest: False,
) -> DataBundle:
    """The data set named by `config.name`: a registered name, or NAME:PATH for one that takes a path.

    Args:
        config: the data section.
        allow_download: the command line said --download; `config.download` has the same effect.
        parts: the splits that are read and checked now: train, val, test. Others are when they are used.
        whole: given the digest of the data, whether all images of the user's own data that have one split
            are the test, where data.test_fraction is null. That is for models that were not trained on them.

    Returns:
        a bundle; of `parts`, labels, pixel range, shapes, classes and files were checked.

    Raises:
        DataError: anything wrong with the data (exit 3).
        ConfigError: an unknown name (exit 2).
        ResourceError: a missing or broken optional package (exit 6).
    """
    entry = _entry(config.name)
    if allow_download and not config.download:
        config = config.model_copy(update={"download": True})
    with enough_memory(config):
        bundle = entry.fn(config)
    assert isinstance(bundle, DataBundle)
    bundle.whole = whole
    bundle.need(parts)
    return bundle


def _entry(text: str) -> Entry[DatasetFacts]:
    """The registered data set that `text` names, with a path exactly when that data set takes one."""
    name, _, path = text.partition(":")
    if name not in datasets:
        known = ", ".join(spelling(entry) for entry in datasets)
        hint = f"{suggestion(name, datasets.names())}known: {known}"
        raise ConfigError(f"unknown data set {text!r}", where="data.name", hint=hint)
    entry = datasets.get(name)
    if path and not entry.facts.path:
        hint = f"write {name}; its files are looked for in data.root"
        raise ConfigError(f"data set {text!r} takes no path", where="data.name", hint=hint)
    if not path and entry.facts.path:
        hint = f"write {name}:PATH"
        raise ConfigError(f"data set {text!r} needs path", where="data.name", hint=hint)
    return entry


def spelling(entry: Entry[DatasetFacts]) -> str:
    """How data.name names the data set."""
    if entry.facts.path:
        return f"{entry.name}:PATH"
    return entry.name


def source_path(config: DataConfig) -> Path:
    """PATH of NAME:PATH, with ~ expanded."""
    return Path(config.name.partition(":")[2]).expanduser()
