"""Verdicts on disk: a killed evaluation goes on, and several machines share one. Nothing is measured twice.

A folder holds header.json (`evaluation.header`) and one NNNN.jsonl per shard of samples
(`evaluation.shardfile`, `evaluation.certificates.shards`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from robustcli.errors import DataError, UsageError
from robustcli.evaluation.header import Header, few, ids_digest
from robustcli.evaluation.shardfile import (
    DAMAGED,
    ShardResult,
    encode,
    file_name,
    load,
    read_sealed,
    whole_numbers,
    write_sealed,
)
from robustcli.store.atomic import TMP_NAME, strict_json, write_atomic
from robustcli.store.disk import explained
from robustcli.terminal.once import each_once

AUDIT = "audit.json"
_SHARD = re.compile(r"(\d{4,18})\.jsonl", re.ASCII)
_PART = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


class Proven(Protocol):
    """What a shard holds: verdicts on some samples."""

    @property
    def ids(self) -> Tensor:
        """int64 [R], the sample ids in order."""

    def disagreement(self, other: Any) -> list[int]:
        """Ids of the samples with another label or verdict in `other`."""


#: Any kind of shard, and how one is read: (folder, header, number, say) -> (bytes, verdicts), or None.
S = TypeVar("S", bound=Proven)
Load = Callable[[Path, Header, int, Callable[[str], None]], "tuple[bytes, S] | None"]


class ShardFolder(Generic[S]):
    """The shards of one evaluation in one folder. The lock of its run keeps other runs out.

    Args:
        folder: made when it is missing.
        header: of this evaluation.
        say: shows the user one line about a file that does not count.
        load: how a shard of this kind is read.
        shared: others may be writing there: what looks half written stays.

    Raises:
        UsageError E-RESUME: the folder holds another evaluation; what differs is named.
        ResourceError: the folder cannot be made or read.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        say: Callable[[str], None],
        load: Load[S],
        *,
        shared: bool = False,
    ) -> None:
        self.folder, self.header, self.size, self._load = folder, header, header.size, load
        self._once = each_once(say)
        with explained(folder):
            folder.mkdir(exist_ok=True)  # without its parents: a run that was removed is not made again
            half = [] if shared else [path for path in folder.iterdir() if TMP_NAME.fullmatch(path.name)]
            for half_written in half:
                half_written.unlink()
        stored = self._stored_header()
        if stored is None:
            header.write(folder)
        elif differing := stored.differences(header):
            raise UsageError(
                f"cannot resume another evaluation: {few(differing)}",
                where=str(folder),
                hint="the same command goes on; for another evaluation choose another --out, or --overwrite",
                code="E-RESUME",
            )

    def _stored_header(self) -> Header | None:
        """The header in the folder; None when it is missing or damaged. The user is told of a damaged one."""
        try:
            return Header.read(self.folder)
        except DataError as error:
            self._once(f"{error.what} and written anew: {error.where}")
            return None

    def read(self, number: int, ids: Tensor) -> S | None:
        """The saved shard of the samples `ids`, int64 [R] sorted; None when it is missing or does not count.

        The user is told once why it does not count.
        """
        loaded = self._load(self.folder, self.header, number, self._once)
        if loaded is None:
            return None
        _, result = loaded
        if torch.equal(result.ids, ids):
            return result
        path = self.folder / file_name(number)
        self._once(f"shard {number} does not count: it is about other samples: {path}")
        return None

    def has(self, number: int) -> bool:
        """Whether a shard has a file; `read` says whether it counts."""
        return (self.folder / file_name(number)).is_file()

    def save(self, number: int, data: bytes) -> None:
        """Save the bytes of a shard: a kill leaves the whole file or none. Raises ResourceError."""
        assert 0 <= number < self.header.shards
        write_atomic(self.folder / file_name(number), data)


class ShardStore(ShardFolder[ShardResult]):
    """The shards of attacked accuracy, and their audit. Arguments and errors as of `ShardFolder`."""

    def __init__(
        self, folder: Path, header: Header, say: Callable[[str], None], *, shared: bool = False
    ) -> None:
        super().__init__(folder, header, say, load, shared=shared)

    def write(self, number: int, result: ShardResult) -> None:
        """Save one whole shard: a kill leaves the whole file or none. Raises ResourceError."""
        assert len(result.ids) == self.header.rows(number)
        self.save(number, encode(result, self.header, number))

    def write_audit(self, looked: Tensor, fallen: Tensor, answers: Tensor) -> None:
        """Save the ids of this part that were audited and that fell, int64. Raises ResourceError.

        answers: int64, the classes at the points that broke the fallen samples, in the order of their ids.
        `audits` reads them for all parts together.
        """
        audit = {
            "header": self.header.digest,
            "looked": looked.tolist(),
            "fallen": fallen.sort().values.tolist(),
            "answers": answers.tolist(),
        }
        write_sealed(self.folder / AUDIT, audit)


def merge(
    folders: Sequence[Path], say: Callable[[str], None] = lambda text: None
) -> tuple[Header, list[ShardResult]]:
    """The shards of attacked accuracy in these folders; see `merge_with`."""
    return merge_with(load, folders, say)


def merge_with(
    load: Load[S], folders: Sequence[Path], say: Callable[[str], None] = lambda text: None
) -> tuple[Header, list[S]]:
    """(header, the shards that the folders hold together, by number); some shards may be missing.

    The order of the folders does not matter. Where two hold the same shard, the costs are those of the file
    whose bytes sort first.

    Raises:
        UsageError: no folder, one without shards, or parts of different evaluations.
        DataError: two folders disagree about a sample, or the shards are not about the samples that the
            header names.
    """
    header = _common(_headers(folders))
    results: list[S] = []
    for number in _numbers(folders, header.shards):
        loaded = [(folder, load(folder, header, number, say)) for folder in folders]
        copies = [(*proven, folder) for folder, proven in loaded if proven is not None]
        if copies:
            results.append(_agreed(number, copies))
    if results and len(results) == header.shards:
        _check_ids(header, results, folders[0])
    return header, results


def _numbers(folders: Sequence[Path], count: int) -> list[int]:
    """Numbers below `count` of the shards for which a folder has a file: a forged count may be immense."""
    named = (_SHARD.fullmatch(path.name) for folder in folders for path in folder.iterdir())
    return sorted({number for match in named if match and (number := int(match[1])) < count})


def _headers(folders: Sequence[Path]) -> list[Header]:
    """The headers of the folders. Raises UsageError as `merge` does."""
    headers: list[Header] = []
    for folder in folders:
        header = Header.read(folder)
        if header is None:
            hint = "name the run directories of its parts"
            raise UsageError("no shards of an evaluation", where=str(folder), hint=hint)
        headers.append(header)
        if differing := headers[0].differences(header):
            raise UsageError(
                f"not parts of one evaluation: {few(differing)}",
                where=f"there: {folders[0]}, here: {folder}",
                hint="merge runs of one model, data set, code and plan",
            )
    if not headers:
        raise UsageError("no run to merge")
    return headers


def _common(headers: Sequence[Header]) -> Header:
    """One header with the alarms of all headers.

    `about` and alarms may differ between machines. The result does not depend on the order of the headers.
    """
    all_alarms = chain.from_iterable(header.alarms for header in headers)
    alarms = {alarm["name"]: alarm for alarm in sorted(all_alarms, key=strict_json)}
    about = min((header.about for header in headers), key=strict_json)
    return replace(headers[0], about=about, alarms=list(alarms.values()))


def _agreed(number: int, copies: Sequence[tuple[bytes, S, Path]]) -> S:
    """The one result of a shard that several folders hold.

    copies: (bytes, result, folder) of each. Raises DataError when verdicts differ.
    """
    _, first, first_folder = copies[0]
    for _, other, folder in copies[1:]:
        if ids := first.disagreement(other):
            named = ", ".join(str(i) for i in ids[:5])
            if len(ids) > 5:
                named += f" and {len(ids) - 5} more"
            what = f"two runs disagree about shard {number}: sample ids {named}"
            hint = f"delete {file_name(number)} in one of them, and measure it again with --resume if unsure"
            raise DataError(what, where=f"{first_folder} and {folder}", hint=hint)
    return min(copies, key=lambda copy: copy[0])[1]


def _check_ids(header: Header, results: Sequence[Proven], folder: Path) -> None:
    """Raises DataError where all shards together are not about the samples of the header."""
    if ids_digest(torch.cat([result.ids for result in results])) != header.ids:
        what = "the shards are not about the samples that their header names"
        raise DataError(what, where=str(folder), hint="measure again")


def audits(
    folders: Sequence[Path], header: Header, say: Callable[[str], None] = lambda text: None
) -> tuple[Tensor, Tensor, Tensor]:
    """(ids that were audited, ids that fell, answers there), int64, over the audits of all parts.

    Ids are sorted and distinct. The answers are the classes at the points that broke the fallen samples.

    An audit that is damaged or of another evaluation does not count.
    """
    looked, fallen = set[int](), dict[int, int]()
    for folder in folders:
        audit = read_sealed(folder / AUDIT, say)
        if audit is None or audit.get("header") != header.digest:
            continue
        try:
            ids, broken, there = (whole_numbers(audit[name]) for name in ("looked", "fallen", "answers"))
            fallen |= dict(zip(broken, there, strict=True))
            looked |= set(ids)
        except DAMAGED as error:
            say(f"an audit does not count: {error}: {folder / AUDIT}")
    lists = (sorted(looked), sorted(fallen), [fallen[i] for i in sorted(fallen)])
    seen, fell, answers = (torch.tensor(numbers, dtype=torch.int64) for numbers in lists)
    return seen, fell, answers


def shards_of(ids: Tensor, size: int) -> list[Tensor]:
    """Places in `ids`, int64 [n], sorted by id and cut into groups of `size`; the last group may be shorter.

    Raises ValueError where an id is repeated.
    """
    if not len(ids):
        return []
    order = ids.argsort()
    if bool((ids[order][1:] == ids[order][:-1]).any()):
        raise ValueError("a sample id is repeated")
    return list(order.split(size))


def part(number_of_shards: int, i: int, n: int) -> list[int]:
    """The shards k of machine i of n: k mod n = i - 1. Raises ValueError unless 1 <= i <= n."""
    if not 1 <= i <= n:
        raise ValueError(f"part i/n must have 1 <= i <= n, got {i}/{n}")
    return list(range(i - 1, number_of_shards, n))


def parse_part(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4). Raises UsageError."""
    match = _PART.fullmatch(text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text!r} is not I/N with 1 <= I <= N", hint="for example --shard 2/4")
    return int(match[1]), int(match[2])
