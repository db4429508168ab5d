"""An evaluation as records and as the document of the machine contract."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor, nn

from robustcli.assembly.compose import Setting
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.bound import Audit
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.result import Evaluation
from robustcli.proportions import clopper_pearson
from robustcli.records.rows import EvalRow
from robustcli.reporting.tables import write_csv
from robustcli.runtime.seed import code_hash
from robustcli.store.atomic import JsonLines
from robustcli.store.run import Run


def rows_of(setting: Setting, model: nn.Module, result: Evaluation) -> list[EvalRow]:
    """One record for clean accuracy, one per attack (cumulative; unbounded attacks alone), one for the worst case."""
    config = setting.config
    common: dict[str, Any] = {
        "data": setting.data.name,
        "split": config.eval.split,
        "model": config.model.name,
        "norm": setting.ball.norm,
        "eps": setting.ball.eps,
        "seed": config.seed,
        "hashes": {**hashes_of(setting, model), "ids": ids_digest(result.ids)},
    }
    return rows_from(result, setting.data.classes, common)


def rows_from(result: Evaluation, classes: tuple[str, ...], common: dict[str, Any]) -> list[EvalRow]:
    """The records from verdicts and what they share; also for verdicts that were read from shards."""
    common = {**common, "n": result.n, "clean_correct": int(result.correct.sum())}

    def row(kind: str, call: AttackCall | None, standing: Tensor, seconds: float, passes: float) -> EvalRow:
        per_class = {
            name: [int((standing & (result.labels == k)).sum()), int((result.labels == k).sum())]
            for k, name in enumerate(classes)
        }
        named: dict[str, Any] = (
            {"attack": call.name, "label": call.label, "params": dict(call.params)} if call else {}
        )
        if kind == "worst" and any(other.label.startswith("rapid:") for other in result.calls):
            named = {
                "label": f"all attacks (rapid{_checked(result.audit)})"
            }  # its number is never to be taken for AutoAttack's
            named |= {"audit": result.audit.to_json()} if result.audit is not None else {}
        if (call is not None and not call.bounded) or (
            kind == "worst" and result.apart and len(result.apart) == len(result.calls)
        ):
            named |= {"norm": "none", "eps": 0.0} | ({} if call else {"label": "all transformations"})
        return EvalRow(
            kind=kind,
            correct=int(standing.sum()),
            per_class=per_class,
            seconds=seconds,
            passes_per_sample=passes,
            **{**common, **named},
        )

    rows = [row("clean", None, result.correct, 0.0, 1.0)]
    rows += [
        row("attack", c, result.stages[c.label], result.seconds[c.label], result.passes_per_sample[c.label])
        for c in result.calls
    ]
    passes = sum(result.passes_per_sample.values())
    return [*rows, row("worst", None, result.survivors, sum(result.seconds.values()), passes)]


def _checked(audit: Audit | None) -> str:
    """ ", audit 0 of 64": what stands behind the name of a short list."""
    if audit is None or not (audit.n or audit.escalated):
        return ", not audited"
    return ", escalated" if audit.escalated else f", audit {audit.fallen} of {audit.n}"


def hashes_of(setting: Setting, model: nn.Module) -> dict[str, str]:
    """What every number about this model depends on, besides the samples."""
    return {"model": state_digest(model), "data": setting.data.digest, "code": code_hash()}


def ids_digest(ids: Tensor) -> str:
    """Short hash of the sample ids: two rows are about the same images when it agrees."""
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16]


def write_rows(run: Run, rows: list[EvalRow]) -> None:
    """metrics.jsonl and results.csv."""
    with JsonLines(run.path / "metrics.jsonl") as lines:
        lines.truncate(0)  # a resumed evaluation writes its rows anew
        for row in rows:
            lines.write(row.to_json())
    write_csv(run.path / "results.csv", [row.to_json() for row in rows])


def eval_document(result: Evaluation, rows: list[EvalRow]) -> dict[str, Any]:
    """The keys of the machine contract; accuracies are fractions, intervals Clopper-Pearson at 95 %."""
    right, standing = int(result.correct.sum()), int(result.survivors.sum())
    audit = {} if result.audit is None else {"audit": result.audit.to_json()}
    return {
        "n": result.n,
        "clean_acc": result.clean_acc,
        "robust_acc": result.robust_acc,
        "attack_success": result.attack_success,
        "intervals": {
            "clean_acc": list(clopper_pearson(right, result.n)),
            "robust_acc": list(clopper_pearson(standing, result.n)),
            "attack_success": list(clopper_pearson(right - standing, right)),
        },
        "attacks": [
            {
                "name": row.label,
                "robust_acc": row.correct / max(1, row.n),
                "passes_per_sample": row.passes_per_sample,
                "seconds": row.seconds,
            }
            for row in rows
            if row.kind == "attack"
        ],
        "reliability": result.reliability,
        "alarms": [alarm.to_json() for alarm in result.alarms],
        **audit,
    }
