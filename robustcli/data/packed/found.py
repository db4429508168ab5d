"""Which packed files of a folder are which split. What the names leave open is an error, not a guess."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustcli.config.sections import DataConfig
from robustcli.data.files import check_link, entries, is_folder
from robustcli.data.layout.words import part_inside, part_named, shortened
from robustcli.data.split import PARTS
from robustcli.errors import DataError, printable

_DEEPEST = 3  # folders below the folder that was named
_COUNTED = re.compile(r"-(\d{1,9})-of-(\d{1,9})$")


@dataclass(frozen=True)
class PackedFiles:
    """parts: stored split -> its files, relative to `root`, in their order. notes: what was left aside."""

    root: str
    parts: dict[str, list[str]]
    notes: list[str]


def files_below(root: Path, suffix: str, roots: Sequence[str], depth: int = 0) -> list[str]:
    """Files that end with `suffix`, relative to `root`, sorted; links must stay inside `roots`."""
    found: list[str] = []
    for entry in entries(root):
        if entry.is_symlink() and (is_folder(entry) or entry.name.endswith(suffix)):
            check_link(entry.path, roots)
        if is_folder(entry):
            if depth < _DEEPEST:
                below = files_below(Path(entry.path), suffix, roots, depth + 1)
                found += [os.path.join(entry.name, name) for name in below]
        elif entry.name.endswith(suffix):
            found.append(entry.name)
    return found


def by_split(root: Path, files: Sequence[str], config: DataConfig, kind: str, *, whole: bool) -> PackedFiles:
    """The files of each split, by the word in their name or in that of their folder.

    ``train-00000-of-00002.parquet``, ``train/0000.parquet`` and ``imagenet-train-0001.tar`` are of the word
    train. `data.splits` gives other words a meaning. Where no word says a split, all files are one.

    Args:
        root: the folder. files: relative to it.
        kind: name of the data set, for hints.
        whole: whether a file that its name counts and that is missing is an error.

    Raises:
        DataError: E-SPLIT, the names leave open what is what; E-FILE, files of a split are missing.
    """
    stated = {getattr(config.splits, part): part for part in PARTS if getattr(config.splits, part)}
    groups: dict[tuple[str, str], list[str]] = {}
    for name in files:
        home, word = _word(name, {*stated, *config.splits.ignore})
        if word not in config.splits.ignore:
            groups.setdefault((home, word), []).append(name)
    _refuse_homes(root, sorted({home for home, _ in groups}), kind)
    words = {word: names for (_, word), names in groups.items()}
    absent = sorted(set(stated) - set(words))
    if absent:
        what = f"data.splits: no files of {absent[0]!r}"
        raise DataError(what, where=str(root), hint=f"there are {shortened(sorted(words))}", code="E-SPLIT")
    parts, others = _parts(root, words, stated)
    if whole:
        for word in parts.values():
            _check_count(root, word, words[word])
    aside = [*others, *(word for word in config.splits.ignore)]
    notes = [printable(f"left aside: {', '.join(aside)}")] * bool(aside)
    ordered = {part: sorted(words[parts[part]], key=_in_order) for part in PARTS if part in parts}
    return PackedFiles(str(root), ordered, notes)


def _in_order(name: str) -> list[tuple[int, str]]:
    """2.tar comes before 10.tar."""
    pieces = re.split(r"([0-9]{1,18})", name)  # text, number, text, …
    numbers = [0, *map(int, pieces[1::2])]
    return list(zip(numbers, pieces[::2], strict=True))


def _word(name: str, known: set[str]) -> tuple[str, str]:
    """(the folder of the data set that the file is of, the word that says its split)."""
    folder, file = os.path.split(name)
    home, parent = os.path.split(folder)
    stem = re.sub(r"[-_.]?[0-9]+$", "", _COUNTED.sub("", os.path.splitext(file)[0]))
    if stem in known or part_inside(stem):
        return folder, stem
    if parent in known or part_named(parent) or not stem:
        return home, parent
    return folder, stem


def _refuse_homes(root: Path, homes: Sequence[str], kind: str) -> None:
    if len(homes) < 2:
        return
    raise DataError(
        f"several data sets: {shortened([home or '.' for home in homes])}",
        where=str(root),
        hint=f"name one of them: {kind}:{root / homes[-1]}",
        code="E-SPLIT",
    )


def _parts(
    root: Path, words: dict[str, list[str]], stated: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Split -> its word, and the words that say none."""
    parts = {part: word for word, part in stated.items()}
    others = []
    for word in words:
        part = part_inside(word)
        if word in stated:
            continue
        if part is None or part in stated.values():
            others.append(word)
        elif part in parts:
            what = f"two words for one split, {part}: {parts[part]}, {word}"
            hint = f"say which one: data.splits.{part}={parts[part]} or data.splits.{part}={word}"
            raise DataError(what, where=str(root), hint=hint, code="E-SPLIT")
        else:
            parts[part] = word
    if not parts and len(others) == 1:
        return {"train": others[0]}, []
    if not parts and others:
        what = f"no file name says a split: {shortened(others)}"
        hint = f"say what they are: data.splits.train={others[0]} data.splits.test={others[1]}"
        raise DataError(what, where=str(root), hint=hint, code="E-SPLIT")
    return parts, others


def _check_count(root: Path, word: str, names: Sequence[str]) -> None:
    """Raises DataError where the names count more files than there are."""
    counted = [match for name in names if (match := _COUNTED.search(os.path.splitext(name)[0]))]
    if counted and len(counted) != int(counted[0][2]):
        what = f"{len(counted)} of {int(counted[0][2])} files of {word} are there"
        raise DataError(what, where=str(root), hint="download the others too", code="E-FILE")
