"""`robustcli report`: report.html, summary.md, model_card.md and pictures, from the records of runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.claims.model_card import model_card
from robustcli.errors import UsageError
from robustcli.jobs.evidence.freshness import checks_of
from robustcli.records.document import Document
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import Figure, Report
from robustcli.reporting.page.compose import Material, report_of
from robustcli.reporting.page.html import html_of
from robustcli.reporting.page.markdown import markdown_of
from robustcli.reporting.page.origin import stale
from robustcli.reporting.pictures import comparison_of, pictures_of, save_pictures
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
    pictures: Sequence[Path]
    content: Report
    stale: Sequence[str]


def report(runs: Sequence[str], out: str | None, overwrite: bool = False) -> dict[str, Any]:
    """Write the report of runs as the command line names them; returns its document."""
    document = Document("report")
    if not runs:
        raise UsageError("report of which run?", hint="robustcli report RUN [RUN ...]")
    folders = [resolve_run(Path(run)) for run in runs]
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
    files = {"report": written.report, "summary": written.summary, "model_card": written.card}
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
    """Write report.html, summary.md, model_card.md and plots/ for one run, or for several together.

    Args:
        runs: run directories, at least one. The first is what the others are compared with, and the one that
            the model card and the pictures beside the page are of.
        out: an existing directory; None means that of the first run.
        check: whether code, model, data and so on are compared with the records. A run that ends now has
            just read them.

    Raises UsageError and DataError as `Dossier.read`, ResourceError when a file cannot be written.
    """
    dossiers = [Dossier.read(path) for path in runs]
    target = out or runs[0]
    everyone = [one for dossier in dossiers for one in _with_parts(dossier)]
    checks = {str(one.path): checks_of(one) if check else [] for one in everyone}
    figures, saved = _figures(dossiers, target)
    comparison = [Figure(picture) for picture in comparison_of(dossiers)] if len(dossiers) > 1 else []
    content = report_of(dossiers, Material(figures, checks, comparison), _made())
    card = model_card(dossiers[0])
    return Written(
        _write(target / REPORT, html_of(content)),
        _write(target / SUMMARY, markdown_of(content)),
        _write(target / CARD, card),
        saved,
        content,
        list(dict.fromkeys(line for one in checks.values() for line in stale(one))),
    )


def write_page(run: Path) -> Path:
    """Write report.html and its pictures for a run that has just ended; returns the page."""
    dossier = Dossier.read(run)
    figures, _ = _figures([dossier], run)
    content = report_of([dossier], Material(figures), _made())
    return _write(run / REPORT, html_of(content))


def _figures(runs: Sequence[Dossier], target: Path) -> tuple[dict[str, list[Figure]], list[Path]]:
    """(pictures of each run and part, those that were saved). The first run's lie beside the page too."""
    found: dict[str, list[Figure]] = {}
    saved: list[Path] = []
    room = _PICTURES
    for run in runs:
        for one in _with_parts(run):
            pictures = pictures_of(one)
            name = ""
            if one is runs[0]:
                saved = save_pictures(pictures, target / "plots")
                name = "plots"
            kept = []
            for picture in pictures:
                room -= len(picture.png)
                if room >= 0:
                    kept.append(Figure(picture, f"{name}/{picture.name}.png" if name else ""))
            found[str(one.path)] = kept
    return found, saved


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
