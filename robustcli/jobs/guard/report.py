"""Writes and shows the evaluation of a guarded model: records, table, picture, alarms, summary, document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from robustcli.assembly.rows import eval_document, rows_of, sample_rows, write_rows, write_samples
from robustcli.assembly.setting import Setting
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.guarded.evaluation import GuardResult
from robustcli.evaluation.guarded.scores import EXCESS, Curve, curve, stands_at
from robustcli.evaluation.plan import EvalPlan
from robustcli.jobs.thresholds import verdicts
from robustcli.models.guarded import GuardedModel
from robustcli.records.document import Document
from robustcli.records.guard import GuardCurveRow, GuardRow, GuardSampleRow
from robustcli.reporting.guard_table import guard_sentence, guard_table
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.files import save_pictures
from robustcli.reporting.pictures.guard import curves_picture, numbers_picture
from robustcli.reporting.summary import eval_summary
from robustcli.store.atomic import JsonLines
from robustcli.store.run import Run
from robustcli.terminal.console import Console

RECORDS = "guard.jsonl"
_RATES = (0.01, 0.05)  # false-positive rates at which the number is shown, beside the stated one


def report(
    run: Run,
    document: Document,
    setting: Setting,
    guard: GuardedModel,
    plan: EvalPlan,
    result: GuardResult,
    console: Console,
) -> dict[str, Any]:
    """Write and show everything, and mark the run as done; returns the document."""
    verdict = result.verdict
    rows = rows_of(setting, guard, verdict)
    classes = tuple(rows[-1].per_class)
    row, curves = guard_row(setting, guard, plan, result, rows[-1].hashes), curves_of(guard, result)
    write_rows(run, rows)
    write_samples(run, sample_rows(verdict, classes))
    _write(run, [row, *curves, *_samples(result, classes)])
    pictures = [numbers_picture(row), curves_picture(row, curves)]
    save_pictures([one for one in pictures if isinstance(one, Picture)], run.path / "plots")
    table, sentence = guard_table(row, curves), f"{guard_sentence(row)}. {_believed(result)}"
    console.table(table)
    console.result(sentence)
    for alarm in result.alarms:
        console.warn(alarm.line())
    content = {**eval_document(verdict, rows), **guard_keys(row, curves), "verdict": sentence}
    answer = document.finish(run.path, content)
    if setting.config.eval.fail_under:
        answer["gate"] = verdicts(answer, setting.config.eval.fail_under)
    alarms = [alarm.to_json() for alarm in result.alarms]
    rest = eval_summary(setting.config.model_dump(mode="json"), rows, alarms)
    run.write_text("summary.md", f"**{sentence}**\n\n{table.markdown()}\n{rest}")
    run.write_json("summary.json", answer)
    run.status(state="done", code=0)
    return answer


def _believed(result: GuardResult) -> str:
    """The reliability, with the names of the alarms behind it."""
    names = sorted({alarm.name for alarm in result.alarms if alarm.level != "note"})
    return f"Reliability: {result.verdict.reliability} ({', '.join(names) or 'no alarm'})."


def guard_row(
    setting: Setting, guard: GuardedModel, plan: EvalPlan, result: GuardResult, hashes: Any
) -> GuardRow:
    """The record of the whole evaluation."""
    config, ball, adaptive = setting.config, setting.ball, result.adaptive
    stands, bare = adaptive.survivors, result.bare.survivors
    planted = None if result.planted is None else (result.planted.found, result.planted.n)
    return GuardRow(
        data=setting.data.name,
        split=config.eval.split,
        norm=ball.norm,
        eps=ball.eps,
        seed=config.seed,
        n=adaptive.n,
        model=config.model.label,
        hashes={**hashes, "bare": state_digest(guard.members[0])},
        members=len(guard.members),
        defences=[
            {"label": one.label, "name": one.name, "params": dict(one.params)} for one in guard.defences
        ],
        fpr=guard.fpr,
        draws=result.draws,
        clean_right=_count(adaptive.correct),
        rejections=_count(result.rejected),
        rejected_right=_count(result.rejected & (result.clean.label == result.labels)),
        bare_right=_count(result.bare.correct),
        bare_standing=_count(bare),
        oblivious_standing=_count(result.oblivious),
        adaptive_standing=_count(stands),
        gained=_count(stands & ~bare),
        lost=_count(bare & ~stands),
        attacks=[call.label for call in plan.attacks],
        adaptive_attacks=[call.label for call in adaptive.calls],
        half_standing=None if result.half is None else result.half.k,
        planted=planted,
        votes=None if result.votes is None else int(result.votes.sum()),
        at_fpr=_at_rates(guard, result),
    )


def _at_rates(guard: GuardedModel, result: GuardResult) -> list[tuple[float, int, int]]:
    """What stands of the same points at other joint thresholds, see `scores.stands_at`."""
    if EXCESS not in result.clean.scores:
        return []
    rates = sorted({*_RATES, *([] if guard.fpr is None else [guard.fpr])})
    right = result.clean.label == result.labels

    def standing(fpr: float, points: str) -> int:
        found = result.points[points]
        wrong = found.label != result.labels
        return stands_at(fpr, result.clean.scores, right, wrong, found.scores[EXCESS])

    return [(fpr, standing(fpr, "oblivious"), standing(fpr, "adaptive")) for fpr in rates]


def curves_of(guard: GuardedModel, result: GuardResult) -> list[GuardCurveRow]:
    """The curves of every score, for both kinds of points."""
    thresholds = dict(zip(guard.detectors, guard.thresholds.tolist(), strict=True))
    found: list[Curve] = []
    for points, seen in result.points.items():
        wrong = seen.label != result.labels
        for name, clean in result.clean.scores.items():
            found.append(curve(name, points, clean, seen.scores[name][wrong], thresholds.get(name, 0.0)))
    return [GuardCurveRow(**vars(one)) for one in found]


def guard_keys(row: GuardRow, curves: Sequence[GuardCurveRow]) -> dict[str, Any]:
    """The keys of the document beside those of `eval`."""
    auroc: dict[str, dict[str, float | None]] = {}
    for one in curves:
        auroc.setdefault(one.score, {})[one.points] = one.auroc
    return {"fpr": row.fpr, "auroc": auroc, **row.numbers()}


def _samples(result: GuardResult, classes: Sequence[str]) -> list[GuardSampleRow]:
    columns = (result.ids, result.labels, result.rejected, result.bare.survivors, result.oblivious)
    lists = [column.tolist() for column in (*columns, result.adaptive.survivors)]
    votes = [None] * len(result.ids) if result.votes is None else result.votes.tolist()
    return [
        GuardSampleRow(
            id=i,
            label=classes[y],
            rejected=rejected,
            bare=bare,
            oblivious=oblivious,
            adaptive=adaptive,
            votes=k,
        )
        for i, y, rejected, bare, oblivious, adaptive, k in zip(*lists, votes, strict=True)
    ]


def _write(run: Run, rows: Sequence[GuardRow | GuardCurveRow | GuardSampleRow]) -> None:
    with JsonLines(run.path / RECORDS) as lines:
        lines.truncate(0)
        for row in rows:
            lines.write(row.to_json())


def _count(flags: Tensor) -> int:
    return int(flags.sum())
