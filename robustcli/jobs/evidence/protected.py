"""Which runs are left alone when disk space is freed.

They are those that may be alive, that `latest` or `current` names, or that another run was made from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from robustcli.claims.provenance import section
from robustcli.jobs.evidence.listing import Listed, find
from robustcli.store.current import CURRENT
from robustcli.store.identity import RUNS
from robustcli.store.latest import LATEST, resolve_run

_REFERENCES = ("run:", "guard:")


@dataclass(frozen=True)
class Kept:
    """A run that is left alone, and why."""

    run: Listed
    reason: str

    def to_json(self) -> dict[str, str]:
        """As the document has it."""
        return {"run": str(self.run.path), "reason": self.reason}


def unprotected(runs: Sequence[Listed], root: Path) -> tuple[list[Listed], list[Kept]]:
    """(the runs that may lose files, those that are left alone). root: the directory that holds them.

    Runs that lie beside `root`, and those in runs/, may have been made from them as well.
    """
    named = {path.resolve() for path in _pointers(runs, root)}
    wanted = {part for run in [*runs, *_beside(runs, root)] for part in _made_from(run)}
    chosen: list[Listed] = []
    kept: list[Kept] = []
    for run in runs:
        reason = _reason(run, named, wanted)
        if reason:
            kept.append(Kept(run, reason))
        else:
            chosen.append(run)
    return chosen, kept


def _reason(run: Listed, named: set[Path], wanted: set[str]) -> str:
    """Why a run is left alone; "" where it is not."""
    if run.state == "running":
        return "it runs"
    if run.path.resolve() in named:
        return "latest or current names it"
    whole = run.path.resolve().as_posix()
    if any(whole == part or whole.endswith(f"/{part}") for part in wanted):
        return "another run was made from it"
    return ""


def _beside(runs: Sequence[Listed], root: Path) -> Iterator[Listed]:
    """The runs of other verbs beside the verb that was named, and those below runs/."""
    above = {run.path.resolve().parents[1] for run in runs if run.path.resolve().parent.name in _folders(run)}
    for folder in sorted({*above, RUNS.resolve()}):
        if folder.is_dir() and folder != root.resolve() and not folder.is_relative_to(root.resolve()):
            yield from find(folder)[0]


def _folders(run: Listed) -> tuple[str, str]:
    """What the folder of all runs of its verb is called: guard, or guard-eval."""
    verb = run.run.verb
    return verb.replace(" ", "-"), verb.partition(" ")[0]


def _pointers(runs: Sequence[Listed], root: Path) -> Iterator[Path]:
    """What each `latest` beside the runs names, and what each `current` in or beside `root` does."""
    for folder in {run.path.parent for run in runs}:
        latest = folder / LATEST
        if os.path.lexists(latest):
            yield resolve_run(latest)
    for depth in ("", "*/", "*/*/"):
        yield from (resolve_run(link) for link in root.glob(f"{depth}{CURRENT}"))


def _made_from(run: Listed) -> Iterator[str]:
    """Paths, and the ends of paths, of runs that a run was made from.

    A reference may lead into a run, to a checkpoint, and is written as seen from where its run was started.
    So each folder above it counts, wherever it lies.
    """
    model = section(run.run.config, "model")
    texts = [model.get("name"), model.get("weights"), run.run.document.get("model")]
    texts += [*_listed(run.run.document.get("references")), *_listed(model.get("members"))]
    texts += [spec.get("name") for spec in _listed(run.run.config.get("defences")) if isinstance(spec, dict)]
    for text in texts:
        if isinstance(text, str):
            path = Path(_bare(text))
            for part in (*_and_parents(path), *_and_parents(path.resolve())):
                yield part.as_posix()


def _and_parents(path: PurePath) -> Iterator[PurePath]:
    """The path and the folders above it, without those that have no name."""
    yield from (part for part in (path, *path.parents) if part.name and ".." not in part.parts)


def _bare(reference: str) -> str:
    for prefix in _REFERENCES:
        reference = reference.removeprefix(prefix)
    return os.path.normpath(reference)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []
