"""What verbs share that measure in shards: the run directory that may be resumed, and the header of shards.

A header states all that verdicts depend on. Shards with different headers belong to different evaluations.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from robustcli.assembly.origin import pinned
from robustcli.assembly.reopen import Opening, following, note_run, opening
from robustcli.assembly.rows import hashes_of
from robustcli.assembly.setting import Setting
from robustcli.assembly.sources import new_run, sources_of
from robustcli.config.schema import Config
from robustcli.config.threats import threat_name
from robustcli.evaluation.header import Header
from robustcli.evaluation.sizing import shard_size
from robustcli.jobs.rerun import write_inputs
from robustcli.jobs.resuming import say_if_anew
from robustcli.jobs.verb_flags import MeasureFlags
from robustcli.records.alarm import Alarm
from robustcli.runtime.source import PACKAGE, hash_tree
from robustcli.runtime.team import Team
from robustcli.store.follower import Follower
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
    verb: str, config: Config, console: Console, flags: ShardFlags, *references: str | None, team: Team
) -> Run | Follower:
    """The run directory. A run that is resumed begins when its shards are known to be of this evaluation.

    references: to models and code that are read, beside those of the configuration. team: its rank 0 has the
    run, and the others get its path once it has begun.
    """
    team.loaded()
    if not team.main:
        return following()
    asked = Opening(config.out, flags.resume, flags.overwrite)
    if team.again:
        asked = opening(*asked)
    run = open_run(
        verb,
        config.name,
        out=asked.out,
        overwrite=asked.overwrite,
        resume=asked.resume,
        numbered=config.out is None,
        sources=sources_of(config, *references),
        begin=not asked.resume,
    )
    if flags.resume:
        say_if_anew(run, console)
    return run


def open_new(
    verb: str, config: Config, flags: MeasureFlags, *references: str | None, team: Team
) -> Run | Follower:
    """The directory of a run of a verb without --resume; arguments as for `open_sharded`.

    Only a rank 0 that takes the place of a lost one goes on in the directory of that one.
    """
    team.loaded()
    if not team.main:
        return following()
    asked = Opening(config.out, False, flags.overwrite)
    if team.again:
        asked = opening(*asked)
    run = new_run(
        verb,
        config,
        flags.plugin,
        *references,
        out=asked.out,
        resume=asked.resume,
        overwrite=asked.overwrite,
    )
    note_run(run.path)
    return run


def beginner(run: Run | Follower, config: Config) -> Callable[[], None]:
    """What begins a run once its shards are known to be its own: a refused --resume leaves it as it was."""

    def begin() -> None:
        if isinstance(run, Run):
            run.begin()
            run.status(resumable=True)
            write_inputs(run, config)
            note_run(run.path)

    return begin


def joined(config: Config, console: Console) -> tuple[Team, Console]:
    """The team of this process, and its console: rank 0 speaks for all, and downloads for all."""
    team = Team.here()
    if config.data.download:
        team.await_first()
    return team, console if team.main else Console(quiet=True)


def with_source(verb: str, config: Config, console: Console, *, resume: bool, team: Team) -> Config:
    """The configuration with ``latest`` replaced by a run; a run that goes on keeps its first one."""
    asked = Opening(config.out, resume, False)
    if team.again:
        asked = opening(*asked)
    resumed = newest_run(verb, config.name, out=asked.out) if asked.resume else None
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
        size=size or config.eval.shard_size or shard_size(len(ids)),
        about=about,
        alarms=[alarm.to_json() for alarm in alarms],
        model=f"{hashes['model']} {forward_digest(model)}",
        data=f"{data.digest} {config.eval.split}{_beside(setting)}",
        code="-".join(hash_tree(PACKAGE / name)[:16] for name in _JUDGING),
    )


def _beside(setting: Setting) -> str:
    """The balls of the union that this one is part of; the first ball then refuses the shards of another."""
    return "".join(f" {threat_name(ball.norm, ball.eps)}" for ball in setting.union)


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
