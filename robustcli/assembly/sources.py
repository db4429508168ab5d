"""What a command reads from the disk: its output must lie apart from all of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from robustcli.assembly.lineage import begins_with
from robustcli.config.schema import Config
from robustcli.config.spec import GUARD
from robustcli.store.latest import resolve_run
from robustcli.store.run import Run
from robustcli.store.rundir import open_run
from robustcli.store.sources import Source


def sources_of(config: Config, *references: str | None) -> list[Source]:
    """The model, the weights and the data of a configuration, and further references to models or to code."""
    models = [*begins_with(config), *references]
    found = [Source(f"the model {name}", path) for name in _given(models) for path in _places(name)]
    for name in _given([config.data.name, config.data.extra]):
        _, colon, path = name.partition(":")
        if colon:
            found.append(Source(f"the data {name}", Path(os.path.expanduser(path))))
    return found


def new_run(
    verb: str,
    config: Config,
    *references: str | None,
    overwrite: bool,
    out: str | None = None,
    resume: bool = False,
) -> Run:
    """The directory of a new run of `verb`, apart from all that it reads; arguments as for `sources_of`.

    out: in place of the configured one. resume: go on in that directory.
    """
    return open_run(
        verb,
        config.name,
        out=out or config.out,
        resume=resume,
        overwrite=overwrite,
        numbered=config.out is None,
        sources=sources_of(config, *references),
    )


def _given(names: Iterable[str | None]) -> list[str]:
    return [name for name in names if name]


def _places(reference: str) -> Iterator[Path]:
    """Where a reference may lead: run:DIR, guard:DIR, FILE.py:NAME. A name without a file leads nowhere."""
    path = reference.removeprefix("run:").removeprefix(GUARD)
    yield resolve_run(Path(path))
    if ":" in path:
        yield Path(path.rpartition(":")[0])
