"""`wds:PATH`: images in WebDataset's tar shards, read where they lie.

PATH is a folder of shards, one shard, or shards as braces name them: ``train-{000000..000009}.tar``. A sample
is what has one name up to its first dot: an image, and .cls (a number or a class name) or .json (key label,
cls or class) beside it. A sample that lacks either, a link, a member that is cut off or too large, and the
lost end of a damaged shard count as unreadable images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import source_path
from robustcli.data.files import Listing
from robustcli.data.images import Decoder
from robustcli.data.layout.classes import chosen_order, read_names, stated_classes
from robustcli.data.layout.words import order_note
from robustcli.data.listings import bundle_listings
from robustcli.data.packed.container import bad_image
from robustcli.data.packed.found import PackedFiles, by_split, files_below
from robustcli.data.packed.labels import Labels
from robustcli.data.packed.shards import SUFFIX, Shards, read_label, scan
from robustcli.errors import DataError, printable
from robustcli.registry import datasets

_MOST_SHARDS = 100_000
_NAMES = ("classes.txt", "classnames.txt", "class_names.txt", "classes.json")
_HINT = "wds:PATH names a folder of .tar shards, one shard, or train-{000000..000009}.tar"
_NO_LABEL = "no label beside the image (.cls, or .json with label, cls or class)"
_BRACES = re.compile(r"\{([^{}]*)\}")


@datasets.register("wds", path=True)
def wds(config: DataConfig) -> DataBundle:
    """WebDataset shards: a folder, one .tar, or train-{000000..000009}.tar; .jpg or .png with .cls or .json.

    Splits are read off the names of shards or of their folders (data.splits states others). Labels are names,
    or numbers, which classes.txt or classnames.txt beside the shards or data.classes names. Nothing is
    unpacked.
    """
    root, files, explicit = _located(source_path(config))
    decoder = Decoder.of(config, str(root))
    shards = Shards(str(root), decoder.roots)
    decoder = replace(decoder, container=shards)
    if files is None:
        files = files_below(root, SUFFIX, decoder.roots)
    if not files:
        packed = any(files_below(root, ending, decoder.roots) for ending in (".tar.gz", ".tgz", ".tar.zst"))
        hint = "unpack the shards to plain .tar (gunzip): packed ones have no places to read from"
        raise DataError("no .tar shards", where=str(root), hint=hint if packed else _HINT, code="E-FILE")
    found = by_split(root, files, config, "wds", whole=False)
    reader = _Reader(found, shards)
    own = _names(root) or stated_classes(config)
    asked = list(found.parts)[-1:] if own else list(found.parts)
    labels = Labels.of(own, lambda: reader.labels(asked), str(root))
    classes = chosen_order(stated_classes(config), labels.names, where=str(root))
    listers: dict[str, Callable[[], Listing]] = {
        part: partial(reader.listing, part, labels, classes) for part in found.parts
    }
    name = printable(f"wds:{(explicit or root.resolve().name)}")
    notes = [*found.notes, *order_note(classes)]
    return bundle_listings(config, "wds", decoder, listers, classes, name=name, notes=notes)


def _located(path: Path) -> tuple[Path, list[str] | None, str]:
    """(root, shards below it, how they were named); (root, None, "") for a folder."""
    text = str(path)
    if "{" in text:
        names = expanded(text)
        root = Path(os.path.commonpath([os.path.dirname(name) or "." for name in names]))
        missing = [name for name in names if not os.path.exists(name)]
        if missing:
            what = f"{len(missing)} of {len(names)} shards are missing, the first is {missing[0]}"
            raise DataError(what, where=text, hint="mend the numbers in the braces", code="E-FILE")
        return root, [os.path.relpath(name, root) for name in names], path.name
    if path.is_dir():
        return path, None, ""
    if not path.exists():
        raise DataError("no such file or folder", where=text, hint=_HINT, code="E-FILE")
    return path.parent, [path.name], path.name


def expanded(text: str) -> list[str]:
    """All names that a pattern with {000..009} or {a,b} stands for.

    Raises:
        DataError: braces without sense, or more than 100,000 names.
    """
    match = _BRACES.search(text)
    if match is None:
        return [text]
    inside, before, after = match[1], text[: match.start()], text[match.end() :]
    names: list[str] = []
    for piece in _pieces(inside, text):
        names += expanded(before + piece + after)
        if len(names) > _MOST_SHARDS:
            raise DataError(f"more than {_MOST_SHARDS} shards", where=text, hint=_HINT)
    return names


def _pieces(inside: str, text: str) -> Iterator[str]:
    counted = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inside)
    if counted is None:
        if "," not in inside:
            raise DataError(f"no list of shards: {{{inside}}}", where=text, hint=_HINT)
        yield from inside.split(",")
        return
    first, last = int(counted[1]), int(counted[2])
    if not 0 <= last - first < _MOST_SHARDS:
        raise DataError(f"no range of shards: {{{inside}}}", where=text, hint=_HINT)
    for number in range(first, last + 1):
        yield str(number).zfill(len(counted[1]))


def _names(root: Path) -> tuple[str, ...] | None:
    """The class names that a file beside the shards lists, in the order of the labels."""
    file = next((root / name for name in _NAMES if (root / name).is_file()), None)
    return None if file is None else tuple(read_names(file))


@dataclass
class _Reader:
    """Scans each shard once."""

    found: PackedFiles
    shards: Shards
    _parts: dict[str, tuple[list[str], list[str | None], int]] = field(default_factory=dict)

    def labels(self, parts: Sequence[str]) -> list[str]:
        """The labels of some splits, as text. Raises DataError where no image has one, and all are faulty."""
        texts = [text for part in parts for text in self._scanned(part)[1]]
        found = [text for text in texts if text is not None]
        if not found:
            for name, fault in self.shards.faults.items():
                raise bad_image(fault, os.path.join(self.found.root, name))
        return found

    def listing(self, part: str, labels: Labels, classes: Sequence[str]) -> Listing:
        """The images of one split. One without a label gets the first class, and a fault: no use sees it."""
        names, texts, ignored = self._scanned(part)
        numbers = labels.numbers(texts, classes)
        for name, text, number in zip(names, texts, numbers, strict=True):
            if number is None:
                fault = labels.fault(text, _NO_LABEL)
                self.shards.faults.setdefault(name, fault)
        return Listing(
            tuple(classes), names, [number or 0 for number in numbers], ignored, labels_in_paths=False
        )

    def _scanned(self, part: str) -> tuple[list[str], list[str | None], int]:
        """(names of the images of a split, their labels as text, how many other files lie beside them)."""
        if part not in self._parts:
            names: list[str] = []
            texts: list[str | None] = []
            ignored = 0
            for shard in self.found.parts[part]:
                ignored += self._add(shard, names, texts)
            self._parts[part] = names, texts, ignored
        return self._parts[part]

    def _add(self, shard: str, names: list[str], texts: list[str | None]) -> int:
        """Append the images of one shard; returns how many other members it has."""
        path = os.path.join(self.found.root, shard)
        scanned = scan(path, self.shards.roots)
        ignored, places, start = scanned.ignored, list[tuple[int, int]](), len(names)
        for key, sample in scanned.samples.items():
            member = sample.image or sample.label
            if member is None:  # JSON alone is no image
                ignored += 1
                continue
            name = f"{shard}/{member[0]}"
            text = None if sample.fault else read_label(path, sample, self.shards.roots)
            fault = sample.fault or ("" if sample.image else f"no image beside the label of {key!r}")
            if fault:
                self.shards.faults[name] = fault
            names.append(name)
            texts.append(text)
            places.append(member[1:])
        if scanned.damage:
            name = f"{shard}/end"
            self.shards.faults[name] = scanned.damage
            names.append(name)
            texts.append(None)
            places.append((0, 0))
        self.shards.add(shard, names[start:], places)
        return ignored
