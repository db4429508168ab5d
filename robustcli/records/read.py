"""Reading records back: the rows of a JSON-lines file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robustcli.errors import DataError
from robustcli.records.certify import CertificateRow, CertifyRow
from robustcli.records.distance import DistanceRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardCurveRow, GuardRow, GuardSampleRow
from robustcli.records.sample import SampleRow
from robustcli.records.sweep import SweepRow
from robustcli.records.train import TrainRow
from robustcli.records.transfer import TransferRow
from robustcli.regular import read_bytes

AnyRow = (
    EvalRow
    | SampleRow
    | TrainRow
    | SweepRow
    | DistanceRow
    | TransferRow
    | GuardRow
    | GuardCurveRow
    | GuardSampleRow
    | CertifyRow
    | CertificateRow
)
_LIMIT = 1 << 32  # bytes
#: kind -> how a row of it is read; a kind that is not here is read, and refused, as one of an evaluation.
_READERS: Mapping[str, Callable[[Any], AnyRow]] = {
    "sample": SampleRow.from_json,
    "train": TrainRow.from_json,
    "sweep": SweepRow.from_json,
    "distance": DistanceRow.from_json,
    "transfer": TransferRow.from_json,
    "guard": GuardRow.from_json,
    "guard-curve": GuardCurveRow.from_json,
    "guard-sample": GuardSampleRow.from_json,
    "certify": CertifyRow.from_json,
    "certificate": CertificateRow.from_json,
}


def read_rows(path: Path) -> list[AnyRow]:
    """The rows of a JSON-lines file, in its order.

    A last line without a line break is left out: its writer was killed.

    Raises DataError E-RECORD with file:line for anything that is not a row, or when the file cannot be read.
    """
    try:
        text = read_bytes(path, _LIMIT).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the records: {error}", where=str(path), code="E-RECORD") from error
    lines = text.split("\n")[:-1]
    return [_row_of(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def train_rows(path: Path) -> list[TrainRow]:
    """The training rows of a file; errors as `read_rows`."""
    return [row for row in read_rows(path) if isinstance(row, TrainRow)]


def _row_of(line: str, where: str) -> AnyRow:
    try:
        row = json.loads(line)
        kind = row.get("kind") if isinstance(row, dict) else None
        return _READERS.get(str(kind), EvalRow.from_json)(row)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a JSON object: {error}", where=where, code="E-RECORD") from error
    except DataError as error:
        raise DataError(error.what, where=where, hint=error.hint, code=error.code) from error
