"""Writes and shows a transfer matrix: records, table, picture, alarms, summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import nn

from robustcli.assembly.rows import short_ids_digest
from robustcli.assembly.setting import Setting
from robustcli.errors import printable
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.transferability import Transfer, transfer_alarms
from robustcli.jobs.rerun import same_again
from robustcli.models.plugin import reference_label
from robustcli.proportions import Rate
from robustcli.records.alarm import Alarm, reliability
from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import Cell, format_eps
from robustcli.reporting.pictures.files import save_pictures
from robustcli.reporting.pictures.transfer import transfer_picture
from robustcli.reporting.record_tables import write_csv
from robustcli.reporting.summary import sources
from robustcli.reporting.tables import Table
from robustcli.runtime.source import code_hash
from robustcli.store.atomic import JsonLines
from robustcli.store.run import Run
from robustcli.terminal.console import Console

Rates = Sequence[Sequence[Rate | None]]


@dataclass(frozen=True)
class Subjects:
    """Models and attacks of the matrix.

    references: the models as the user named them. models: short name -> model, in the same order. plan: with
    the attacks.
    """

    references: Sequence[str]
    models: Mapping[str, nn.Module]
    plan: EvalPlan

    @property
    def attacks(self) -> str:
        """The labels of the attacks on one line."""
        return ", ".join(call.label for call in self.plan.attacks)


def report(
    run: Run, setting: Setting, subjects: Subjects, result: Transfer, console: Console
) -> dict[str, Any]:
    """Write and show everything; returns the keys of the `transfer` document."""
    rows = _rows(setting, subjects, result)
    _write(run, rows)
    size = len(result.names)
    rates: Rates = [[row.rate for row in rows[k * size : (k + 1) * size]] for k in range(size)]
    title = f"{setting.data.name} {setting.config.eval.split}: {subjects.attacks}, {_radius(setting)}"
    table = _table(result, rates, title)
    console.table(table)
    picture = run.path / "plots" / "transfer.png"
    save_pictures([transfer_picture(rows)], run.path / "plots")
    alarms = transfer_alarms(result)
    _warn(console, result, alarms)
    run.write_text("summary.md", _summary(run, setting, subjects, table, alarms))
    console.info(f"picture: {picture}")
    return _content(setting, subjects, result, rates, alarms)


def _rows(setting: Setting, subjects: Subjects, result: Transfer) -> list[TransferRow]:
    """One record per pair; the targets of the first source come first."""
    config, ball = setting.config, setting.ball
    digests = [state_digest(model) for model in subjects.models.values()]
    common: dict[str, Any] = {
        "data": setting.data.name,
        "split": config.eval.split,
        "attack": subjects.attacks,
        "params": [{"name": call.name, **call.params} for call in subjects.plan.attacks],
        "norm": ball.norm,
        "eps": ball.eps,
        "seed": config.seed,
        "samples": result.n,
        "n": result.jointly_correct,
    }
    labels = [reference_label(reference) for reference in subjects.references]
    hashes = {"data": setting.data.digest, "code": code_hash(), "ids": short_ids_digest(result.ids)}
    return [
        TransferRow(
            **common,
            source=result.names[s],
            target=result.names[t],
            source_reference=labels[s],
            target_reference=labels[t],
            k=int(result.broken[s, t]),
            gained=int(result.gained[s, t]),
            lost=int(result.lost[s, t]),
            hashes={**hashes, "source": digests[s], "target": digests[t]},
        )
        for s, t in product(range(len(digests)), repeat=2)
    ]


def _write(run: Run, rows: Sequence[TransferRow]) -> None:
    """Write transfer.jsonl and results.csv."""
    documents = [row.to_json() for row in rows]
    with JsonLines(run.path / "transfer.jsonl") as lines:
        for document in documents:
            lines.write(document)
    write_csv(run.path / "results.csv", documents)


def _radius(setting: Setting) -> str:
    return f"{setting.ball.norm} {format_eps(setting.ball.eps, setting.ball.norm)}"


def _table(result: Transfer, rates: Rates, title: str) -> Table:
    """One line per source, one column per target."""
    cells: list[list[Cell]] = [[name, *row] for name, row in zip(result.names, rates, strict=True)]
    note = (
        f"Share broken of the {result.jointly_correct} samples (of {result.n})"
        " that all models classify correctly. The diagonal is white-box. Brackets: 95 % Wilson interval."
    )
    columns = ["made on", *(f"shown to {name}" for name in result.names)]
    return Table(f"transfer: {title}", columns, cells, note)


def _warn(console: Console, result: Transfer, alarms: Sequence[Alarm]) -> None:
    for alarm in alarms:
        console.warn(alarm.line())
    if not result.jointly_correct:
        console.warn(
            f"no sample of {result.n} is classified correctly by all models: there is nothing to measure"
        )


def _summary(run: Run, setting: Setting, subjects: Subjects, table: Table, alarms: Sequence[Alarm]) -> str:
    """The text of summary.md: the command, the matrix, the alarms, what to cite."""
    config = setting.config
    raised = [
        f"- **{alarm.level}** `{alarm.name}`: {printable(alarm.evidence)}; {printable(alarm.remedy)}"
        for alarm in alarms
    ]
    cited = sources(config.model_dump(mode="json"), ("attacks",))
    lines = [
        f"# Transfer: {config.name}",
        "",
        same_again(run, f"robustcli transfer --models {','.join(subjects.references)}"),
        "",
        table.markdown(),
        *(raised or ["No alarm was raised about this matrix."]),
        "",
        "## Please cite",
        "",
        *(f"- `{name}`: {text}" for name, text in cited.items()),
        "- transferability: Papernot et al., 2016, arXiv:1605.07277.",
        "- intervals: Wilson, JASA 22, 1927.",
    ]
    return "\n".join(lines) + "\n"


def _content(
    setting: Setting, subjects: Subjects, result: Transfer, rates: Rates, alarms: Sequence[Alarm]
) -> dict[str, Any]:
    """The keys of the `transfer` document."""
    correct = zip(result.names, result.correct, strict=True)
    return {
        "models": list(result.names),
        "references": list(subjects.references),
        "n": result.n,
        "clean_acc": {name: int(k) / max(1, result.n) for name, k in correct},
        "jointly_correct": result.jointly_correct,
        "matrix": result.matrix,
        "intervals": [[rate and list(rate.exact) for rate in row] for row in rates],
        "attacks": [call.label for call in subjects.plan.attacks],
        "ball": {"norm": setting.ball.norm, "eps": setting.ball.eps},
        "reliability": reliability(alarms),
        "alarms": [alarm.to_json() for alarm in alarms],
    }
