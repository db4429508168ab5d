"""`robustcli runs prune`: which files of finished runs could go, and their removal.

Nothing of a run goes that may be alive, that `latest` or `current` names, or that another run was made from.
A file that no run writes is never touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from robustcli.errors import LockError, RobustCliError
from robustcli.jobs.evidence.listing import Listed
from robustcli.jobs.evidence.protected import Kept, unprotected
from robustcli.jobs.evidence.runs import age, found_in, size_text, tell, told
from robustcli.records.document import Document
from robustcli.reporting.cells import amount
from robustcli.reporting.tables import Table
from robustcli.store.disk import explained
from robustcli.store.identity import RUNS, identity_of
from robustcli.store.inventory import came_to_nothing, files_of, is_folder
from robustcli.store.leftovers import remove_emptied
from robustcli.store.lock import NAME as LOCK
from robustcli.store.lock import RunLock
from robustcli.store.retention import candidates, drop, point, pointed, step_name, step_of, tagged
from robustcli.terminal.console import Console

_SHARDED = ("eval", "certify")
_BEST, _LAST = "best", "last"
_KNOWN_BY = ("status.json", "run.json", LOCK)
_NOTHING = "a run without a result"


@dataclass(frozen=True)
class Doomed:
    """Files of one run that could go.

    Args:
        run: the run. what: in words. paths: below the run. size: bytes.
        step: the directory of a checkpoint that goes whole, such as step-00000010; "" for other files.
    """

    run: Listed
    what: str
    paths: Sequence[str]
    size: int
    step: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the document has it."""
        return {"run": str(self.run.path), "what": self.what, "files": len(self.paths), "bytes": self.size}


def runs_prune(
    root: Path | None,
    console: Console,
    *,
    keep_best: bool = False,
    older_than: str | None = None,
    yes: bool = False,
) -> dict[str, Any]:
    """Say what could go, and remove it with `yes`; returns the document.

    Args:
        root: None means runs/, which need not be there.
        keep_best: of a training that is done, the checkpoint `last` goes as well where `best` is another.
        older_than: only runs that ended so long ago: ``30d``.

    Raises UsageError, and ResourceError where a file cannot be removed.
    """
    document = Document("runs prune")
    horizon = None if older_than is None else datetime.now(timezone.utc) - age(older_than)
    runs, skipped = found_in(root)
    chosen, kept = unprotected(runs, RUNS if root is None else root)
    old = [run for run in chosen if horizon is None or run.when < horizon]
    doomed = [entry for run in old for entry in _doomed(run, keep_best)]
    if yes:
        doomed, busy = _remove(doomed, keep_best)
        kept += busy
    _show(doomed, kept, yes, console)
    tell(skipped, console)
    answer = document.finish(
        None,
        {
            "dry_run": not yes,
            "bytes": sum(entry.size for entry in doomed),
            "removed" if yes else "could_go": [entry.to_json() for entry in doomed],
            "kept": [entry.to_json() for entry in kept],
            "skipped": told(skipped),
        },
    )
    console.document(answer)
    return answer


def _doomed(run: Listed, keep_best: bool) -> Iterator[Doomed]:
    """What of a run could go; nothing where it cannot be read."""
    try:
        identity = identity_of(run.path)
        if identity is None:
            return
        files = files_of(run.path, identity.verb)
        if run.state != "done" and came_to_nothing(run.path, identity.verb):
            yield _entry(run, _NOTHING, files)
        if identity.verb == "train" and run.state == "done":
            yield from _checkpoints(run, files, keep_best)
        if _is_whole(run):
            shards = [path for path in files if path.startswith("shards/")]
            if shards:
                yield _entry(run, "shards, of which the numbers are made", shards)
    except (OSError, RobustCliError):
        return


def _checkpoints(run: Listed, files: Sequence[str], keep_best: bool) -> Iterator[Doomed]:
    """Checkpoints that no pointer names, and with `keep_best` the last one of a training that is done."""
    root = run.path / "checkpoints"
    names = tagged(root) if is_folder(root) else None
    if names is None:
        return
    best = pointed(root, _BEST)
    if keep_best and best is not None:
        names = {best}
    for path in candidates(root):
        inside = f"checkpoints/{path.name}/"
        own = [file for file in files if file.startswith(inside)]
        foreign = sum(len(found) for _, _, found in os.walk(path)) != len(own)
        if step_name(step_of(path)) not in names and own and not foreign:
            yield _entry(run, f"checkpoint {path.name}", own, path.name)


def _is_whole(run: Listed) -> bool:
    """Whether the shards of a run are in its numbers, and no part of it waits to be merged."""
    done = run.run.verb in _SHARDED and run.state == "done" and run.run.code == 0
    return done and not run.run.document.get("partial") and (run.path / "samples.jsonl").is_file()


def _entry(run: Listed, what: str, paths: Sequence[str], step: str = "") -> Doomed:
    return Doomed(run, what, paths, sum(os.lstat(run.path / path).st_size for path in paths), step)


def _remove(doomed: Sequence[Doomed], keep_best: bool) -> tuple[list[Doomed], list[Kept]]:
    """(what was removed, the runs that somebody had locked by then). Each run under its lock."""
    removed: list[Doomed] = []
    busy: list[Kept] = []
    for run in {id(entry.run): entry.run for entry in doomed}.values():
        try:
            with RunLock(run.path), explained(run.path):
                entries = list(_doomed(run, keep_best))  # once more: it may have changed
                for entry in entries:
                    _remove_one(entry)
                removed += entries
        except LockError as error:
            busy.append(Kept(run, error.what))
    return removed, busy


def _remove_one(entry: Doomed) -> None:
    """Remove the files of an entry, under the lock of its run. Raises OSError, ResourceError."""
    run = entry.run.path
    if entry.step:
        _drop(run / "checkpoints", entry.step)
        return
    last = [path for path in _KNOWN_BY if path in entry.paths]  # so that a kill leaves a run
    for path in [*(path for path in entry.paths if path not in last), *last]:
        os.unlink(run / path)
    remove_emptied(run, list(entry.paths))
    if entry.what == _NOTHING and not any(run.iterdir()):
        run.rmdir()


def _drop(root: Path, step: str) -> None:
    """Remove one checkpoint; where `last` names it, `last` is the best one from now on."""
    best = pointed(root, _BEST)
    if best is not None and pointed(root, _LAST) == step:
        point(root, _LAST, best)
    drop(root, [root / step])


def _show(doomed: Sequence[Doomed], kept: Sequence[Kept], yes: bool, console: Console) -> None:
    total = size_text(sum(entry.size for entry in doomed))
    if doomed:
        rows = [(str(entry.run.path), entry.what, size_text(entry.size)) for entry in doomed]
        console.table(Table("removed" if yes else "could go", ["run", "what", "size"], rows))
    for entry in kept:
        console.info(f"kept {entry.run.path}: {entry.reason}")
    freed = amount(len({id(entry.run) for entry in doomed}), "run")
    if yes:
        console.result(f"freed {total} of {freed}")
    elif doomed:
        console.result(f"{total} of {freed} could go; nothing was removed: --yes does it")
    else:
        console.result("nothing could go")
