"""One run, or several, as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import (
    Block,
    Bullets,
    Chapter,
    Facts,
    Figure,
    Grid,
    Report,
    Section,
    Text,
    filled,
)
from robustcli.reporting.page.doubt import doubt_section
from robustcli.reporting.page.limits import limits_section, untested_section
from robustcli.reporting.page.origin import Check, origin_section, stale, subject_of
from robustcli.reporting.page.results import result_sections
from robustcli.reporting.page.standards import standards_section
from robustcli.reporting.page.threat import threat_section
from robustcli.reporting.page.verdict import verdict_of
from robustcli.reporting.paired import compare, paired_table

_OF_RESULTS = ("threat", "limits", "standards")  # keys of sections about what was measured
_MOST_RUNS = 12  # compared with the first


@dataclass(frozen=True)
class Material:
    """What a report is made from beside the records, by the path of each run.

    left_out: sentences about pictures that are not there.
    """

    figures: Mapping[str, Sequence[Figure]] = field(default_factory=dict)
    checks: Mapping[str, Sequence[Check]] = field(default_factory=dict)
    comparison: Sequence[Figure] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)


def report_of(runs: Sequence[Dossier], material: Material, made: str) -> Report:
    """The report of one run, or of several beside each other; at least one."""
    chapters = [chapter_of(run, material) for run in runs]
    if len(runs) == 1:
        return Report(f"{chapters[0].name}: robustness report", chapters, made)
    names = _names(runs)
    common = [_comparison(runs, names, material)]
    return Report(f"{len(runs)} runs: robustness report", chapters, made, common)


def chapter_of(run: Dossier, material: Material) -> Chapter:
    """The chapter of one run, and those of the runs inside it."""
    checks = material.checks.get(str(run.path), ())
    results = result_sections(
        run, material.figures.get(str(run.path), ()), material.left_out.get(str(run.path), ())
    )
    sections = [
        *results[:1],
        threat_section(run),
        *results[1:],
        doubt_section(run),
        limits_section(run),
        untested_section(run),
        standards_section(run),
        origin_section(run, checks),
    ]
    if not run.measured:  # nothing was tried, no claim has a limit
        sections = [section for section in sections if section.key not in _OF_RESULTS]
    parts = [chapter_of(part, material) for part in run.parts.values()]
    verdict = verdict_of(run, _stale(run, material))
    return Chapter(run.name, subject_of(run), verdict, [one for one in sections if filled(one)], parts)


def _stale(run: Dossier, material: Material) -> list[str]:
    """What has changed since a run or one of those inside it, each thing once."""
    found = stale(material.checks.get(str(run.path), ()))
    for part in run.parts.values():
        found += _stale(part, material)
    return list(dict.fromkeys(found))


def _comparison(runs: Sequence[Dossier], names: Sequence[str], material: Material) -> Section:
    """Every run against the first, on the samples that both have measured."""
    verdicts = [verdict_of(run, _stale(run, material)) for run in runs]
    blocks: list[Block] = [
        Facts([(name, f"{one.word}. {one.sentence}") for name, one in zip(names, verdicts, strict=True)]),
        Text(f"Each run is compared with the first, {names[0]}, on the same samples."),
    ]
    for run, name in zip(runs[1:_MOST_RUNS], names[1:], strict=False):
        found = compare(runs[0], run)
        blocks.append(Bullets([pair.words(names[0], name) for pair in found.pairs]))
        if found.pairs:
            blocks.append(Grid(paired_table((names[0], name), found.pairs)))
        blocks.append(Bullets([f"{name}: {note}" for note in found.notes]))
    return Section("comparison", "Comparison", [*blocks, *material.comparison])


def _names(runs: Sequence[Dossier]) -> list[str]:
    """Names that tell the runs apart: the path where two have the same name."""
    names = [run.name for run in runs]
    return [str(run.path) if names.count(run.name) > 1 else run.name for run in runs]
