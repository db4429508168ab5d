"""Which files of a run directory are a run's: those that a run of its verb writes, and no others.

Whatever else lies there is somebody's own. It is never moved, emptied or removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from robustcli.store.atomic import TMP_NAME

_TMP = TMP_NAME.pattern
_HEAD = 1 << 16  # bytes
_STEP = rf"(?:\.old-)?step-\d{{8,18}}/(?:manifest\.json|[a-z][a-z0-9_]*\.safetensors|{_TMP})"
#: What a start writes before its first result.
_PAPERS = (
    *(r"run\.json", r"\.lock", r"status\.json", r"log\.txt", r"config\.resolved\.yaml", r"env\.json"),
    *(_TMP, rf"plots/{_TMP}"),
)
#: What the verb `report` leaves in a run.
_REPORT = (r"report\.html", r"model_card\.md", r"bom\.cdx\.json", r"SHA256SUMS(?:\.sig)?")
_COMMON = (*_PAPERS, r"crash\.log", r"metrics\.jsonl", r"results\.csv", r"summary\.(?:json|md)", *_REPORT)
_HEADER = r"shards/(?:[a-z][\w-]*/){0,2}header\.json"


def _drawn(*names: str) -> str:
    """Pictures and, beside them, the numbers that they show."""
    return rf"plots/(?:{'|'.join(names)})\.(?:png|csv)"


#: Pictures of whatever has accuracies per class and a line a sample.
_JUDGED = ("plateau", "classes", "confusion_clean", "confusion_adversarial", "reliability", "examples")
_EXAMPLES = r"examples\.safetensors"
_EVENTS = r"tensorboard/events\.out\.tfevents\.[^/]+"
_TRAIN = (
    rf"checkpoints/(?:last|best|{_STEP}|{_TMP}(?:/[\w.-]+)?)",
    *(_drawn("training", "leakage"), _EVENTS, r"nan_batch(?:\.rank\d+)?\.safetensors"),
)
_ATTACK = (
    *(rf"images/(?:\d{{6,}}_[^/]{{0,40}}_adv\.png|{_TMP})", r"(?:images|samples)\.jsonl"),
    _EXAMPLES,
    *(_drawn("gallery", *_JUDGED), r"patch\.(?:safetensors|png)"),
)


def _inside(folder: str, patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(rf"{folder}/(?:{pattern})" for pattern in patterns)


_GUARD = (r"guard\.json", r"weights\.safetensors")
_PARTS = ("natural", "robust", "attack")  # the runs inside a run of `demo`
_UPDATED = ("train", "guard")  # and inside one of `guard update`
_UPDATE = (*_inside("train", (*_COMMON, *_TRAIN)), *_inside("guard", (*_COMMON, *_GUARD)))
#: Verb -> what its runs write beside `_COMMON`; each pattern is for a whole path below the run's directory.
_WRITES: dict[str, tuple[str, ...]] = {
    "train": _TRAIN,
    "eval": (
        *(_HEADER, rf"shards/(?:[a-z][\w-]*/){{0,2}}(?:audit\.json|\d{{4,}}\.jsonl|{_TMP})"),
        *(_EXAMPLES, r"shards/(?:[a-z]\w*/)?examples-\d+\.safetensors"),
        *(
            r"(?:sweep|distances|samples)\.jsonl",
            _drawn("sweep_[a-z]+", "distances", "distance_queries", *_JUDGED),
        ),
    ),
    "certify": (
        *(_HEADER, rf"shards/(?:\d{{4,}}\.jsonl|{_TMP})", r"samples\.jsonl", _drawn("certified")),
        rf"certificates/(?:\d+\.json|{_TMP})",
    ),
    "attack": _ATTACK,
    "transfer": (r"transfer\.jsonl", _drawn("transfer")),
    "bench": (r"bench\.json",),
    "guard": (*_GUARD, r"guard\.jsonl", _drawn("guard", "guard_roc")),  # of `guard fit` and of `guard eval`
    "update": _UPDATE,
    "demo": (
        _drawn("accuracy_against_eps"),
        *_inside("(?:natural|robust)", (*_COMMON, *_TRAIN)),
        *_inside("attack", (*_COMMON, *_ATTACK)),
        *(r"evidence\.db(?:-wal|-shm)?", r"current", r"images/(?:clean|attack)/\d{4}\.png"),
        *(_drawn("scores", "guard"), *_inside("guard", (*_COMMON, *_GUARD))),
        *_inside("update", (*_COMMON, *_UPDATE)),
    ),
}
VERBS = tuple(_WRITES)
#: Folders that a user may have laid elsewhere by a link.
FOLDERS = ("checkpoints", "images", "shards", "certificates", "plots", "tensorboard", *_PARTS, *_UPDATED)
#: What a failure leaves. Somebody's own file may have such a name, so its beginning is looked at.
_TRACE = re.compile(r"(?:.*/)?(?:crash\.log|nan_batch(?:\.rank\d+)?\.safetensors)")
_START = re.compile(
    "|".join([*_PAPERS, _HEADER, _EVENTS, *_inside(f"(?:{'|'.join((*_PARTS, *_UPDATED))})", _PAPERS)])
)


@cache
def written_by(verb: str) -> re.Pattern[str]:
    """What the runs of a verb write, as one pattern for paths below the run; of all verbs for any other."""
    return re.compile("|".join(_patterns(verb)))


def _patterns(verb: str) -> list[str]:
    kinds = [verb] if verb in _WRITES else VERBS
    return [*_COMMON, *(pattern for kind in kinds for pattern in _WRITES[kind])]


@cache
def _folders_of(verb: str) -> frozenset[str]:
    """The folders into which runs of a verb write."""
    patterns = _patterns(verb)
    inside = {name for name in FOLDERS if any(pattern.startswith(f"{name}/") for pattern in patterns)}
    return frozenset({*inside, *(_PARTS if verb in ("", "demo") else ())})


def files_of(run: Path, verb: str) -> list[str]:
    """Paths below `run` of all files of a run of this verb, in order; of any run for a verb that is unknown.

    A link counts by its own name and is not followed. Raises OSError.
    """
    folders = _folders_of(verb)
    return sorted(
        path
        for path in files_below(run)
        if (path in folders and _is_linked_folder(run / path)) or _is_written(run, path, verb)
    )


def _is_written(run: Path, path: str, verb: str) -> bool:
    """Whether a run of this verb writes such a file."""
    if not written_by(verb).fullmatch(path):
        return False
    return not _TRACE.fullmatch(path) or _is_trace(run / path)


def _is_linked_folder(path: Path) -> bool:
    """Whether this is a link that leads to a folder, or nowhere; a plain file is somebody's own."""
    return path.is_symlink() and not path.is_file()


def _is_trace(path: Path) -> bool:
    """Whether a file has what a run writes under its name: a traceback, or tensors."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if path.suffix == ".log":
        return b"Traceback (most recent call last)" in head
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 27


def files_below(folder: Path) -> Iterator[str]:
    """Paths below a folder of all that is no folder; a link is none. Raises OSError."""
    for place, folders, files in os.walk(folder, onerror=_raise):
        here = Path(place)
        for name in [*files, *(name for name in folders if (here / name).is_symlink())]:
            yield (here / name).relative_to(folder).as_posix()


def is_folder(path: Path) -> bool:
    """Whether this is a folder; a link to one is none."""
    return path.is_dir() and not path.is_symlink()


def is_paper(run: Path, path: str) -> bool:
    """Whether a start writes this file of a run before its first result; a record without a line is none."""
    file = run / path
    if file.is_symlink():
        return False
    return bool(_START.fullmatch(path)) or (path.endswith(".jsonl") and not file.lstat().st_size)


def holds_no_result(run: Path, verb: str) -> bool:
    """Whether the files of a run are only those of a start. Raises OSError."""
    return all(is_paper(run, path) for path in files_of(run, verb))


def came_to_nothing(run: Path, verb: str) -> bool:
    """Whether a run has nothing to show: files of a start, and what a failure leaves. Raises OSError."""
    return all(is_paper(run, path) or _TRACE.fullmatch(path) for path in files_of(run, verb))


def holds_nothing_else(run: Path, verb: str) -> bool:
    """Whether all files in a directory are those of a run. Raises OSError."""
    return all(_is_written(run, path, verb) for path in files_below(run))


def _raise(error: OSError) -> None:
    raise error
