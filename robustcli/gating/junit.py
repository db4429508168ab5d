"""JUnit XML, as GitHub actions, GitLab and Jenkins read it: one case for each threshold and each alarm."""

from __future__ import annotations

from datetime import datetime, timezone
from xml.etree import ElementTree as ET

from robustcli.errors import printable
from robustcli.gating.verdict import Outcome, Verdict

_SUITE = "robustcli.gate"
_UNJUDGED = "nothing was judged"


def junit(outcome: Outcome) -> str:
    """The document: `failure` for a threshold that is not met, `error` for all that keeps it from a verdict.

    An alarm that is only a note is `skipped`, with its text. A gate without a verdict has an error case, so
    that no reader can take it for one that passed.
    """
    cases = [_threshold(verdict) for verdict in outcome.verdicts]
    if outcome.error:
        cases = [_error(threshold.words, outcome.error) for threshold in outcome.thresholds]
        cases = cases or [_error("gate", outcome.error)]
    cases += [_alarm(alarm.name, alarm.level, alarm.line()) for alarm in outcome.alarms]
    suite = ET.Element(
        "testsuite",
        {
            "name": _SUITE,
            "package": "robustcli",
            "id": "0",
            "timestamp": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
            "hostname": "localhost",
            "tests": str(len(cases)),
            **{f"{kind}s": str(_count(cases, kind)) for kind in ("failure", "error")},
            "skipped": str(_count(cases, "skipped")),
            "time": f"{outcome.seconds:.3f}",
        },
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in (("verdict", outcome.word), ("run", outcome.run), ("about", outcome.about)):
        ET.SubElement(properties, "property", {"name": name, "value": printable(value)})
    suite.extend(cases)
    lines = [verdict.line for verdict in outcome.verdicts]
    ET.SubElement(suite, "system-out").text = "\n".join(map(printable, lines))
    ET.SubElement(suite, "system-err").text = printable(outcome.error)
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _count(cases: list[ET.Element], kind: str) -> int:
    return sum(case.find(kind) is not None for case in cases)


def _case(name: str, group: str) -> ET.Element:
    about = {"name": " ".join(printable(name).split()), "classname": f"{_SUITE}.{group}", "time": "0"}
    return ET.Element("testcase", about)


def _threshold(verdict: Verdict) -> ET.Element:
    case = _case(f"{verdict.threshold.words} ({verdict.threshold.mode})", "thresholds")
    if not verdict.passed:
        _inside(case, "failure", verdict.line, verdict.word)
    return case


def _error(name: str, text: str) -> ET.Element:
    case = _case(name, "thresholds")
    _inside(case, "error", f"{_UNJUDGED}: {text}", "ERROR")
    return case


def _alarm(name: str, level: str, text: str) -> ET.Element:
    case = _case(name, "alarms")
    if level == "note":
        ET.SubElement(case, "skipped", {"message": printable(text)})
    else:
        _inside(case, "error", text, level)
    return case


def _inside(case: ET.Element, kind: str, text: str, type_: str) -> None:
    ET.SubElement(case, kind, {"message": printable(text), "type": type_}).text = printable(text)
