"""The gate for people: a table in markdown, annotations of GitHub, a badge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustcli.errors import printable
from robustcli.gating.places import below
from robustcli.gating.threshold import Threshold
from robustcli.gating.verdict import Outcome, Verdict
from robustcli.reporting.cells import percent
from robustcli.reporting.tables import Table

_COLORS = {"PASS": "brightgreen", "FAIL": "red", "INCONCLUSIVE": "yellow", "ERROR": "lightgrey"}
_MARKS = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "❔", "ERROR": "⚠️"}


def _shown(outcome: Outcome) -> str:
    """The word whose colour fits: what is not proven and had to be is shown as a failure."""
    if outcome.word == "INCONCLUSIVE" and not outcome.passed:
        return "FAIL"
    return outcome.word


def _said(outcome: Outcome) -> str:
    """The verdict, and what it means where the word alone does not tell."""
    if outcome.word != "INCONCLUSIVE":
        return outcome.word
    return "INCONCLUSIVE, which passes" if outcome.passed else "INCONCLUSIVE, and it was to be proven"


def gate_table(outcome: Outcome) -> Table:
    """One row for each threshold."""
    columns = ("threshold", "mode", "measured", "one-sided bounds", "n", "verdict")
    rows = [_row(verdict) for verdict in outcome.verdicts]
    return Table(f"Gate: {_said(outcome)}", columns, rows, note(outcome))


def _row(verdict: Verdict) -> tuple[str, ...]:
    low, high = map(_signed, verdict.interval)
    measured = f"{_signed(verdict.value)} %"
    if verdict.note:
        measured += f" ({verdict.note})"
    mode = verdict.threshold.mode
    return verdict.threshold.words, mode, measured, f"[{low}, {high}]", str(verdict.n), verdict.word


def _signed(share: float) -> str:
    """A share or a drop in percent."""
    return percent(share) if share >= 0 else f"-{percent(-share)}"


def note(outcome: Outcome) -> str:
    """How the verdicts were reached, in a few sentences."""
    if not outcome.verdicts:
        return ""
    alphas = sorted({verdict.alpha for verdict in outcome.verdicts})
    each = " or ".join(f"{100 * (1 - alpha):g} %" for alpha in alphas)
    looks = " and ".join(map(str, outcome.looks))
    words = [f"Each bound holds with {each}."]
    if len(outcome.looks) > 1:
        words.append(f"Looks: {looks} samples.")
    if any(verdict.word == "INCONCLUSIVE" for verdict in outcome.verdicts):
        words.append("INCONCLUSIVE: these samples do not tell on which side of its limit the model is.")
    return " ".join(words)


def gate_markdown(outcome: Outcome) -> str:
    """A section for a job's summary or for a pull request."""
    head = f"## {_MARKS[_shown(outcome)]} Robustness gate: {_said(outcome)}\n\n"
    said = f"{_inline(outcome.about)}, run `{_inline(outcome.run)}`.\n\n" if outcome.run else ""
    if outcome.error:
        return f"{head}{said}Nothing was judged: {_inline(outcome.error)}\n{_alarms(outcome)}"
    table = gate_table(outcome)
    untitled = Table("", table.columns, table.rows, table.note)
    return f"{head}{said}{untitled.markdown()}{_alarms(outcome)}"


def _alarms(outcome: Outcome) -> str:
    lines = [f"- {_inline(alarm.line())}" for alarm in outcome.alarms]
    if not lines:
        return ""
    return "\n".join(["\nAlarms:", "", *lines]) + "\n"


def _inline(text: str) -> str:
    """Text of a file or a model's name, which may hold characters of markdown or HTML."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("`", "'")


def workflow_commands(outcome: Outcome, root: Path) -> Iterator[str]:
    """GitHub's workflow commands: one for each threshold that is not met, at its line.

    root: of the sources, to which the names of files are relative.
    """
    for verdict in outcome.verdicts:
        if verdict.word != "PASS":
            kind = "notice" if verdict.passed else "error"
            yield _command(kind, _place(verdict.threshold, root), verdict.threshold.name, verdict.line)
    for alarm in outcome.alarms:
        if alarm.level != "note":
            yield _command("warning", None, alarm.name, alarm.line())
    if outcome.error:
        place = next((_place(threshold, root) for threshold in outcome.thresholds), None)
        yield _command("error", place, "robustness gate", f"nothing was judged: {outcome.error}")


def _place(threshold: Threshold, root: Path) -> tuple[str, int] | None:
    """(file, line) below the root; None for a threshold that is written elsewhere."""
    if threshold.place is None:
        return None
    inside = below(threshold.place[0], root)
    return None if inside is None else (inside, threshold.place[1])


def _command(kind: str, place: tuple[str, int] | None, title: str, text: str) -> str:
    """`::error file=F,line=N,title=T::text`, with the escapes that GitHub asks for."""
    properties: dict[str, Any] = {"title": f"gate: {title}"}
    if place is not None:
        properties = {"file": place[0], "line": place[1], **properties}
    written = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in properties.items())
    return f"::{kind} {written}::{_escaped(printable(text), '')}"


def _escaped(text: str, more: str) -> str:
    text = text.replace("%", "%25")
    for character in f"\r\n{more}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def badge(outcome: Outcome) -> str:
    """The endpoint of shields.io: the verdict, and the number of the first robust threshold."""
    shown = next((each for each in outcome.verdicts if "robust" in each.threshold.name), None)
    shown = shown or next(iter(outcome.verdicts), None)
    message, label = outcome.word.lower(), "robustness"
    if outcome.word == "ERROR":
        message = "not judged"
    if shown is not None and not outcome.error:
        message, label = f"{_signed(shown.value)} % ({message})", shown.threshold.name
    document = {"schemaVersion": 1, "label": label, "message": message, "color": _COLORS[_shown(outcome)]}
    return json.dumps(document) + "\n"
