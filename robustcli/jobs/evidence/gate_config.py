"""`robustcli gate CONFIG`: measure as often as it takes, then judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustcli.config.load import Loaded
from robustcli.errors import UsageError
from robustcli.gating.judging import baseline_of, judged
from robustcli.gating.looks import LOOKS, alpha_of
from robustcli.gating.threshold import Threshold
from robustcli.gating.verdict import Verdict
from robustcli.jobs.evaluate import evaluate
from robustcli.jobs.evidence.gate import answer, decided, seen
from robustcli.jobs.evidence.measurable import check_measurable
from robustcli.jobs.evidence.posting import Posting
from robustcli.jobs.verb_flags import EvalFlags
from robustcli.records.document import Document
from robustcli.reporting.dossier import Dossier
from robustcli.store.latest import resolve_run
from robustcli.terminal.console import Console

_Json = dict[str, Any]


def gate_config(
    loaded: Loaded, thresholds: Sequence[Threshold], console: Console, flags: EvalFlags, posting: Posting
) -> _Json:
    """Measure 512 samples, 2,000 where those leave a threshold open, and judge; returns the `gate` document.

    A configuration that says how many samples (`eval.n`, `eval.first`) is measured once. A threshold that the
    first look decides keeps its verdict, and so does a drop whose baseline has no more samples. Once one has
    failed, nothing more is measured.

    Raises what `evaluate` and `gate_run` raise.
    """
    document, known = Document("gate"), dict[Threshold, Verdict]()
    thresholds = [_pinned(each) for each in thresholds]
    posting.outcome = replace(posting.outcome, thresholds=thresholds)
    posting.check = False
    _check(loaded, thresholds)
    for look, asked in enumerate(_looks(loaded)):
        measured = evaluate(_at(loaded, look), console, flags)
        assert measured is not None  # of a process that is not the first of a team, which a gate is
        run = Dossier.read(Path(measured["run"]))
        posting.outcome = seen(posting.outcome, run)
        more = look + 1 < len(_looks(loaded)) and measured["n"] == asked  # fewer are all that there are
        pending = [
            each for each in thresholds if _is_open(known, each) and not (look and _ends(each, measured))
        ]
        known.update(zip(pending, judged(run, pending, alpha_of(look, more)), strict=True))
        if not more or not _goes_on(known, measured):
            break
        console.info(f"inconclusive on {measured['n']} samples: measuring {LOOKS[look + 1]}")
    posting.outcome = decided(posting.outcome, [known[each] for each in thresholds], document)
    return answer(document, posting.outcome, run, console)


def gate_plan(
    loaded: Loaded, thresholds: Sequence[Threshold], console: Console, flags: EvalFlags
) -> _Json | None:
    """What the first look will cost, for --dry-run. Raises as `gate_config` before it measures."""
    _check(loaded, thresholds)
    first, *later = _looks(loaded)
    if later:
        console.info(f"the plan of {first} samples; {later[0]} are measured where these decide nothing")
    return evaluate(_at(loaded, 0), console, replace(flags, dry_run=True))


def _check(loaded: Loaded, thresholds: Sequence[Threshold]) -> None:
    """Raises an error for what could not be judged in the end, before anything is measured."""
    if loaded.config.eval.fail_under:
        raise UsageError(
            "eval.fail_under is what `eval` checks by itself, and gate would not",
            where=next((o for k, o in loaded.origins.items() if k.startswith("eval.fail_under.")), ""),
            hint="write it into thresholds, with mode: point for the same comparison",
        )
    check_measurable(loaded.config, thresholds)
    for path in {each.baseline for each in thresholds if each.baseline is not None}:
        baseline_of(path)


def _pinned(threshold: Threshold) -> Threshold:
    """The threshold with the run that its baseline names now: `latest` will be what is measured next."""
    if threshold.baseline is None:
        return threshold
    return replace(threshold, baseline=str(resolve_run(Path(threshold.baseline))))


def _looks(loaded: Loaded) -> tuple[int | None, ...]:
    """Samples of each look; None as configured."""
    chosen = loaded.config.eval
    return LOOKS if chosen.n is None and chosen.first is None else (None,)


def _at(loaded: Loaded, look: int) -> Loaded:
    """The configuration of one look. With two looks, --out is the folder of both runs."""
    config, looks = loaded.config, _looks(loaded)
    if looks[look] is None:
        return loaded
    out = None if config.out is None else str(Path(config.out) / f"look-{look + 1}")
    chosen = config.eval.model_copy(update={"n": looks[look]})
    return replace(loaded, config=config.model_copy(update={"eval": chosen, "out": out}))


def _is_open(known: Mapping[Threshold, Verdict], threshold: Threshold) -> bool:
    return threshold not in known or known[threshold].word == "INCONCLUSIVE"


def _goes_on(known: Mapping[Threshold, Verdict], measured: _Json) -> bool:
    """Whether another look can change what the gate ends with. measured: the document of this one."""
    words = {verdict.word for verdict in known.values()}
    open_ = [each for each, verdict in known.items() if verdict.word == "INCONCLUSIVE"]
    return "FAIL" not in words and not all(_ends(each, measured, more=True) for each in open_)


def _ends(threshold: Threshold, measured: _Json, *, more: bool = False) -> bool:
    """Whether a baseline has fewer samples than this look, or no more: what a look adds has no partner there.

    Such a drop keeps the verdict that it has.
    """
    if threshold.baseline is None:
        return False
    worst = baseline_of(threshold.baseline).eval_row("worst")
    return worst is not None and worst.n < measured["n"] + more
