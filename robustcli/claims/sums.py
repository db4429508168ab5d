"""SHA256SUMS of a run: its records, its report and the weights that it is about, as `sha256sum -c` reads it.

HEX  path              below the run, or from the run to weights that lie elsewhere
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.claims.provenance import FROM_RUNS, run_of, section
from robustcli.errors import CheckpointError, DataError, UsageError, printable
from robustcli.regular import NO_LINK, open_regular
from robustcli.reporting.dossier import Dossier
from robustcli.store.inventory import files_of
from robustcli.store.retention import pointed

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n\\]+)")
#: What a run may lose or write again without saying anything else: `runs prune`, a lock, a log.
_LEFT_OUT = re.compile(
    r"(?:.*/)?(?:\.lock|log\.txt|SHA256SUMS(?:\.sig)?|checkpoints/last|(?:shards|tensorboard)/.*|\.tmp-.*)"
)
_STEP = re.compile(r"((?:.*/)?checkpoints)/(step-\d+)/.*")
#: Links that a run may hold: to its newest part, and to folders that are left out.
_LINKS = ("current", "shards", "tensorboard")
_GUARD_FILES = ("guard.json", "weights.safetensors")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Difference:
    """How the files of a run differ from its sums; paths as SHA256SUMS has them."""

    changed: list[str]
    missing: list[str]
    added: list[str]

    def __bool__(self) -> bool:
        return bool(self.changed or self.missing or self.added)

    @property
    def words(self) -> str:
        """``changed report.html; missing samples.jsonl``."""
        found = {"changed": self.changed, "missing": self.missing, "added": self.added}
        return "; ".join(f"{what} {', '.join(paths)}" for what, paths in found.items() if paths)


def sums_of(dossier: Dossier) -> dict[str, str]:
    """Path -> SHA-256 of all that is signed.

    Raises UsageError for a name that the format cannot hold, for a link in the run, and for weights that are
    not found; OSError.
    """
    run = dossier.path
    if links := links_in(run):
        hint = "put what it leads to in its place; a signature is over bytes"
        raise UsageError("a link cannot be signed", where=str(run / links[0]), hint=hint)
    outside = (os.path.relpath(path.resolve(), run.resolve()) for path in weights_of(dossier))
    paths = [*own_files(run), *(Path(path).as_posix() for path in outside)]
    for path in paths:
        if not _LINE.fullmatch(f"{'0' * 64}  {path}"):
            raise UsageError("a name with a line break or a backslash cannot be signed", where=repr(path))
    return {path: _digest(run / path) for path in sorted(set(paths))}


def own_files(run: Path) -> list[str]:
    """The files of a run that are signed: what a run writes, less what it may lose; of checkpoints the best.

    What a run of any verb writes counts: readers of a run take a record for one of it, whoever wrote it.
    """
    return [path for path in files_of(run, "") if _is_signed(run, path)]


def links_in(run: Path) -> list[str]:
    """The links of a run in the places of what is signed."""
    found = (path for path in files_of(run, "") if (run / path).is_symlink())
    return [path for path in found if path not in _LINKS and not _LEFT_OUT.fullmatch(path)]


def weights_of(dossier: Dossier) -> list[Path]:
    """Files of weights outside the run that its numbers are about; [] where they lie in no file.

    Raises UsageError where the run names weights that are not found from here.
    """
    model = section(dossier.config, "model")
    named = [*(dossier.document.get("references") or ()), model.get("name")]
    references = [*(name for name in named if str(name).startswith(FROM_RUNS)), model.get("weights")]
    found = {reference: list(_weights_behind(reference)) for reference in references if reference}
    for reference, files in found.items():
        if not files:
            raise UsageError(
                f"the weights of {printable(str(reference))} are not found from here",
                where=str(dossier.path),
                hint="sign in the directory in which they were measured; a signature is over the weights too",
            )
    outside = [name for name in named if not str(name).startswith(FROM_RUNS)]
    files = [path for paths in found.values() for path in paths]
    return list(dict.fromkeys([*files, *(path for name in outside for path in _weights_behind(name))]))


def written(sums: Mapping[str, str]) -> str:
    """The text of SHA256SUMS."""
    return "".join(f"{digest}  {path}\n" for path, digest in sums.items())


def parsed(text: str, where: str) -> dict[str, str]:
    """The sums in a text. Raises DataError E-RECORD for another text."""
    lines = [_LINE.fullmatch(line) for line in text.removesuffix("\n").split("\n")]
    found = {line[2]: line[1] for line in lines if line is not None}
    if len(found) != len(lines) or not found:
        raise DataError("not a list of sums", where=where, hint="sign the run again", code="E-RECORD")
    return found


def differences(run: Path, sums: Mapping[str, str]) -> Difference:
    """What has changed since; a file that cannot be read is missing, and so is one behind a link.

    Raises OSError for the run itself.
    """
    now = {path: _digest_or_none(run / path) for path in sums}
    return Difference(
        [path for path, digest in now.items() if digest is not None and digest != sums[path]],
        [path for path, digest in now.items() if digest is None],
        [path for path in (*own_files(run), *links_in(run)) if path not in sums],
    )


def _is_signed(run: Path, path: str) -> bool:
    place = run / path
    if _LEFT_OUT.fullmatch(path) or place.is_symlink() or not place.is_file():
        return False
    step = _STEP.fullmatch(path)
    return step is None or step[2] == _chosen(run / step[1])


def _chosen(root: Path) -> str | None:
    """The checkpoint that stands for a training: `best`, else `last`."""
    try:
        return pointed(root, "best") or pointed(root, "last")
    except CheckpointError:
        return None


def _weights_behind(reference: Any) -> Iterator[Path]:
    if not isinstance(reference, str):
        return
    run = run_of(reference)
    if run is None:
        path = Path(reference)
        if path.is_file():
            yield path
    elif run.verb == "train":
        yield from (run.path / path for path in own_files(run.path) if _is_weights(path))
    else:
        yield from (run.path / name for name in _GUARD_FILES if (run.path / name).is_file())


def _is_weights(path: str) -> bool:
    """Whether a file of a training is a part of its network: another run does not need its optimiser."""
    return _STEP.fullmatch(path) is not None and not path.endswith("/optimizer.safetensors")


def _digest_or_none(path: Path) -> str | None:
    try:
        return _digest(path)
    except OSError:
        return None


def _digest(path: Path) -> str:
    """SHA-256 of a regular file. Raises OSError, also for a link: what it leads to may change unseen."""
    sha = hashlib.sha256()
    with os.fdopen(open_regular(path, NO_LINK), "rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()
