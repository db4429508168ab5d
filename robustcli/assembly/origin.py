"""Which run a model comes from.

``latest`` is replaced by the name of a run when work begins. That name is written down, and a resume reads
it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from robustcli.assembly.members import with_members
from robustcli.config.load import load_config
from robustcli.config.schema import Config
from robustcli.config.spec import GUARD, ModelConfig
from robustcli.errors import ConfigError
from robustcli.store.current import CURRENT
from robustcli.store.latest import LATEST, resolve_run

_RUN = "run:"


def followed(reference: str) -> str:
    """A model reference or a path, with every ``latest`` and ``current`` in it replaced by what it names."""
    head, path = _split(reference)
    if LATEST not in path.parts and CURRENT not in path.parts:
        return reference
    return head + str(resolve_run(path))


def pinned(
    config: Config, resumed: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Config:
    """`config` with every ``latest`` in its models replaced by the name of a run.

    Args:
        config: names the model and its weights; each may be a reference to a run.
        resumed: directory of a run that goes on. It keeps the model that it began with, also when ``latest``
            is another run by now.
        say: told when ``latest`` is another run by now.

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
    defences = [with_members(one, followed) for one in config.defences]
    return config.model_copy(update={"model": spec.model_copy(update=changes), "defences": defences})


def _split(reference: str) -> tuple[str, Path]:
    """("run:", "guard:" or "", the path behind it)."""
    path = reference.removeprefix(_RUN).removeprefix(GUARD)
    return reference[: len(reference) - len(path)], Path(path)


def _begun_with(resumed: Path | None) -> ModelConfig | None:
    """The model in the resolved configuration of the run; None for no run or an unreadable configuration."""
    if resumed is None:
        return None
    stored = resumed / "config.resolved.yaml"
    if not stored.is_file():
        return None
    try:
        return load_config(stored, environ={}, bind=False).config.model
    except ConfigError:
        return None


def _means(asked: str, stored: str) -> bool:
    """Whether `stored` may be what `asked` named: all path parts but ``latest`` are equal."""
    (head, path), (stored_head, stored_path) = _split(asked), _split(stored)
    if head != stored_head or len(path.parts) != len(stored_path.parts):
        return False
    return all(part in (LATEST, name) for part, name in zip(path.parts, stored_path.parts, strict=True))
