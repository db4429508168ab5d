"""`load_data`: from the data section of a config to a checked `DataBundle`."""

from __future__ import annotations

from pathlib import Path

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.errors import ConfigError, RobustCliError
from robustcli.registry import datasets, suggestion


def load_data(config: DataConfig, *, allow_download: bool = False) -> DataBundle:
    """The data set named by `config.name`: a registered name, folder:PATH or npz:PATH.

    Args:
        config: the data section.
        allow_download: the command line said --download; `config.download` has the same effect.

    Returns:
        a bundle whose labels, pixel range, shapes, classes and files were checked.

    Raises:
        DataError: anything wrong with the data (exit 3).
        ConfigError: an unknown name (exit 2).
        ResourceError: a missing or broken optional package (exit 6).
    """
    name, _, rest = config.name.partition(":")
    known = datasets
    if name not in known:
        names = ", ".join(n + ":PATH" if known.get(n).facts.path else n for n in known.names())
        raise ConfigError(
            f"unknown data set {config.name!r}",
            where="data.name",
            hint=f"{suggestion(name, known.names())}known: {names}",
        )
    takes_path = bool(known.get(name).facts.path)
    if takes_path != bool(rest):
        fix = f"write {name}:PATH" if takes_path else f"write {name}; its files are looked for in data.root"
        raise ConfigError(
            f"data set {config.name!r} {'needs' if takes_path else 'takes no'} path",
            where="data.name",
            hint=fix,
        )
    if allow_download and not config.download:
        config = config.model_copy(update={"download": True})
    try:
        bundle = known.get(name).fn(config)
    except RobustCliError:
        raise
    except MemoryError as error:
        raise _no_memory(config) from error
    assert isinstance(bundle, DataBundle)
    return bundle


def _no_memory(config: DataConfig) -> RobustCliError:
    from robustcli.errors import ResourceError

    return ResourceError(
        f"no memory to load {config.name}",
        hint="data.storage=stream, or a smaller data.size",
        code="E-MEMORY",
    )


def source_path(config: DataConfig) -> Path:
    """PATH of folder:PATH or npz:PATH, with ~ expanded."""
    return Path(config.name.partition(":")[2]).expanduser()
