"""Writes and shows a transfer matrix: records, table, picture, alarms, summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import nn

from robustcli.assembly.rows import short_ids_digest
from robustcli.assembly.setting import Setting
from robustcli.assembly.strongest import is_yardstick
from robustcli.errors import printable
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.joint import Join
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.transfer_members import Chain
from robustcli.evaluation.transferability import Transfer, transfer_alarms
from robustcli.jobs.rerun import same_again
from robustcli.models.plugin import reference_label
from robustcli.records.alarm import Alarm, reliability
from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import Cell, format_eps, share_of
from robustcli.reporting.pictures.files import save_pictures
from robustcli.reporting.pictures.transfer import transfer_picture
from robustcli.reporting.record_tables import write_csv
from robustcli.reporting.summary import sources
from robustcli.reporting.tables import Table
from robustcli.reporting.transfer_table import matrix_table, pair_table
from robustcli.runtime.source import code_hash
from robustcli.store.atomic import JsonLines
from robustcli.store.run import Run
from robustcli.terminal.console import Console


@dataclass(frozen=True)
class Subjects:
    """Models and attacks of the matrix.

    references: the models as the user named them. models: short name -> model, in the same order. plan: with
    the calls of all attacks. chains: the attacks as they count. together: how the models that are not the
    target join, None where they do not.
    """

    references: Sequence[str]
    models: Mapping[str, nn.Module]
    plan: EvalPlan
    chains: Sequence[Chain]
    together: Join | None = None

    @property
    def attacks(self) -> str:
        """The labels of the attacks on one line."""
        return ", ".join(chain.label for chain in self.chains)

    @property
    def yardstick(self) -> int | None:
        """Which attack is MI-FGSM alone; None where it does not run."""
        found = [k for k, chain in enumerate(self.chains) if is_yardstick(chain.calls[0])]
        return next(iter(found), None)


def report(
    run: Run, setting: Setting, subjects: Subjects, result: Transfer, console: Console
) -> dict[str, Any]:
    """Write and show everything; returns the keys of the `transfer` document."""
    rows = _rows(setting, subjects, result)
    _write(run, rows)
    title = f"{setting.data.name} {setting.config.eval.split}: {subjects.attacks}, {_radius(setting)}"
    tables = _tables(result, rows, title)
    for table in tables:
        console.table(table)
    picture = run.path / "plots" / "transfer.png"
    save_pictures([transfer_picture(rows)], run.path / "plots")
    alarms = transfer_alarms(result)
    _warn(console, result, alarms)
    run.write_text("summary.md", _summary(run, setting, subjects, tables, alarms))
    console.info(f"picture: {picture}")
    return _content(setting, subjects, result, rows, alarms)


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
    mi = subjects.yardstick
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
            best=result.attacks[int(result.best[s, t])],
            by_attack=dict(zip(result.attacks, result.by_attack[:, s, t].tolist(), strict=True)),
            mi=None if mi is None else int(result.by_attack[mi, s, t]),
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


def _tables(result: Transfer, rows: Sequence[TransferRow], title: str) -> list[Table]:
    """The matrix, and where several attacks ran what each pair owes to which."""
    more: list[list[Cell]] = []
    if result.together is not None:
        counts = result.together.amax(0).tolist()
        more.append(["the others together", *(share_of(k, result.jointly_correct) for k in counts)])
    found = (matrix_table(rows, f"transfer: {title}", *more), pair_table(rows))
    return [table for table in found if table is not None]


def _of(rows: Sequence[TransferRow], source: str) -> list[TransferRow]:
    """The pairs of one source, in the order of the targets."""
    return [row for row in rows if row.source == source]


def _warn(console: Console, result: Transfer, alarms: Sequence[Alarm]) -> None:
    for alarm in alarms:
        console.warn(alarm.line())
    if not result.jointly_correct:
        console.warn(
            f"no sample of {result.n} is classified correctly by all models: there is nothing to measure"
        )


def _summary(
    run: Run, setting: Setting, subjects: Subjects, tables: Sequence[Table], alarms: Sequence[Alarm]
) -> str:
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
        *(table.markdown() for table in tables),
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
    setting: Setting,
    subjects: Subjects,
    result: Transfer,
    rows: Sequence[TransferRow],
    alarms: Sequence[Alarm],
) -> dict[str, Any]:
    """The keys of the `transfer` document."""
    correct = zip(result.names, result.correct, strict=True)
    matrix = [_of(rows, name) for name in result.names]
    content = {
        "models": list(result.names),
        "references": list(subjects.references),
        "n": result.n,
        "clean_acc": {name: int(k) / max(1, result.n) for name, k in correct},
        "jointly_correct": result.jointly_correct,
        "matrix": result.matrix,
        "intervals": [[row.rate and list(row.rate.exact) for row in line] for line in matrix],
        "best": [[row.best for row in line] for line in matrix],
        "mi": [[row.mi_rate and row.mi_rate.value for row in line] for line in matrix],
        "attacks": list(result.attacks),
        "ball": {"norm": setting.ball.norm, "eps": setting.ball.eps},
        "reliability": reliability(alarms),
        "alarms": [alarm.to_json() for alarm in alarms],
    }
    if result.together is not None:
        rates = [share_of(k, result.jointly_correct) for k in result.together.amax(0).tolist()]
        best = (result.together == result.together.amax(0)).int().argmax(0).tolist()
        content["together"] = {
            "join": subjects.together,
            "broken": [rate and rate.value for rate in rates],
            "intervals": [rate and list(rate.exact) for rate in rates],
            "best": [result.attacks[k] for k in best],
        }
    return content
