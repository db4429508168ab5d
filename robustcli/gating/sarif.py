"""SARIF 2.1.0: each threshold that is not met, at the line of the YAML where it is written.

A threshold that is met is no result: code-scanning services show every result as an alert.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from robustcli.config.thresholds import METRICS
from robustcli.errors import printable
from robustcli.gating.places import below
from robustcli.gating.threshold import Threshold
from robustcli.gating.verdict import Outcome, Verdict

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"note": "note", "suspect": "warning", "invalid": "error"}
_ROOT = "SRCROOT"
_Json = dict[str, Any]


def sarif(outcome: Outcome, version: str, root: Path) -> str:
    """The document. version: of this program. root: of the sources, to which paths are relative."""
    results = [_result(verdict, outcome, root) for verdict in outcome.verdicts if verdict.word != "PASS"]
    results += [_alarm(alarm.name, alarm.level, alarm.line(), outcome, root) for alarm in outcome.alarms]
    invocation: _Json = {"executionSuccessful": not outcome.error}
    if outcome.error:
        message = {"text": printable(outcome.error)}
        notice = {
            "level": "error",
            "message": message,
            "locations": _places(outcome.thresholds, outcome, root),
        }
        invocation["toolExecutionNotifications"] = [_without_empty(notice)]
    driver = {
        "name": "robustcli",
        "version": version,
        "rules": _rules({result["ruleId"] for result in results}),
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "originalUriBaseIds": {_ROOT: {"description": {"text": "the root of the sources"}}},
        "columnKind": "utf16CodeUnits",
        "results": results,
        "properties": {"verdict": outcome.word, "run": outcome.run},
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _result(verdict: Verdict, outcome: Outcome, root: Path) -> _Json:
    """FAIL, and what is not proven, are errors; what is inconclusive and passes is a note."""
    level = "note" if verdict.passed else "error"
    return _without_empty(
        {
            "ruleId": verdict.threshold.quantity.metric,
            "level": level,
            "message": {"text": printable(verdict.line)},
            "locations": _places([verdict.threshold], outcome, root),
        }
    )


def _alarm(name: str, level: str, text: str, outcome: Outcome, root: Path) -> _Json:
    """An alarm stands where the first threshold does: that is the line that asked for the number."""
    return _without_empty(
        {
            "ruleId": f"alarm/{printable(name)}",
            "level": _LEVELS[level],
            "message": {"text": printable(text)},
            "locations": _places(outcome.thresholds, outcome, root),
        }
    )


def _places(thresholds: Sequence[Threshold], outcome: Outcome, root: Path) -> list[_Json]:
    """The line of the first threshold that has one.

    A threshold of the command line has none: it stands at the configuration of the run, since services refuse
    a result without a place. [] where there is no run either.
    """
    places = [each.place for each in thresholds if each.place is not None]
    if not places and outcome.run:
        places = [(str(Path(outcome.run) / "config.resolved.yaml"), 1)]
    return [
        {"physicalLocation": {"artifactLocation": _artifact(file, root), "region": {"startLine": line}}}
        for file, line in places[:1]
    ]


def _artifact(file: str, root: Path) -> Mapping[str, str]:
    inside = below(file, root)
    if inside is None:
        return {"uri": Path(os.path.abspath(file)).as_uri()}
    return {"uri": quote(inside), "uriBaseId": _ROOT}


def _rules(ids: set[str]) -> list[_Json]:
    """A rule for each metric and each alarm of the results."""
    return [{"id": name, "shortDescription": {"text": _described(name)}} for name in sorted(ids)]


def _described(rule: str) -> str:
    if rule in METRICS:
        return METRICS[rule].what.replace("`", "")
    return f"the evaluation raised the alarm {rule.removeprefix('alarm/')}"


def _without_empty(result: _Json) -> _Json:
    return {key: value for key, value in result.items() if value != []}
