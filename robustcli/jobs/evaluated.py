"""Writes and shows a finished evaluation: records, tables, alarms, summary, document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustcli.assembly.rows import eval_document, sample_rows, write_rows, write_samples
from robustcli.config.schema import Config
from robustcli.errors import UnreliableError
from robustcli.evaluation.result import Evaluation
from robustcli.jobs.evidence.examples import keep_examples
from robustcli.jobs.thresholds import verdicts
from robustcli.records.document import Document
from robustcli.records.eval import EvalRow
from robustcli.records.sample import SampleRow
from robustcli.reporting.record_tables import eval_table, union_table
from robustcli.reporting.summary import eval_summary
from robustcli.reporting.weakest import (
    weak_class_table,
    weak_image_table,
    weakest_classes,
    weakest_images,
)
from robustcli.store.run import Run
from robustcli.terminal.console import Console

_CLASSES = 5  # of the weakest, named in the document


def report(
    run: Run,
    document: Document,
    config: Config,
    result: Evaluation,
    rows: list[EvalRow],
    console: Console,
    more: Mapping[str, Any] | None = None,
    shards: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write and show everything, and mark the run as done; returns the document.

    more: further keys of the document. shards: folders of the shards, where images were kept.
    """
    write_rows(run, rows)
    samples = sample_rows(result, tuple(rows[-1].per_class))
    write_samples(run, samples)
    keep_examples(run, shards, config, result, rows[-1], console.warn)
    weakest = weakest_images(samples, result.counted)
    partial = _partial(result)
    if lost := rows[-1].at_chance:
        more = {**(more or {}), "notes": [lost]}
    _show(result, rows, partial, weakest, console)
    classes = {"classes": list(rows[-1].per_class)}  # in the order of their labels
    content = {**eval_document(result, rows), **classes, "weakest": _weakest(rows, weakest), **(more or {})}
    answer = document.finish(run.path, content)
    if result.complete and config.eval.fail_under:
        answer["gate"] = verdicts(answer, config.eval.fail_under)
    if partial:
        answer["partial"] = dict(zip(("shards", "of"), result.shards, strict=True))
        console.warn(partial)
    run.write_text("summary.md", _summary(config, result, rows, partial))
    run.write_json("summary.json", answer)
    run.status(state="done", code=0)
    return answer


def refuse_unreliable(result: Evaluation, run: Run, strict: bool) -> None:
    """With --strict: raises UnreliableError (exit 10) for an evaluation with alarms.

    What the run has written stays.
    """
    if strict and result.reliability != "ok":
        names = ", ".join(_alarm_names(result))
        raise UnreliableError(f"the evaluation is {result.reliability}: {names}", where=str(run.path))


def _partial(result: Evaluation) -> str:
    """The warning that the numbers are not final, with the shards measured so far; "" when all are."""
    if result.complete:
        return ""
    done, of = result.shards
    return f"partial {done}/{of} shards: {result.n} of {result.total} samples; no number here is final"


def _weakest(rows: Sequence[EvalRow], images: Sequence[SampleRow]) -> dict[str, Any]:
    """The key `weakest` of the document: classes and images, the weakest first."""
    about = ("schema_version", "kind")
    lines = [
        {name: value for name, value in image.to_json().items() if name not in about} for image in images
    ]
    return {"classes": weakest_classes(rows[0], rows[-1])[:_CLASSES], "images": lines}


def _show(
    result: Evaluation, rows: Sequence[EvalRow], partial: str, weakest: Sequence[SampleRow], console: Console
) -> None:
    """The tables on stdout, the alarms on stderr."""
    table = eval_table(rows)
    audit = "" if result.audit is None else f" Rapid, {result.audit.words()}."
    for name, part in result.parts.items():
        audit += "" if part.audit is None else f" Rapid in {name}, {part.audit.words()}."
    alarms = ", ".join(_alarm_names(result)) or "no alarm"
    note = f"{partial or table.note}{audit} Reliability: {result.reliability} ({alarms})."
    console.table(replace(table, note=note))
    if (by_ball := union_table(rows)) is not None:
        console.table(by_ball)
    console.table(weak_class_table(rows[0], rows[-1]))
    if weakest:
        console.table(weak_image_table(weakest))
    for alarm in result.alarms:
        console.warn(alarm.line())


def _summary(config: Config, result: Evaluation, rows: Sequence[EvalRow], partial: str) -> str:
    head = f"**{partial}.**\n\n" if partial else ""
    alarms = [alarm.to_json() for alarm in result.alarms]
    return head + eval_summary(config.model_dump(mode="json"), rows, alarms)


def _alarm_names(result: Evaluation) -> list[str]:
    return sorted({alarm.name for alarm in result.alarms})
