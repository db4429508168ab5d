"""Which run a model comes from: what ``latest`` means is settled when a run begins, written down, and kept when it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from robustcli.config.load import load_config
from robustcli.config.schema import Config
from robustcli.config.spec import ModelConfig
from robustcli.errors import ConfigError
from robustcli.store.latest import LATEST, resolve_run

_RUN = "run:"


def followed(reference: str) -> str:
    """A model reference or a path, with every ``latest`` in it replaced by the run that it names now."""
    head, path = _split(reference)
    return head + str(resolve_run(path)) if LATEST in path.parts else reference


def pinned(
    config: Config, resumed: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Config:
    """`config` with the runs that its model names by ``latest`` spelled out, so that config.resolved.yaml says what was read.

    Args:
        resumed: directory of a run that goes on. What it began with stays: by now ``latest`` may be another run, or this very one.
        say: told when that is not what ``latest`` names now.

    Raises ResourceError: ``latest`` cannot be read.
    """
    spec, before = config.model, _begun_with(resumed)
    changes: dict[str, str] = {}
    for key, asked in (("name", spec.name), ("weights", spec.weights)):
        if asked is None or followed(asked) == asked:
            continue
        changes[key] = now = followed(asked)
        stored = getattr(before, key, None)
        if stored is not None and stored != now and _means(asked, stored):
            changes[key] = stored
            say(f"going on with {stored}, as the run began; {asked} is {now} by now")
    return config.model_copy(update={"model": spec.model_copy(update=changes)}) if changes else config


def _split(reference: str) -> tuple[str, Path]:
    head = _RUN if reference.startswith(_RUN) else ""
    return head, Path(reference.removeprefix(head))


def _begun_with(resumed: Path | None) -> ModelConfig | None:
    """The model in the resolved configuration of a run; None where there is none that can be read."""
    stored = resumed / "config.resolved.yaml" if resumed is not None else None
    if stored is None or not stored.is_file():
        return None
    try:
        return load_config(stored, environ={}, bind=False).config.model
    except ConfigError:
        return None


def _means(asked: str, stored: str) -> bool:
    """Whether `stored` is what `asked` may have named: the same but for the places of ``latest``."""
    (head, path), (other, found) = _split(asked), _split(stored)
    pairs = zip(path.parts, found.parts, strict=False)
    return (
        head == other
        and len(path.parts) == len(found.parts)
        and all(part in (LATEST, name) for part, name in pairs)
    )
