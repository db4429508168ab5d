"""Verdicts on disk: a killed evaluation goes on, machines share one, and nothing is measured twice.

A folder holds header.json (`evaluation.header`) and one NNNN.jsonl per shard of samples (`evaluation.shardfile`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from robustcli.errors import DataError, UsageError
from robustcli.evaluation.header import SHARD, Header, few, ids_digest
from robustcli.evaluation.shardfile import ShardResult, encode, file_name, load, read_sealed, write_sealed
from robustcli.store.atomic import TMP_PREFIX, strict_json, write_atomic
from robustcli.store.disk import explained

AUDIT = "audit.json"
_PART = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


class ShardStore:
    """The shards of one evaluation in one folder, which belongs to one process at a time (the lock of its run).

    Args:
        folder: made when it is missing.
        header: of this evaluation.
        say: one line to the user about a file that does not count.

    Raises UsageError E-RESUME (exit 2) naming what differs, when the folder holds another evaluation; ResourceError.
    """

    def __init__(self, folder: Path, header: Header, say: Callable[[str], None]) -> None:
        self.folder, self.header, self.size, self._say = folder, header, header.size, say
        self._said: set[str] = set()
        with explained(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in folder.glob(f"{TMP_PREFIX}*"):
                left.unlink()  # by a write that was killed
        try:
            found = Header.read(folder)
        except DataError as error:
            self._once(f"{error.what} and written anew: {error.where}")
            found = None
        if found is None:
            header.write(folder)
        elif differing := found.differences(header):
            hint = "the same command goes on; for another evaluation choose another --out, or --overwrite"
            raise UsageError(
                f"cannot resume another evaluation: {few(differing)}",
                where=str(folder),
                hint=hint,
                code="E-RESUME",
            )

    def read(self, number: int, ids: Tensor) -> ShardResult | None:
        """The proven shard of the samples `ids`, int64 [R] sorted. None when it is missing, or does not count, which is said once."""
        found = load(self.folder, self.header, number, self._once)
        if found is not None and not torch.equal(found[1].ids, ids):
            self._once(
                f"shard {number} does not count: it is about other samples: {self.folder / file_name(number)}"
            )
            return None
        return None if found is None else found[1]

    def write(self, number: int, result: ShardResult) -> None:
        """Save one whole shard: all or nothing, whatever kills the process. Raises ResourceError."""
        assert 0 <= number < self.header.shards and len(result.ids) == self.header.rows(number)
        write_atomic(self.folder / file_name(number), encode(result, self.header, number))

    def write_audit(self, looked: Tensor, fallen: Tensor) -> None:
        """Which survivors of this part were audited and which of them fell, ids int64; the whole is put together by `merge`. Raises ResourceError."""
        write_sealed(
            self.folder / AUDIT,
            {"header": self.header.digest, "looked": looked.tolist(), "fallen": fallen.tolist()},
        )

    def missing(self) -> list[int]:
        """Numbers of the shards that are not proven."""
        return [
            number
            for number in range(self.header.shards)
            if load(self.folder, self.header, number, self._once) is None
        ]

    def _once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)


def merge(
    folders: Sequence[Path], say: Callable[[str], None] = lambda text: None
) -> tuple[Header, list[ShardResult]]:
    """All shards that the folders hold together, by number; with fewer than `header.shards` the result is partial.

    The order of the folders changes nothing; where two hold one shard, the costs are those of the file with the smaller bytes.
    Raises UsageError: no folder, one without shards, or parts of different evaluations. DataError: two disagree about a sample.
    """
    headers: list[Header] = []
    for folder in folders:
        header = Header.read(folder)
        if header is None:
            raise UsageError(
                "no shards of an evaluation", where=str(folder), hint="name run directories of robustcli eval"
            )
        headers.append(header)
        if differing := headers[0].differences(header):
            where = f"there: {folders[0]}, here: {folder}"
            raise UsageError(
                f"not parts of one evaluation: {few(differing)}",
                where=where,
                hint="merge runs of one model, data set, code and plan",
            )
    if not headers:
        raise UsageError("no run to merge")
    header, results = _common(headers), []
    for number in range(header.shards):
        found = [(*loaded, folder) for folder in folders if (loaded := load(folder, header, number, say))]
        if found:
            results.append(_agreed(number, found))
    if (
        results
        and len(results) == header.shards
        and ids_digest(torch.cat([result.ids for result in results])) != header.ids
    ):
        raise DataError(
            "the shards are not about the samples that their header names",
            where=str(folders[0]),
            hint="measure again",
        )
    return header, results


def audits(
    folders: Sequence[Path], header: Header, say: Callable[[str], None] = lambda text: None
) -> tuple[Tensor, Tensor]:
    """(ids looked at, ids that fell), int64 without repetition, over the audits of all parts; one that is damaged or of other shards does not count."""
    looked, fallen = set[int](), set[int]()
    for folder in folders:
        found = read_sealed(folder / AUDIT, say)
        if found is not None and found.get("header") == header.digest:
            looked |= set(found["looked"])
            fallen |= set(found["fallen"])
    return torch.tensor(sorted(looked), dtype=torch.int64), torch.tensor(sorted(fallen), dtype=torch.int64)


def shards_of(ids: Tensor, size: int = SHARD) -> list[Tensor]:
    """Places in `ids` (int64 [n], all different), sorted by id and cut into groups of `size`, the last one shorter."""
    order = ids.argsort()
    if bool((ids[order][1:] == ids[order][:-1]).any()):
        raise ValueError("a sample id is repeated")
    return list(order.split(size)) if len(ids) else []


def part(number_of_shards: int, i: int, n: int) -> list[int]:
    """The shards k of machine i of n, 1 <= i <= n: k mod n = i - 1. Raises ValueError."""
    if not 1 <= i <= n:
        raise ValueError(f"part i/n must have 1 <= i <= n, got {i}/{n}")
    return list(range(i - 1, number_of_shards, n))


def parse_part(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4). Raises UsageError."""
    found = _PART.fullmatch(text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {text!r} is not I/N with 1 <= I <= N", hint="for example --shard 2/4")
    return int(found[1]), int(found[2])


def _common(headers: Sequence[Header]) -> Header:
    """One header with the alarms of all, whatever their order: `about` and alarms may differ between machines."""
    alarms = {
        alarm["name"]: alarm
        for alarm in sorted((alarm for header in headers for alarm in header.alarms), key=strict_json)
    }
    about = min((header.about for header in headers), key=strict_json)
    return replace(headers[0], about=about, alarms=list(alarms.values()))


def _agreed(number: int, found: Sequence[tuple[bytes, ShardResult, Path]]) -> ShardResult:
    """The one result of a shard that several folders hold."""
    for _, other, folder in found[1:]:
        if ids := found[0][1].disagreement(other):
            named = ", ".join(str(i) for i in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
            hint = f"delete {file_name(number)} in one of them, and measure it again with --resume if unsure"
            raise DataError(
                f"two runs disagree about shard {number}: sample ids {named}",
                where=f"{found[0][2]} and {folder}",
                hint=hint,
            )
    return min(found, key=lambda entry: entry[0])[1]
