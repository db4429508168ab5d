"""Writes and shows a finished certification: records, tables, picture, summary, document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from robustcli.assembly.rows import short_ids_digest
from robustcli.config.schema import Config
from robustcli.errors import UnreliableError
from robustcli.evaluation.certificates.document import LOOSER
from robustcli.evaluation.certificates.measured import Certified
from robustcli.evaluation.collect import concluded
from robustcli.evaluation.header import Header
from robustcli.proportions import Rate
from robustcli.records.alarm import Alarm, reliability
from robustcli.records.certify import (
    STATUSES,
    CertificateRow,
    CertifyRow,
    average_radius,
    certify_rows,
)
from robustcli.records.document import Document
from robustcli.reporting.cells import format_eps
from robustcli.reporting.certify_picture import certified_curve
from robustcli.reporting.certify_table import certify_table, status_table
from robustcli.reporting.record_tables import write_csv
from robustcli.reporting.summary import certify_summary
from robustcli.store.atomic import JsonLines, strict_json
from robustcli.store.run import Run
from robustcli.terminal.console import Console

_NAMED = 5  # samples in a message


def report(
    run: Run,
    document: Document,
    config: Config,
    header: Header,
    result: Certified,
    console: Console,
    *,
    strict: bool = False,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write and show everything, and mark the run as done; returns the document.

    more: further keys of the document.

    Raises UnreliableError E-INVERSION for a sample that an attack broke where a certificate says that none
    can; with `strict`, E-UNRELIABLE for an evaluation with alarms. What the run has written stays.
    """
    alarms = _alarms(result, header)
    rows = _rows(header, result)
    _write(run, rows, result.rows)
    ball, partial = header.plan["ball"], _partial(result)
    tables = [certify_table(rows), status_table(result.rows, ball["eps"], ball["norm"])]
    radius = average_radius(result.rows)
    facts = _facts(result.rows, radius, ball["norm"], partial)
    for table in tables:
        console.table(table)
    for line in facts:
        console.info(line)
    for alarm in alarms:
        console.warn(alarm.line())
    title = f"{header.about['data']}: {header.about['model']}"
    certified_curve(run.path / "plots" / "certified.png", rows, result.rows, title=title)
    answer = document.finish(run.path, _content(header, rows, result.rows, alarms, radius))
    answer |= more or {}
    if partial:
        answer["partial"] = dict(zip(("shards", "of"), result.shards, strict=True))
    listed = [alarm.to_json() for alarm in alarms]
    run.write_text("summary.md", certify_summary(config.model_dump(mode="json"), rows, tables, facts, listed))
    run.write_json("summary.json", answer)
    error = _fault(run, result.rows, ball["norm"], alarms, strict)
    run.status(state="done", code=0 if error is None else error.exit_code)
    if error is not None:
        raise error
    return answer


def _fault(
    run: Run, samples: Sequence[CertificateRow], norm: str, alarms: Sequence[Alarm], strict: bool
) -> UnreliableError | None:
    """Why these numbers cannot be believed; None where they can."""
    inverted = [sample for sample in samples if sample.inverted]
    if inverted:
        named = ", ".join(_inversion(sample, norm) for sample in inverted[:_NAMED])
        if len(inverted) > _NAMED:
            named += f" and {len(inverted) - _NAMED} more"
        return UnreliableError(
            f"certified, and broken all the same: {named}",
            where=str(run.path / "samples.jsonl"),
            hint="one of the two is wrong: report it, or look at a network that answers otherwise each time",
            code="E-INVERSION",
        )
    if strict and reliability(alarms) != "ok":
        names = ", ".join(sorted({alarm.name for alarm in alarms}))
        return UnreliableError(f"the evaluation is {reliability(alarms)}: {names}", where=str(run.path))
    return None


def _inversion(sample: CertificateRow, norm: str) -> str:
    broken = format_eps(sample.broken_at or 0.0, norm)
    return f"sample {sample.id} (certified to {sample.radius:.4g}, broken at {broken} by {sample.broken_by})"


def _alarms(result: Certified, header: Header) -> list[Alarm]:
    """Those of the first look, and those that need all samples."""
    known = [Alarm.from_json(alarm) for alarm in header.alarms]
    correct = [row.right for row in result.rows]
    flags = torch.tensor(correct, dtype=torch.bool)
    return concluded(known, result.tallies, (), {}, flags, len(header.about["classes"]))


def _rows(header: Header, result: Certified) -> list[CertifyRow]:
    """The records; names, ball and radii are read from the header."""
    about, plan = header.about, header.plan
    ids = torch.tensor([row.id for row in result.rows])
    common = {
        "method": plan["method"],
        "norm": plan["ball"]["norm"],
        "data": about["data"],
        "split": about["split"],
        "model": about["model"],
        "seed": plan["seed"],
        "hashes": {**about["hashes"], "ids": short_ids_digest(ids)},
    }
    attacks = [call["label"] for call in plan["attacked"]["attacks"]]
    return certify_rows(result.rows, plan["radii"], attacks, common)


def _write(run: Run, rows: Sequence[CertifyRow], samples: Sequence[CertificateRow]) -> None:
    """metrics.jsonl and results.csv with a line a radius, samples.jsonl with a line a sample."""
    with JsonLines(run.path / "metrics.jsonl") as lines:
        lines.truncate(0)  # a resumed run writes its rows anew
        for row in rows:
            lines.write(row.to_json())
    write_csv(run.path / "results.csv", [row.to_json() for row in rows])
    run.write_text("samples.jsonl", "".join(f"{strict_json(sample.to_json())}\n" for sample in samples))


def _content(
    header: Header,
    rows: Sequence[CertifyRow],
    samples: Sequence[CertificateRow],
    alarms: Sequence[Alarm],
    radius: tuple[float, tuple[float, float]],
) -> dict[str, Any]:
    """The keys of the machine contract: fractions in [0, 1], intervals of Clopper and Pearson at 95 %."""
    ball, n = header.plan["ball"], len(samples)
    threat = next(row for row in rows if row.eps == ball["eps"])
    asked = rows[1:]
    shares = {status: Rate(sum(s.status == status for s in samples), n) for status in STATUSES}
    mean, around = radius
    return {
        **{
            name: getattr(threat, name)
            for name in ("method", "model", "data", "split", "norm", "eps", "seed")
        },
        "n": n,
        "radii": [row.eps for row in asked],
        "certified_acc": [row.certified_acc.value for row in asked],
        "attacked_acc": [row.robust_acc.value for row in asked],
        "clean_acc": rows[0].robust_acc.value,
        "robust_acc": threat.robust_acc.value,
        "acr": mean,
        **{status: rate.value for status, rate in shares.items()},
        "intervals": {
            "certified_acc": [list(row.certified_acc.exact) for row in asked],
            "attacked_acc": [list(row.robust_acc.exact) for row in asked],
            "clean_acc": list(rows[0].robust_acc.exact),
            "robust_acc": list(threat.robust_acc.exact),
            "acr": list(around),
            **{status: list(rate.exact) for status, rate in shares.items()},
        },
        "attacks": list(threat.attacks),
        "reliability": reliability(list(alarms)),
        "alarms": [alarm.to_json() for alarm in alarms],
    }


def _facts(
    samples: Sequence[CertificateRow], radius: tuple[float, tuple[float, float]], norm: str, partial: str
) -> list[str]:
    """The sentences beside the tables."""
    mean, (low, high) = radius
    scale = f"{norm}, pixels in [0, 1]"
    acr = f"average certified radius {mean:.4g} [{low:.4g}, {high:.4g}] ({scale}; a wrong sample counts as 0)"
    compared = [sample for sample in samples if LOOSER in sample.evidence]
    looser = sum(bool(sample.evidence[LOOSER]) for sample in compared)
    tighter = ""
    if looser:
        tighter = (
            f"on {looser} of {len(compared)} samples a bound of plain CROWN was looser than that of IBP, "
            "which was taken there"
        )
    return list(filter(None, [acr, tighter, partial]))


def _partial(result: Certified) -> str:
    """The warning that the numbers are not final; "" when all shards are there."""
    done, of = result.shards
    if done == of:
        return ""
    return (
        f"partial {done}/{of} shards: {len(result.rows)} of {result.total} samples; no number here is final"
    )
