"""What only the command line says, and no configuration: one class per verb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainFlags:
    """`train`. override_resume: keys that may change although the run goes on."""

    resume: bool = False
    overwrite: bool = False
    override_resume: Sequence[str] = ()
    dry_run: bool = False
    plugin: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class MeasureFlags:
    """`attack` and `transfer`, and what `eval` shares with them. plugin: FILE.py:factory, a user's model."""

    overwrite: bool = False
    dry_run: bool = False
    plugin: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class EvalFlags(MeasureFlags):
    """`eval`.

    Args:
        strict: a suspect or invalid evaluation is an error.
        shard: I/N, measure only this part.
        surrogate: a model whose adversarial images are tried too.
        cross_check: the library that runs the same attacks again.
        attack_plugin: FILE.py:NAME, an attack of the user's own.
    """

    resume: bool = False
    strict: bool = False
    shard: str | None = None
    surrogate: str | None = None
    cross_check: str | None = None
    attack_plugin: str | None = None


@dataclass(frozen=True)
class MergeFlags:
    """`eval --merge`.

    Args:
        runs: run directories, comma-separated.
        out, name, overwrite: where the merged evaluation goes.
        strict: a suspect or invalid evaluation is an error.
        fail_under: metric -> least value; of the whole, not of a part.
    """

    runs: str
    out: str | None = None
    name: str = "merged"
    overwrite: bool = False
    strict: bool = False
    fail_under: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchFlags:
    """`bench`. auto_batch: try growing batches and go on with the fastest."""

    overwrite: bool = False
    smoke: bool = False
    auto_batch: bool = False
    plugin: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class DemoFlags:
    """`demo`. settings: key=value, for all of its configurations."""

    settings: Sequence[str] = ()
    out: str | None = None
    overwrite: bool = False
    smoke: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class CheckFlags:
    """`check-gpu`. measure: time the devices, instead of only describing them."""

    require_cuda: bool = False
    measure: bool = True
