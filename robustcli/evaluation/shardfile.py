"""One file per shard: the verdicts on its samples, and the proof that it is whole and of which evaluation.

For R samples a file has R + 2 lines of JSON: a head, one line per sample in the order of ids, and the seal.

{"header": digest, "shard": k, "rows": R, "stages": [label], "seconds": ..., "passes": ..., "tallies": ...}
{"id": i, "y": k, "file": path, "clean": k, "confidence": p, "attacked": k, "correct": bool, "stages": {...}}
{"sha256": over every byte before this line}

clean and attacked are the classes that the model answered, as in `evaluation.answers`; null where there is
none, as for a file. stages maps label -> bool. In the head, seconds and passes map label -> number, and
tallies map name -> count.

A file that is damaged or of another evaluation does not count, and the user is told why. An evaluation
measures its samples again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustcli.errors import CheckpointError
from robustcli.evaluation.answers import NONE, Answers
from robustcli.evaluation.header import Header
from robustcli.regular import read_regular, strict_loads
from robustcli.store.atomic import strict_json, write_atomic

T = TypeVar("T")

_LIMIT = 1 << 28  # bytes
#: What reading a damaged file raises. RuntimeError: a number beyond int64, or JSON nested too deeply.
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError)


@dataclass(frozen=True, eq=False)
class ShardResult:
    """Verdicts on the R samples of one shard, in the order of their ids, as CPU tensors.

    Args:
        ids, y: sample ids and labels, int64 [R].
        correct: bool [R], right on the clean image.
        answers: what the model answered.
        stages: label -> bool [R], right on the clean image and under that attack.
        seconds, passes: label -> time and model passes spent.
        tallies: name -> count; counts of all shards are added up.

    Raises ValueError when lengths differ, a sample is right under an attack and wrong on the clean image, or
    answers contradict verdicts.
    """

    ids: Tensor
    y: Tensor
    correct: Tensor
    answers: Answers
    stages: dict[str, Tensor]
    seconds: dict[str, float]
    passes: dict[str, int]
    tallies: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        answers = self.answers
        columns = {"y": self.y, "correct": self.correct, "clean": answers.clean, "attacked": answers.attacked}
        for name, column in {**columns, "confidence": answers.confidence, **self.stages}.items():
            if column.shape != self.ids.shape:
                raise ValueError(f"{name} has shape {tuple(column.shape)}, ids {tuple(self.ids.shape)}")
        for label, standing in self.stages.items():
            if bool((standing & ~self.correct).any()):
                raise ValueError(f"stage {label!r} is right where the clean image is not")
        if bool((self.correct & (answers.clean != self.y)).any()):
            raise ValueError("an answer to the clean image is not the label where the verdict is right")
        if bool((~self.correct & (answers.attacked != NONE)).any()):
            raise ValueError("an attack broke a sample that is wrong on the clean image")

    def disagreement(self, other: ShardResult) -> list[int]:
        """Ids of the samples with another label or verdict in `other`; all ids when its attacks differ."""
        if self.stages.keys() != other.stages.keys() or self.ids.shape != other.ids.shape:
            return [int(i) for i in self.ids]
        unequal = (self.ids != other.ids) | (self.y != other.y) | (self.correct != other.correct)
        for label, standing in self.stages.items():
            unequal = unequal | (standing != other.stages[label])
        return [int(i) for i in self.ids[unequal]]


def file_name(number: int) -> str:
    """The name of shard `number` in its folder."""
    return f"{number:04d}.jsonl"


def _seal(body: bytes) -> bytes:
    """The line that proves `body`."""
    return strict_json({"sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"


def encode(result: ShardResult, header: Header, number: int) -> bytes:
    """The bytes of shard `number` of an evaluation. Raises NumericsError: seconds are not finite."""
    labels = list(result.stages)
    costs = {"seconds": result.seconds, "passes": result.passes, "tallies": result.tallies}
    rows: list[dict[str, Any]] = [
        {"header": header.digest, "shard": number, "rows": len(result.ids), "stages": labels, **costs}
    ]
    standing = {label: flags.tolist() for label, flags in result.stages.items()}
    verdicts = zip(result.ids.tolist(), result.y.tolist(), result.correct.tolist(), strict=True)
    for k, ((i, y, correct), answer) in enumerate(zip(verdicts, _written(result.answers), strict=True)):
        stages = {label: flags[k] for label, flags in standing.items()}
        rows.append({"id": i, "y": y, **answer, "correct": correct, "stages": stages})
    return sealed_lines(rows)


def _written(answers: Answers) -> Iterator[dict[str, Any]]:
    """The answers on each sample as keys of its line."""
    numbers = (answers.clean.tolist(), answers.confidence.tolist(), answers.attacked.tolist())
    for file, clean, confidence, attacked in zip(answers.files, *numbers, strict=True):
        yield {
            "file": file,
            "clean": _class(clean),
            "confidence": confidence,
            "attacked": _class(attacked),
        }


def _class(answer: int) -> int | None:
    return None if answer == NONE else answer


def _answers(rows: Sequence[Mapping[str, Any]]) -> Answers:
    """The inverse of `_written`. Raises one of `DAMAGED`."""
    clean, attacked = (
        torch.tensor(whole_numbers([NONE if row[name] is None else row[name] for row in rows]))
        for name in ("clean", "attacked")
    )
    confidence = torch.tensor([row["confidence"] for row in rows], dtype=torch.float64)
    files = tuple(row["file"] for row in rows)
    if not all(file is None or isinstance(file, str) for file in files):
        raise TypeError("a file is not a path")
    return Answers(clean, confidence, attacked, files)


def sealed_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One line of JSON for each row, and the line that proves them. Raises NumericsError for NaN or Inf."""
    body = "".join(strict_json(row) + "\n" for row in rows).encode()
    return body + _seal(body)


def lines_of(data: bytes) -> list[dict[str, Any]]:
    """The rows that `sealed_lines` wrote. Raises one of `DAMAGED`."""
    return [_mapping(strict_loads(line)) for line in _unsealed(data).split(b"\n")[:-1]]


def _unsealed(data: bytes) -> bytes:
    """Everything before the seal. Raises ValueError where it is not the seal of these bytes."""
    end = len(data) - len(_seal(b""))
    if end < 0 or data[end:] != _seal(data[:end]):
        raise ValueError("its hash does not match")
    return data[:end]


def _decode(data: bytes, header: Header, number: int) -> ShardResult:
    """The inverse of `encode`. Raises one of `DAMAGED`: damaged, or not this shard of this evaluation."""
    first, *rows = lines_of(data)
    if first["header"] != header.digest:
        raise ValueError("it is of another evaluation")
    if first["shard"] != number or not len(rows) == first["rows"] == header.rows(number):
        raise ValueError(f"it is shard {first['shard']} with {len(rows)} samples")
    flags = {label: _flags([row["stages"][label] for row in rows]) for label in _labels(first)}
    ids, y = (torch.tensor(whole_numbers([row[name] for row in rows])) for name in ("id", "y"))
    correct = _flags([row["correct"] for row in rows])
    costs = (_costs(first, "seconds"), _counts(first, "passes"), _counts(first, "tallies"))
    return ShardResult(ids, y, correct, _answers(rows), flags, *costs)


def _mapping(value: Any) -> dict[str, Any]:
    """`value`, when it is a mapping. Raises TypeError."""
    if not isinstance(value, dict):
        raise TypeError("a line is no mapping")
    return value


def whole_numbers(values: Any) -> list[int]:
    """`values`, when it is a list of whole numbers that int64 holds. Raises TypeError or ValueError."""
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise TypeError("a field is no list of whole numbers")
    if any(not -(2**63) <= value < 2**63 for value in values):
        raise ValueError("a number is beyond int64")
    return values


def _flags(values: list[Any]) -> Tensor:
    """bool [R]. Raises TypeError for anything else than true and false."""
    if any(type(value) is not bool for value in values):
        raise TypeError("a verdict is neither true nor false")
    return torch.tensor(values, dtype=torch.bool)


def _labels(head: Mapping[str, Any]) -> list[str]:
    """The labels of the attacks, each of which has its seconds and passes. Raises TypeError or KeyError."""
    labels = head["stages"]
    if not isinstance(labels, list) or any(type(label) is not str for label in labels):
        raise TypeError("stages is no list of labels")
    for label in labels:
        _ = head["seconds"][label], head["passes"][label]
    return labels


def _costs(head: Mapping[str, Any], name: str) -> dict[str, float]:
    """label -> number >= 0. Raises TypeError or ValueError."""
    costs = _mapping(head[name])
    if any(type(value) not in (int, float) for value in costs.values()):
        raise TypeError(f"{name} are no numbers")
    if any(not 0 <= value < math.inf for value in costs.values()):
        raise ValueError(f"{name} are not in [0, inf)")
    return costs


def _counts(head: Mapping[str, Any], name: str) -> dict[str, int]:
    """label -> whole number >= 0. Raises TypeError or ValueError."""
    counts = _costs(head, name)
    return dict(zip(counts, whole_numbers(list(counts.values())), strict=True))


def load(
    folder: Path, header: Header, number: int, say: Callable[[str], None]
) -> tuple[bytes, ShardResult] | None:
    """(bytes, result) of the file of shard `number`; None when it is missing or does not count."""
    path = folder / file_name(number)
    return read_whole(path, lambda data: (data, _decode(data, header, number)), f"shard {number}", say)


def write_sealed(path: Path, document: dict[str, Any]) -> None:
    """One JSON object and the proof that it is whole. Raises ResourceError."""
    body = strict_json(document).encode() + b"\n"
    write_atomic(path, body + _seal(body))


def read_sealed(path: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The document that `write_sealed` wrote; None when the file is missing or does not count."""
    return read_whole(path, lambda data: strict_loads(_unsealed(data)), "an audit", say)


def read_whole(path: Path, decode: Callable[[bytes], T], title: str, say: Callable[[str], None]) -> T | None:
    """decode(bytes of a file); None when the file is missing or does not count.

    title: what the file is, for the line that says why it does not count.
    """
    try:
        return decode(read_regular(path, _LIMIT))
    except CheckpointError as error:
        if error.code == "E-CKPT-MISSING":
            return None
        why = error.what
    except DAMAGED as error:
        why = str(error)
    say(f"{title} does not count: {why}: {path}")
    return None
