"""One file per shard: what is proven of its samples and where attacks broke them.

For R samples a file has R + 2 lines of JSON: a head, one `CertificateRow` per sample in the order of ids, and
the seal of `evaluation.shardfile`. A file that does not count is said to, and its samples are measured again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from robustcli.errors import DataError
from robustcli.evaluation.header import Header
from robustcli.evaluation.shardfile import file_name, lines_of, read_whole, sealed_lines, whole_numbers
from robustcli.evaluation.shards import ShardFolder
from robustcli.records.certify import CertificateRow


@dataclass(frozen=True)
class CertifiedShard:
    """The rows of one shard, in the order of their ids.

    tallies: name -> count of what the attacks met, for alarms; see `evaluation.collect.concluded`.
    """

    rows: tuple[CertificateRow, ...]
    tallies: Mapping[str, int] = field(default_factory=dict)

    @property
    def ids(self) -> Tensor:
        """int64 [R]."""
        return torch.tensor([row.id for row in self.rows], dtype=torch.int64)

    def disagreement(self, other: CertifiedShard) -> list[int]:
        """Ids of the samples of which `other` says something else; a clock is free to."""
        pairs = zip(self.rows, other.rows, strict=True)
        return [mine.id for mine, theirs in pairs if replace(mine, seconds=theirs.seconds) != theirs]


class CertificateStore(ShardFolder[CertifiedShard]):
    """The shards of one certification in one folder. Arguments and errors as of `ShardFolder`."""

    def __init__(
        self, folder: Path, header: Header, say: Callable[[str], None], *, shared: bool = False
    ) -> None:
        super().__init__(folder, header, say, load, shared=shared)

    def write(self, number: int, shard: CertifiedShard) -> None:
        """Save one whole shard: a kill leaves the whole file or none. Raises ResourceError."""
        assert len(shard.rows) == self.header.rows(number)
        head = {"header": self.header.digest, "shard": number, "tallies": dict(shard.tallies)}
        self.save(number, sealed_lines([head, *(row.to_json() for row in shard.rows)]))


def load(
    folder: Path, header: Header, number: int, say: Callable[[str], None]
) -> tuple[bytes, CertifiedShard] | None:
    """(bytes, shard) of the file of shard `number`; None when it is missing or does not count."""

    def decode(data: bytes) -> tuple[bytes, CertifiedShard]:
        return data, _decoded(data, header, number)

    return read_whole(folder / file_name(number), decode, f"shard {number}", say)


def _decoded(data: bytes, header: Header, number: int) -> CertifiedShard:
    """The shard in these bytes. Raises one of `shardfile.DAMAGED`: damaged, or another one."""
    head, *lines = lines_of(data)
    if head["header"] != header.digest:
        raise ValueError("it is of another evaluation")
    if head["shard"] != number or len(lines) != header.rows(number):
        raise ValueError(f"it is shard {head['shard']} with {len(lines)} samples")
    try:
        rows = tuple(CertificateRow.from_json(line) for line in lines)
    except DataError as error:
        raise ValueError(error.what) from error
    counts = whole_numbers(list(head["tallies"].values()))
    return CertifiedShard(rows, Counter(dict(zip(head["tallies"], counts, strict=True))))
