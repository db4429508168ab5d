"""Flags of the command line that no configuration holds: one class per verb.

Flags that several classes share:
    out, overwrite: the run directory, and whether it may replace one.
    resume: go on with the run of this name or directory.
    dry_run: show what the work would cost, and do nothing.
    smoke: a tiny version of the work.
    plugin: FILE.py:factory, a user's model.
    allow_pickle: whether weights may be read from a file that can run code.
    report: leave a report.html when the work is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class TrainFlags:
    """`train`. override_resume: keys of the configuration that may change in a resume."""

    resume: bool = False
    overwrite: bool = False
    override_resume: Sequence[str] = ()
    dry_run: bool = False
    plugin: str | None = None
    allow_pickle: bool = False
    report: bool = False


@dataclass(frozen=True)
class MeasureFlags:
    """`attack` and `transfer`; `eval` has these flags too. nproc: processes that a plan is for."""

    overwrite: bool = False
    dry_run: bool = False
    plugin: str | None = None
    allow_pickle: bool = False
    nproc: int = 1


@dataclass(frozen=True)
class TransferFlags(MeasureFlags):
    """`transfer`. together: how the models that are not the target join; None: they do not."""

    together: Literal["logits", "loss", "best"] | None = None


@dataclass(frozen=True)
class EvalFlags(MeasureFlags):
    """`eval`.

    Args:
        strict: a suspect or invalid evaluation is an error.
        shard: I/N, measure only this part.
        surrogates: references of models; points made on them are shown to the measured one. () leaves that to
            `eval.surrogate`.
        cross_check: the library that runs the same attacks again.
        attack_plugin: FILE.py:NAME, an attack of the user's own.
    """

    resume: bool = False
    strict: bool = False
    shard: str | None = None
    surrogates: Sequence[str] = ()
    cross_check: str | None = None
    attack_plugin: str | None = None
    report: bool = False


@dataclass(frozen=True)
class MergeFlags:
    """`eval --merge`.

    Args:
        runs: run directories, comma-separated.
        out, name, overwrite: where the merged evaluation goes.
        strict: a suspect or invalid evaluation is an error.
        fail_under: metric -> smallest value that passes, for the merged evaluation.
    """

    runs: str
    out: str | None = None
    name: str = "merged"
    overwrite: bool = False
    strict: bool = False
    report: bool = False
    fail_under: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchFlags:
    """`bench`. auto_batch: try growing batch sizes and measure with the fastest."""

    overwrite: bool = False
    smoke: bool = False
    dry_run: bool = False
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
