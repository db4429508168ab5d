"""What each model's points do to all models, shard by shard: how processes tell each other.

For R samples a file has R + 2 lines of JSON: a head, one line per sample in the order of ids, and the seal of
`evaluation.shardfile`. {"id": i, "right": [bool of each model], "broken": [[[bool of each target] of each
source] of each attack]}, where broken is null for a sample that some model gets wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustcli.evaluation.header import Header
from robustcli.evaluation.shardfile import file_name, lines_of, read_whole, sealed_lines, whole_numbers
from robustcli.evaluation.shards import ShardFolder


@dataclass(frozen=True)
class Shown:
    """What R samples gave with M models, on the CPU.

    Args:
        ids: int64 [R].
        right: bool [M, R], right on the clean image.
        broken: bool [A, S, M, J] over the J samples that all models get right; broken[a, s, t, j]: the point
            of sample j that attack a made on s breaks t. The first M of the S sources are the models.
    """

    ids: Tensor
    right: Tensor
    broken: Tensor

    @property
    def joint(self) -> Tensor:
        """int64 [J]: ids of the samples that all models get right."""
        return self.ids[self.right.all(0)]

    def rows(self, places: Tensor) -> Shown:
        """Those of the samples at these places, int64 [m] ascending."""
        joint = self.right.all(0)
        kept = torch.zeros_like(joint)
        kept[places] = True
        return Shown(self.ids[places], self.right[:, places], self.broken[..., kept[joint]])

    @classmethod
    def joined(cls, parts: list[Shown]) -> Shown:
        """All parts, one after the other."""
        columns = [(part.ids, part.right, part.broken) for part in parts]
        ids, right, broken = zip(*columns, strict=True)
        return cls(torch.cat(ids), torch.cat(right, 1), torch.cat(broken, 3))

    def disagreement(self, other: Shown) -> list[int]:
        """Ids of the samples that `other` says something else of."""
        pairs = zip(_lines(self), _lines(other), strict=True)
        return [mine["id"] for mine, theirs in pairs if mine != theirs]


class TransferStore(ShardFolder[Shown]):
    """The shards of one matrix in one folder. Arguments and errors as of `ShardFolder`."""

    def __init__(self, folder: Path, header: Header, say: Callable[[str], None]) -> None:
        super().__init__(folder, header, say, _load, shared=True)

    def write(self, number: int, shown: Shown) -> None:
        """Save one whole shard: a kill leaves the whole file or none. Raises ResourceError."""
        head = {"header": self.header.digest, "shard": number, "shape": list(shown.broken.shape[:2])}
        self.save(number, sealed_lines([head, *_lines(shown)]))


def _lines(shown: Shown) -> list[dict[str, Any]]:
    broken = iter(shown.broken.permute(3, 0, 1, 2).tolist())
    joint = shown.right.all(0).tolist()
    columns = zip(shown.ids.tolist(), shown.right.T.tolist(), joint, strict=True)
    return [
        {"id": sample, "right": right, "broken": next(broken) if all_right else None}
        for sample, right, all_right in columns
    ]


def _load(
    folder: Path, header: Header, number: int, say: Callable[[str], None]
) -> tuple[bytes, Shown] | None:
    """(bytes, shard) of the file of shard `number`; None when it is missing or does not count."""

    def decode(data: bytes) -> tuple[bytes, Shown]:
        head, *lines = lines_of(data)
        if (head["header"], head["shard"], len(lines)) != (header.digest, number, header.rows(number)):
            raise ValueError("it is of another matrix")
        ids = torch.tensor(whole_numbers([line["id"] for line in lines]))
        right = torch.tensor([line["right"] for line in lines], dtype=torch.bool).T
        broken = [line["broken"] for line in lines if line["broken"] is not None]
        table = torch.tensor(broken, dtype=torch.bool).reshape(len(broken), *head["shape"], len(right))
        return data, Shown(ids, right, table.permute(1, 2, 3, 0))

    return read_whole(folder / file_name(number), decode, f"shard {number}", say)
