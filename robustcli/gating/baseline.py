"""A run against a baseline, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from robustcli.errors import DataError, UsageError
from robustcli.gating.evidence import Drop
from robustcli.gating.measured import same_radius
from robustcli.gating.threshold import Threshold
from robustcli.records.eval import EvalRow
from robustcli.records.sample import SampleRow
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.paired import asked

Standing = Callable[[SampleRow], bool]


def drop_of(run: Dossier, baseline: Dossier, threshold: Threshold) -> Drop:
    """lost, gained and n on the samples of the run, all of which the baseline must have measured.

    Raises UsageError (exit 2) where the two did not measure the same: another data set, split, radius, list
    of attacks, or a sample that the baseline lacks. Raises DataError E-RECORD where the samples of a run
    contradict its counts.
    """
    robust = threshold.quantity.metric == "robust_acc_drop"
    _check_same(run, baseline, robust, threshold)
    standing = _stands if robust else _right
    now, before = _answers(run, standing, robust), _answers(baseline, standing, robust)
    missing = sorted(now.keys() - before.keys())
    if missing:
        what = f"{len(missing)} of {len(now)} samples were not measured by the baseline, such as {missing[0]}"
        _refuse(what, threshold, "measure both with the same --n or --first, split and seed")
    pairs = [(before[i], right) for i, right in now.items()]
    lost = sum(was and not right for was, right in pairs)
    return Drop(lost, sum(right and not was for was, right in pairs), len(pairs))


def _stands(sample: SampleRow) -> bool:
    return sample.correct and sample.broken_by is None


def _right(sample: SampleRow) -> bool:
    return sample.correct


def _answers(run: Dossier, standing: Standing, robust: bool) -> dict[int, bool]:
    """Id of each sample -> whether it is right. Raises as `drop_of`."""
    row, answers = run.eval_row("worst"), run.answers
    assert row is not None
    told = row.correct if robust else row.clean_correct
    found = {sample.id: standing(sample) for sample in answers}
    if (len(found), sum(found.values())) != (row.n, told):
        raise DataError(
            f"samples.jsonl has {sum(found.values())} of {len(found)}, metrics.jsonl {told} of {row.n}",
            where=str(run.path),
            hint="records are written by robustcli and not edited by hand; measure again",
            code="E-RECORD",
        )
    return found


def _check_same(run: Dossier, baseline: Dossier, robust: bool, threshold: Threshold) -> None:
    if run.path.resolve() == baseline.path.resolve():
        _refuse("the baseline is the run itself", threshold, "name an earlier run")
    now, before = _row(run, threshold), _row(baseline, threshold)
    digest = now.hashes.get("data")
    if not digest or digest != before.hashes.get("data"):
        _refuse(
            "the baseline has measured other images (their digest differs)",
            threshold,
            "measure both on one data set",
        )
    if now.split != before.split:
        _refuse(
            f"the run is about {now.split}, the baseline about {before.split}",
            threshold,
            "measure both on one split",
        )
    if not robust:
        return
    if not same_radius(now.norm, now.eps, before.norm, before.eps):
        what = f"the run is at {now.norm} {now.eps:.6g}, the baseline at {before.norm} {before.eps:.6g}"
        _refuse(what, threshold, "measure both at one radius")
    if (asked(run), _besides(run)) != (asked(baseline), _besides(baseline)):
        _refuse("the baseline was attacked by other attacks", threshold, "measure both with one list")


def _row(run: Dossier, threshold: Threshold) -> EvalRow:
    row = run.eval_row("worst")
    if row is None or not run.answers:
        _refuse(f"{run.path} holds no samples of an evaluation", threshold, "name a run of `eval`")
    return row


def _besides(run: Dossier) -> list[str]:
    """Attacks that only the command line named, with their hashes: of a surrogate, and the user's own."""
    found = (row.attack for row in run.of(EvalRow))
    return [name for name in found if name.startswith("transfer:") or "@" in name]


def _refuse(what: str, threshold: Threshold, hint: str) -> NoReturn:
    raise UsageError(
        f"{threshold.name}: {what}", where=threshold.where or threshold.baseline or "", hint=hint
    )
