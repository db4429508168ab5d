"""What verbs share that measure in shards: the run directory that may be resumed, and the header of shards.

A header states all that verdicts depend on. Shards with different headers belong to different evaluations.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from robustcli.assembly.origin import pinned
from robustcli.assembly.rows import hashes_of
from robustcli.assembly.setting import Setting
from robustcli.assembly.sources import sources_of
from robustcli.config.schema import Config
from robustcli.evaluation.header import Header
from robustcli.jobs.resuming import say_if_anew
from robustcli.records.alarm import Alarm
from robustcli.runtime.seed import PACKAGE, hash_tree
from robustcli.store.run import Run
from robustcli.store.rundir import newest_run, open_run
from robustcli.terminal.console import Console

_JUDGING = (
    "attacks",
    "certificates",
    "core",
    "defences",
    "evaluation",
    "models",
)  # a verdict depends on
_KNOWN = (
    "torch",
    "torchvision",
    "timm",
    "robustcli",
)  # their versions are in env.json; ours is in the code hash


class ShardFlags(Protocol):
    """What the command line says of a run that may be resumed."""

    @property
    def resume(self) -> bool:
        """Whether the run goes on."""

    @property
    def overwrite(self) -> bool:
        """Whether it may replace another one."""


def open_sharded(
    verb: str, config: Config, console: Console, flags: ShardFlags, *references: str | None
) -> Run:
    """The run directory. A run that is resumed begins when its shards are known to be of this evaluation.

    references: to models and code that are read, beside those of the configuration.
    """
    run = open_run(
        verb,
        config.name,
        out=config.out,
        overwrite=flags.overwrite,
        resume=flags.resume,
        sources=sources_of(config, *references),
        begin=not flags.resume,
    )
    if flags.resume:
        say_if_anew(run, console)
    return run


def with_source(verb: str, config: Config, console: Console, *, resume: bool) -> Config:
    """The configuration with ``latest`` replaced by a run; a run that goes on keeps its first one."""
    resumed = newest_run(verb, config.name, out=config.out) if resume else None
    return pinned(config, resumed, console.info)


def header_of(
    setting: Setting,
    model: nn.Module,
    plan: Any,
    ids: Tensor,
    alarms: Sequence[Alarm],
    size: int | None = None,
) -> Header:
    """The header: model, data, source of the judging code, final plan, and samples `ids`, int64 [n].

    plan: a dataclass. size: samples per shard; None = that of an evaluation.
    """
    config, data, hashes = setting.config, setting.data, hashes_of(setting, model)
    about = {
        "data": data.name,
        "split": config.eval.split,
        "model": config.model.label,
        "classes": list(data.classes),
        "hashes": hashes,
    }
    return Header.of(
        plan,
        ids,
        size=size or config.eval.shard_size,
        about=about,
        alarms=[alarm.to_json() for alarm in alarms],
        model=f"{hashes['model']} {forward_digest(model)}",
        data=f"{data.digest} {config.eval.split}",
        code="-".join(hash_tree(PACKAGE / name)[:16] for name in _JUDGING),
    )


def forward_digest(model: nn.Module) -> str:
    """Hash of a model's structure and of the source of its modules; its weights do not tell these."""
    digest = hashlib.sha256(repr(model).encode())
    kinds = {type(module) for module in model.modules()}
    for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        if kind.__module__.partition(".")[0] not in _KNOWN:
            digest.update(_source(kind))
    return digest.hexdigest()[:16]


def _source(kind: type) -> bytes:
    """The source file of a class; b"" for one that has none, which is hashed by its name alone."""
    try:
        return Path(inspect.getsourcefile(kind) or "").read_bytes()
    except (TypeError, OSError):
        return b""
