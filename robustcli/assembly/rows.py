"""An evaluation as records, and as the document of the machine contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.assembly.setting import Setting, ball_of
from robustcli.config.threats import threat_name
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.answers import NONE, REJECT
from robustcli.evaluation.bound import Audit
from robustcli.evaluation.header import ids_digest
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.result import Evaluation
from robustcli.proportions import clopper_pearson
from robustcli.records.eval import EvalRow
from robustcli.records.sample import SampleRow
from robustcli.reporting.record_tables import write_csv
from robustcli.runtime.source import code_hash
from robustcli.store.atomic import JsonLines, strict_json
from robustcli.store.run import Run

_NO_BALL = {"norm": "none", "eps": 0.0}
SHORT_LIST = "rapid:"  # how the stages of a list begin that is shorter than AutoAttack's


def rows_of(setting: Setting, model: nn.Module, result: Evaluation) -> list[EvalRow]:
    """One record for clean accuracy, one for each attack, one for the worst case.

    In a union of balls a record of each ball follows on those of its attacks, and the worst case is of all.
    The record of an attack in the ball counts who is right under it and all attacks before it. The record of
    an unbounded attack counts who is right under that attack alone.
    """
    config = setting.config
    common: dict[str, Any] = {
        "data": setting.data.name,
        "split": config.eval.split,
        "model": config.model.label,
        **ball_of(setting),
        "seed": config.seed,
        "hashes": {**hashes_of(setting, model), "ids": short_ids_digest(result.ids)},
    }
    balls = {threat_name(ball.norm, ball.eps): (ball.norm, ball.eps) for ball in setting.union}
    return rows_from(result, setting.data.classes, common, balls)


def rows_from(
    result: Evaluation,
    classes: tuple[str, ...],
    common: dict[str, Any],
    balls: Mapping[str, tuple[str, float]] | None = None,
) -> list[EvalRow]:
    """The records of verdicts, measured now or read from shards.

    classes: names of the classes. common: fields that all records share. balls: name of each ball of a union
    -> norm and eps.
    """
    if result.parts:
        return _union_rows(result, classes, common, balls or {})
    common = {**common, "n": result.n, "clean_correct": int(result.correct.sum())}
    members = {name: result.labels == k for k, name in enumerate(classes)}

    def row(kind: str, standing: Tensor, seconds: float, passes: float, **named: Any) -> EvalRow:
        per_class = {
            name: [int((standing & member).sum()), int(member.sum())] for name, member in members.items()
        }
        return EvalRow(
            kind=kind,
            correct=int(standing.sum()),
            per_class=per_class,
            seconds=seconds,
            passes_per_sample=passes,
            **{**common, **named},
        )

    seconds, passes = result.seconds, result.passes_per_sample
    rows = [row("clean", result.correct, 0.0, 1.0)]
    for call in result.calls:
        label = call.label
        rows.append(row("attack", result.stages[label], seconds[label], passes[label], **_named(call)))
    total_seconds, total_passes = sum(seconds.values()), sum(passes.values())
    return [*rows, row("worst", result.survivors, total_seconds, total_passes, **_worst(result))]


def _union_rows(
    result: Evaluation,
    classes: tuple[str, ...],
    common: dict[str, Any],
    balls: Mapping[str, tuple[str, float]],
) -> list[EvalRow]:
    """The records of a union: clean, those of each ball, all balls together."""
    rows = rows_from(replace(result, parts={}), classes, common)
    clean, worst = rows[0], rows[-1]
    between: list[EvalRow] = []
    for name, part in result.parts.items():
        norm, eps = balls[name]
        _, *attacks, whole = rows_from(part, classes, {**common, "norm": norm, "eps": eps})
        between += [replace(row, label=f"{row.title}@{name}") for row in attacks]
        between.append(replace(whole, kind="threat", label=f"{whole.title}@{name}"))
    return [clean, *between, replace(worst, label="all balls")]


def sample_rows(result: Evaluation, classes: Sequence[str]) -> list[SampleRow]:
    """The record of each sample, in the order of ids. classes: names of the classes."""

    def name(answer: int) -> str | None:
        return None if answer == NONE else (*classes, REJECT)[answer]

    answers, stages = result.answers, [*result.counted, None]
    columns = zip(
        result.ids.tolist(),
        answers.files,
        result.labels.tolist(),
        answers.clean.tolist(),
        answers.confidence.tolist(),
        answers.attacked.tolist(),
        result.broken_by.tolist(),
        _by_ball(result),
        strict=True,
    )
    return [
        SampleRow(
            id=i,
            file=file,
            label=classes[label],
            clean=name(clean),
            confidence=confidence,
            attacked=name(attacked),
            broken_by=stages[by],
            threats=threats,
        )
        for i, file, label, clean, confidence, attacked, by, threats in columns
    ]


def _by_ball(result: Evaluation) -> list[dict[str, str | None]]:
    """For each sample: name of each ball of a union -> label of what broke it there, or None."""
    found: list[dict[str, str | None]] = [{} for _ in range(result.n)]
    for name, part in result.parts.items():
        stages: list[str | None] = [*(f"{label}@{name}" for label in part.counted), None]
        fell = torch.where(result.correct, part.broken_by, len(part.counted))
        for sample, by in zip(found, fell.tolist(), strict=True):
            sample[name] = stages[by]
    return found


def _named(call: AttackCall) -> dict[str, Any]:
    """The fields of a record that describe its attack."""
    named = {"attack": call.name, "label": call.label, "params": dict(call.params)}
    return named if call.bounded else {**named, **_NO_BALL}


def _worst(result: Evaluation) -> dict[str, Any]:
    """The fields that describe the worst case.

    The label names a short list, so that its number is not taken for AutoAttack's.
    """
    named: dict[str, Any] = {}
    if any(call.label.startswith(SHORT_LIST) for call in result.calls):
        named["label"] = f"all attacks (rapid{_checked(result.audit)})"
    if named and result.audit is not None:
        named["audit"] = result.audit.to_json()
    if result.apart and len(result.apart) == len(result.calls):
        named |= {**_NO_BALL, "label": "all transformations"}
    return named


def _checked(audit: Audit | None) -> str:
    """The audit in the label of a short list, such as ", audit 0 of 64"."""
    if audit is None or not (audit.n or audit.escalated):
        return ", not audited"
    if audit.escalated:
        return ", escalated"
    return f", audit {audit.fallen} of {audit.n}"


def hashes_of(setting: Setting, model: nn.Module) -> dict[str, str]:
    """The hashes of model, data and code: every number depends on them."""
    return {"model": state_digest(model), "data": setting.data.digest, "code": code_hash()}


def short_ids_digest(ids: Tensor) -> str:
    """The first 16 digits of `ids_digest`: equal digits mean the same images."""
    return ids_digest(ids)[:16]


def write_rows(run: Run, rows: list[EvalRow]) -> None:
    """Write the records to metrics.jsonl and results.csv."""
    with JsonLines(run.path / "metrics.jsonl") as lines:
        lines.truncate(0)  # a resumed evaluation writes its rows anew
        for row in rows:
            lines.write(row.to_json())
    write_csv(run.path / "results.csv", [row.to_json() for row in rows])


def write_samples(run: Run, samples: Sequence[SampleRow]) -> None:
    """Write samples.jsonl, whole or not at all."""
    run.write_text("samples.jsonl", "".join(f"{strict_json(sample.to_json())}\n" for sample in samples))


def eval_document(result: Evaluation, rows: list[EvalRow]) -> dict[str, Any]:
    """The evaluation as the keys of the machine contract.

    Accuracies are fractions in [0, 1]. Intervals are Clopper-Pearson's at 95 %.
    """
    right, standing = int(result.correct.sum()), int(result.survivors.sum())
    audit = {} if result.audit is None else {"audit": result.audit.to_json()}
    clean, worst = rows[0], rows[-1]
    return {
        **{name: getattr(worst, name) for name in ("model", "data", "split", "norm", "eps", "seed")},
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
        "per_class": {
            name: {"n": n, "clean_acc": _share(*clean.per_class[name]), "robust_acc": _share(standing, n)}
            for name, (standing, n) in worst.per_class.items()
        },
        "reliability": result.reliability,
        "alarms": [alarm.to_json() for alarm in result.alarms],
        **audit,
        **({"threats": _threats(result, rows)} if result.parts else {}),
    }


def _threats(result: Evaluation, rows: Sequence[EvalRow]) -> list[dict[str, Any]]:
    """The verdict in each ball of a union, by the keys of the document."""
    of_balls = [row for row in rows if row.kind == "threat"]
    found = []
    for (name, part), row in zip(result.parts.items(), of_balls, strict=True):
        about: dict[str, Any] = {"name": name, "norm": row.norm, "eps": row.eps}
        about |= {"robust_acc": part.robust_acc, "attack_success": part.attack_success}
        about["intervals"] = {key: list(pair) for key, pair in row.intervals().items()}
        about |= {"reliability": part.reliability, "alarms": [alarm.to_json() for alarm in part.alarms]}
        found.append(about if part.audit is None else {**about, "audit": part.audit.to_json()})
    return found


def _share(k: int, n: int) -> float | None:
    """k / n; None when n is 0."""
    return k / n if n else None
