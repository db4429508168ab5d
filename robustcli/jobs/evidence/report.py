"""`robustcli report`: report.html, summary.md, model card, bill of materials and pictures from records."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustcli.claims.cyclonedx import FILE_NAME as BOM
from robustcli.claims.cyclonedx import cyclonedx
from robustcli.claims.model_card import model_card
from robustcli.errors import UsageError
from robustcli.jobs.evidence.freshness import checks_of
from robustcli.records.document import Document
from robustcli.reporting.cells import amount
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import Figure, Report
from robustcli.reporting.page.compose import Material, report_of
from robustcli.reporting.page.html import html_of
from robustcli.reporting.page.markdown import markdown_of
from robustcli.reporting.page.origin import stale
from robustcli.reporting.pictures import comparison_of, drawn, save_pictures
from robustcli.runtime.seed import environment
from robustcli.store.atomic import write_atomic
from robustcli.store.disk import explained
from robustcli.store.latest import resolve_run

REPORT, SUMMARY, CARD = "report.html", "summary.md", "model_card.md"
#: Bytes of pictures in one page; what goes beyond is left out of the page. The page stays below 5 MB.
_PICTURES = 3_200_000


@dataclass(frozen=True)
class Written:
    """What a report has left, and what it says. stale: what no longer matches the record, in words."""

    report: Path
    summary: Path
    card: Path
    bom: Path
    pictures: Sequence[Path]
    content: Report
    stale: Sequence[str]


def report(runs: Sequence[str], out: str | None, overwrite: bool = False) -> dict[str, Any]:
    """Write the report of runs as the command line names them; returns its document."""
    document = Document("report")
    if not runs:
        raise UsageError("report of which run?", hint="robustcli report RUN [RUN ...]")
    folders = [Dossier.glance(resolve_run(Path(run))).path for run in runs]  # no run, no directory
    written = write_report(folders, _folder(out, folders, overwrite))
    found = [
        {
            "run": str(folder),
            "verdict": chapter.verdict.word,
            "sentence": chapter.verdict.sentence,
            "numbers": {number.name: number.value for number in chapter.verdict.numbers},
        }
        for folder, chapter in zip(folders, written.content.chapters, strict=True)
    ]
    files = {
        "report": written.report,
        "summary": written.summary,
        "model_card": written.card,
        "bom": written.bom,
    }
    return document.finish(
        written.report.parent,
        {
            **{name: str(path) for name, path in files.items()},
            "pictures": [str(path) for path in written.pictures],
            "runs": found,
            "stale": list(written.stale),
        },
    )


def write_report(runs: Sequence[Path], out: Path | None = None, *, check: bool = True) -> Written:
    """Write report.html, summary.md, model_card.md, bom.cdx.json and plots/ for one run or several together.

    Args:
        runs: run directories, at least one. The first is what the others are compared with, and the one that
            the model card, the bill of materials and the pictures beside the page are of.
        out: an existing directory; None means that of the first run.
        check: whether code, model, data and so on are compared with the records. A run that ends now has
            just read them.

    Raises UsageError and DataError as `Dossier.read`, ResourceError when a file cannot be written.
    """
    dossiers = [Dossier.read(path) for path in runs]
    target = out or runs[0]
    everyone = [one for dossier in dossiers for one in _with_parts(dossier)]
    checks = {str(one.path): checks_of(one) if check else [] for one in everyone}
    drawing = _drawn(dossiers, target)
    comparison = comparison_of(dossiers) if len(dossiers) > 1 else []
    saved = [*drawing.saved, *(save_pictures(comparison, target / "plots") if out is not None else [])]
    material = Material(drawing.figures, checks, [*map(Figure, comparison)], drawing.left_out)
    content = report_of(dossiers, material, _made())
    card, bom = model_card(dossiers[0]), json.dumps(cyclonedx(dossiers[0]), indent=1) + "\n"
    return Written(
        _write(target / REPORT, html_of(content)),
        _write(target / SUMMARY, markdown_of(content)),
        _write(target / CARD, card),
        _write(target / BOM, bom),
        saved,
        content,
        list(dict.fromkeys(line for one in checks.values() for line in stale(one))),
    )


def write_page(run: Path) -> Path:
    """Write report.html and its pictures for a run that has just ended; returns the page."""
    dossier = Dossier.read(run)
    drawing = _drawn([dossier], run)
    content = report_of([dossier], Material(drawing.figures, left_out=drawing.left_out), _made())
    return _write(run / REPORT, html_of(content))


@dataclass
class _Drawing:
    """Pictures of runs by their path, sentences about those left out, files, and the bytes that are left."""

    room: int
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    saved: list[Path] = field(default_factory=list)

    def add(self, run: Dossier, beside: Path | None) -> None:
        """Draw all of a run. beside: where its files go; None for pictures that lie in the page alone."""
        found = drawn(run)
        if beside is not None:
            self.saved += save_pictures(found.pictures, beside)
        kept = []
        for picture in found.pictures:
            self.room -= len(picture.png)
            if self.room >= 0:
                kept.append(Figure(picture, f"plots/{picture.name}.png" if beside is not None else ""))
        gone = len(found.pictures) - len(kept)
        full = [f"{amount(gone, 'picture')} more: the report of this run alone has room for all."]
        self.figures[str(run.path)] = kept
        self.left_out[str(run.path)] = [*found.left_out, *(full if gone else [])]


def _drawn(runs: Sequence[Dossier], target: Path) -> _Drawing:
    """The pictures of all runs and of those inside them. The first run's lie beside the page too."""
    drawing = _Drawing(_PICTURES)
    for run in runs:
        for one in _with_parts(run):
            drawing.add(one, target / "plots" if one is runs[0] else None)
    return drawing


def _with_parts(run: Dossier) -> Iterator[Dossier]:
    """A run and all runs inside it."""
    yield run
    for part in run.parts.values():
        yield from _with_parts(part)


def _folder(out: str | None, runs: Sequence[Path], overwrite: bool) -> Path | None:
    """The directory of --out, made. Raises UsageError for a file, and for one with something else in it."""
    if out is None:
        return None
    path = Path(out)
    with explained(path):
        if path.exists() and not path.is_dir():
            raise UsageError("--out is a file", where=out, hint="name a directory")
        same = any(path.exists() and path.samefile(run) for run in runs)
        taken = path.is_dir() and any(path.iterdir()) and not (path / REPORT).is_file()
        if taken and not same and not overwrite:
            raise UsageError(
                "--out is not empty and holds no report", where=out, hint="choose another; or --overwrite"
            )
        path.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, text: str) -> Path:
    write_atomic(path, text.encode("utf-8", "backslashreplace"))
    return path


def _made() -> str:
    """By which version, and when."""
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"Made by robustcli {environment()['robustcli']} on {moment} from records alone."
