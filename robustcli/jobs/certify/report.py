"""Writes and shows a finished certification: records, tables, picture, summary, document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from robustcli.assembly.rows import short_ids_digest
from robustcli.certificates.noise import NOISES
from robustcli.config.schema import Config
from robustcli.errors import UnreliableError
from robustcli.evaluation.certificates.document import LOOSER
from robustcli.evaluation.certificates.measured import Certified
from robustcli.evaluation.collect import concluded
from robustcli.evaluation.header import Header
from robustcli.records.alarm import Alarm
from robustcli.records.certified import WRONG, Certificates
from robustcli.records.certify import CertificateRow, CertifyRow, average_radius, certify_rows
from robustcli.records.document import Document
from robustcli.reporting.certify_table import certify_table, status_table
from robustcli.reporting.pictures.certified import certified_picture
from robustcli.reporting.pictures.files import save_pictures
from robustcli.reporting.record_tables import write_csv
from robustcli.reporting.summary import certify_summary
from robustcli.store.atomic import JsonLines, strict_json
from robustcli.store.run import Run
from robustcli.terminal.console import Console

PAPERS = {
    "ibp": "Gowal et al., 2018, arXiv:1810.12715",
    "crown-ibp": "Zhang et al., ICLR 2020, arXiv:1906.06316",
    "crown": "Zhang et al., NeurIPS 2018, arXiv:1811.00866",
    "alpha-crown": "Xu et al., ICLR 2021, arXiv:2011.13824",
    "smoothing": "Cohen et al., ICML 2019, arXiv:1902.02918",
}


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
    found = Certificates(
        header.plan["method"], ball["norm"], ball["eps"], header.plan["radii"], result.rows, alarms
    )
    facts = _facts(found, partial)
    for table in tables:
        console.table(table)
    for line in facts:
        console.info(line)
    for alarm in alarms:
        console.warn(alarm.line())
    save_pictures([certified_picture(rows, result.rows)], run.path / "plots")
    answer = document.finish(run.path, _content(rows, found))
    answer |= more or {}
    if partial:
        answer["partial"] = dict(zip(("shards", "of"), result.shards, strict=True))
    listed = [alarm.to_json() for alarm in alarms]
    papers = _papers(header.plan)
    summary = certify_summary(config.model_dump(mode="json"), rows, tables, facts, papers, listed)
    run.write_text("summary.md", summary)
    run.write_json("summary.json", answer)
    error = _fault(run, found, strict)
    run.status(state="done", code=0 if error is None else error.exit_code)
    if error is not None:
        raise error
    return answer


def _fault(run: Run, found: Certificates, strict: bool) -> UnreliableError | None:
    """Why these numbers cannot be believed; None where they can."""
    if told := found.inversion():
        return UnreliableError(told, where=str(run.path / "samples.jsonl"), hint=WRONG, code="E-INVERSION")
    if strict and found.reliability != "ok":
        names = ", ".join(sorted({alarm.name for alarm in found.alarms}))
        return UnreliableError(f"the evaluation is {found.reliability}: {names}", where=str(run.path))
    return None


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


def _content(rows: Sequence[CertifyRow], found: Certificates) -> dict[str, Any]:
    """The keys of the machine contract."""
    named = ("method", "model", "data", "split", "norm", "seed")
    about = {name: getattr(rows[-1], name) for name in named}
    return {**about, "eps": found.eps, **found.to_json(), "attacks": list(rows[-1].attacks)}


def _facts(found: Certificates, partial: str) -> list[str]:
    """The sentences beside the tables."""
    mean, (low, high) = average_radius(found.rows)
    samples, norm = found.rows, found.norm
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


def _papers(plan: Mapping[str, Any]) -> dict[str, str]:
    """Method of proof -> its paper, for all that the run had."""
    papers = {name: PAPERS[name] for name in plan["parameters"] if name in PAPERS}
    noise = NOISES.get(plan["parameters"].get("smoothing", {}).get("noise"))
    return papers if noise is None else {**papers, f"{plan['method']} radius": noise.source}


def _partial(result: Certified) -> str:
    """The warning that the numbers are not final; "" when all shards are there."""
    done, of = result.shards
    if done == of:
        return ""
    return (
        f"partial {done}/{of} shards: {len(result.rows)} of {result.total} samples; no number here is final"
    )
