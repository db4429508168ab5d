"""`robustcli guard status`: whether today's answers still look like those of the fit."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustcli.errors import DataError, UsageError
from robustcli.guard.rules import NOTHING, STATES, Judgement, Reference, judge
from robustcli.guard.store import EvidenceStore, Observation
from robustcli.jobs.guard.cells import moment
from robustcli.proportions import Rate
from robustcli.records.document import Document
from robustcli.reporting.cells import Cell, amount
from robustcli.reporting.tables import Table
from robustcli.terminal.console import Console

_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0}


def guard_status(
    where: str, console: Console, *, guard: Path | None, window: str, fail_on: str | None
) -> dict[str, Any]:
    """Judge the answers of a window; a gate of the document asks for a better state than `fail_on`.

    Args:
        where: the store.
        guard: directory of `guard fit`; None takes the fit that the store knows.
        window: how many answers, or how far back.

    Raises UsageError where nobody knows what the guard was fitted on.
    """
    document = Document("guard status")
    span = _span(window)
    with EvidenceStore.open(where) as store:
        newest = store.observations(last=1)
        model = newest[0].model if newest else None
        seen = store.observations(last=span.get("last"), since=span.get("since"), model=model)
        counts = store.counts()
        judged = NOTHING
        if seen:
            judged = judge(seen, _reference(store, guard, model))
    _show(console, store.where, judged, seen, counts)
    gate = []
    if fail_on is not None:
        passed = STATES.index(judged.state) < STATES.index(fail_on)
        gate = [{"metric": "state", "value": judged.state, "passed": passed}]
    content = {"window": window, "model": model, **judged.to_json(), "store": counts, "gate": gate}
    return document.finish(None, content)


def _span(window: str) -> dict[str, Any]:
    """`1000` as a number of answers, `24h` as a time since when. Raises UsageError."""
    match = re.fullmatch(r"([1-9]\d{0,11})([mhd]?)", window)
    if match is None:
        raise UsageError(f"--window {window!r} is no window", hint="1000 (answers), 30m, 24h or 7d")
    number, unit = int(match[1]), match[2]
    return {"since": time.time() - number * _SECONDS[unit]} if unit else {"last": number}


def _reference(store: EvidenceStore, guard: Path | None, model: str | None) -> Reference:
    if guard is not None:
        return _fitted(guard)
    known = None if model is None else store.reference(model)
    if known is None:
        what = "the store does not know what this guard was fitted on"
        raise UsageError(what, where=store.where, hint="give --guard DIR, the directory of `guard fit`")
    try:
        return Reference.from_json(known)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = "what it says of the fit was changed"
        raise DataError(what, where=store.where, hint="give --guard DIR", code="E-STORE") from error


def _fitted(guard: Path) -> Reference:
    from robustcli.guard.reference import reference_of  # torch, which a store alone does not need

    reference = reference_of(guard)
    if reference is None:
        what = "this guard has no detector: there is nothing to watch"
        raise UsageError(what, where=str(guard), hint="fit one with a detector")
    return reference


def _show(
    console: Console, where: str, judged: Judgement, seen: Sequence[Observation], counts: dict[str, int]
) -> None:
    """The state with its reasons, then the tests."""
    console.result(f"{judged.state}: {'; '.join(judged.reasons)}")
    rows: list[list[Cell]] = [[*found.to_json().values()] for found in judged.findings]
    note = ""
    if seen:
        rate = Rate(judged.alarms, judged.n)
        low, high = rate.exact
        note = (
            f"{amount(judged.n, 'answer')} from {moment(seen[0].time)} to {moment(seen[-1].time)}, "
            f"{amount(judged.alarms, 'alarm')} ({rate.value:.1%}, 95 % interval {low:.1%} to {high:.1%})"
        )
    if rows:
        console.table(Table(f"rules over {where}", ["rule", "p", "adjusted", "state", "found"], rows, note))
    dropped = sum(number for name, number in counts.items() if name.startswith("dropped"))
    waiting = counts["images"] - counts["reviewed"]
    images, rows_gone = amount(counts["images"], "image"), amount(dropped, "row")
    console.info(f"{images}, {waiting} without a label; {rows_gone} dropped")
