"""Whether the files of a run say the same: its samples, its rows and its document.

A run is written in one piece by one verb. Where two of its files differ, somebody has changed one of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from robustcli.records.certify import CertificateRow, CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardRow, GuardSampleRow
from robustcli.records.sample import SampleRow
from robustcli.reporting.dossier import Dossier

_SINGLE = ("clean", "worst")
_SHARED = ("n", "norm", "eps", "clean_correct", "data", "split")
_CLOSE = 1e-9


def contradictions(run: Dossier) -> list[str]:
    """What two files of a run say differently, one sentence each; [] where they agree.

    Raises DataError E-RECORD for a file that cannot be read.
    """
    found = [*_rows(run), *_document(run), *_samples(run), *_certificates(run), *_guarded(run)]
    return list(dict.fromkeys(found))


def _rows(run: Dossier) -> Iterator[str]:
    """An evaluation has one clean row and one of the worst case, over the same samples."""
    kinds = Counter(row.kind for row in run.of(EvalRow))
    for kind in _SINGLE:
        if kinds[kind] > 1:
            yield f"metrics.jsonl has {kinds[kind]} rows of kind {kind}"
    clean, worst = run.eval_row("clean"), run.eval_row("worst")
    if clean is None or worst is None:
        return
    shared = _SHARED if worst.norm != "none" else [name for name in _SHARED if name not in ("norm", "eps")]
    for name in shared:
        if getattr(clean, name) != getattr(worst, name):
            yield f"metrics.jsonl has two values of {name}"


def _document(run: Dossier) -> Iterator[str]:
    """The numbers of summary.json are those of the row of the worst case, and its alarms are a list."""
    worst = run.eval_row("worst")
    if worst is None:
        return
    alarms = run.document.get("alarms", [])
    if not isinstance(alarms, list) or not all(isinstance(alarm, Mapping) for alarm in alarms):
        yield "the alarms in summary.json are none of an evaluation"
    told: dict[str, Any] = {name: getattr(worst, name) for name in ("n", "norm", "eps", "data", "split")}
    told |= {"clean_acc": worst.clean.value, "robust_acc": worst.robust and worst.robust.value}
    for name, value in told.items():
        said = run.document.get(name)
        if said is not None and not _same(said, value):
            yield f"summary.json says {name} = {said}, metrics.jsonl {value}"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=_CLOSE)
    return bool(a == b)


def _samples(run: Dossier) -> Iterator[str]:
    """The rows count the samples, all of them and those of each class."""
    worst, samples = run.eval_row("worst"), run.answers
    if worst is None or not samples:
        return
    yield from _counted("right", _right(samples), worst.clean_correct, worst.n)
    if worst.audit.get("escalated"):
        return
    yield from _counted("standing", _standing(samples), worst.correct, worst.n)
    clean = run.eval_row("clean")
    for row, counts in ((clean, _right(samples)), (worst, _standing(samples))):
        yield from () if row is None else _of_classes(row, samples, counts)


def _right(samples: Iterable[SampleRow]) -> dict[int, bool]:
    return {sample.id: sample.correct for sample in samples}


def _standing(samples: Iterable[SampleRow]) -> dict[int, bool]:
    return {sample.id: sample.correct and sample.broken_by is None for sample in samples}


def _of_classes(row: EvalRow, samples: Iterable[SampleRow], holds: dict[int, bool]) -> Iterator[str]:
    if not row.per_class:
        return
    counts: Counter[tuple[str, bool]] = Counter((sample.label, holds[sample.id]) for sample in samples)
    for name, (k, n) in row.per_class.items():
        found = counts[name, True], counts[name, True] + counts[name, False]
        if found != (k, n):
            yield f"of class {name}: {found[0]} of {found[1]} samples, and {k} of {n} by the rows"


def _certificates(run: Dossier) -> Iterator[str]:
    samples = [row for row in run.samples if isinstance(row, CertificateRow)]
    for row in run.of(CertifyRow) if samples else ():
        certified = {sample.id: sample.certified(row.eps) for sample in samples}
        standing = {sample.id: sample.standing(row.eps) for sample in samples}
        where = f"at {row.eps:.6g}"
        yield from _counted(f"certified {where}", certified, row.certified, row.n)
        yield from _counted(f"standing {where}", standing, row.standing, row.n)


def _guarded(run: Dossier) -> Iterator[str]:
    samples = run.of(GuardSampleRow)
    for row in run.of(GuardRow) if samples else ():
        holds = {sample.id: sample.adaptive for sample in samples}
        rejected = {sample.id: sample.rejected for sample in samples}
        yield from _counted("standing under the adaptive attack", holds, row.adaptive_standing, row.n)
        yield from _counted("rejected", rejected, row.rejections, row.n)


def _counted(what: str, holds: dict[int, bool], k: int, n: int) -> Iterator[str]:
    """Nothing where so many of so many hold; else what stands there."""
    found = sum(holds.values())
    if (found, len(holds)) != (k, n):
        yield f"{what}: {found} of {len(holds)} samples, and {k} of {n} by the rows"
