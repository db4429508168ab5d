"""Records as tables: an evaluation, its classes, a training; and records as CSV.

Clean accuracy, robust accuracy over all samples and attack success over the initially correct samples have a
column each, everywhere. Each number has its n and its 95 % interval.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from robustcli.config.spec import LABELS_ONLY
from robustcli.config.threats import UNION, is_union
from robustcli.records.eval import EvalRow
from robustcli.records.train import TrainRow
from robustcli.reporting.cells import Cell, Eps, format_eps, share_of
from robustcli.reporting.tables import Table
from robustcli.store.atomic import write_atomic

_BALANCED = "balanced accuracy"
_WILSON = "Brackets: 95 % Wilson interval."


def eval_table(rows: Sequence[EvalRow]) -> Table:
    """One line per row: clean, each attack, all attacks together.

    There is a column of balanced accuracies if a row has one.
    """
    lines = [_eval_line(row) for row in rows]
    columns = ["attack", "ball", "clean accuracy", "robust accuracy", "attack success"]
    if any(line[_BALANCED] is not None for line in lines):
        columns.append(_BALANCED)
    columns += ["passes per sample", "seconds"]
    return Table(
        "robustness", columns, [[line[name] for name in columns] for line in lines], _eval_note(rows)
    )


def union_table(rows: Sequence[EvalRow]) -> Table | None:
    """The verdict in each ball of a union and in all of them, a column each; None for one ball."""
    whole = [row for row in rows if row.kind in ("threat", "worst")]
    if len(whole) < 2:
        return None
    columns = ["", *(f"{row.norm} {format_eps(row.eps, row.norm)}" for row in whole[:-1]), "all balls"]
    lines: list[list[Cell]] = [
        ["robust accuracy", *(row.robust for row in whole)],
        ["attack success", *(row.success for row in whole)],
    ]
    note = f"All balls: of the samples that stand in each ball, one by one. {_WILSON}"
    return Table("verdict by ball", columns, lines, note)


def _eval_line(row: EvalRow) -> dict[str, Cell]:
    without_ball = row.kind == "clean" or row.norm == "none"
    return {
        "attack": row.title,
        "ball": None if without_ball else _ball(row),
        "clean accuracy": row.clean,
        "robust accuracy": row.robust,
        "attack success": row.success,
        _BALANCED: row.balanced_acc,
        "passes per sample": row.passes_per_sample,
        "seconds": round(row.seconds, 3),
    }


def _ball(row: EvalRow | TrainRow) -> Cell:
    """The ball of a row; of a union one word: its balls have lines or columns of their own."""
    return UNION if is_union(row.norm) else Eps(row.eps, row.norm)


def _eval_note(rows: Sequence[EvalRow]) -> str:
    """Of which samples each number is a share."""
    sentences = [
        "Clean and robust accuracy: of all samples.",
        "Attack success: of the samples that are right without an attack.",
        _WILSON,
    ]
    if any(row.norm == "none" for row in rows):
        sentences.append("Transformations without a ball are each measured alone.")
    by_ball = Counter(row.norm for row in rows if row.kind == "attack" and row.norm != "none")
    if any(count > 1 for count in by_ball.values()):
        sentences.append("Each attack runs on the samples that the attacks above it left standing.")
    if len(by_ball) > 1:
        sentences.append("Each ball is attacked on its own; a sample stands in all balls or falls.")
    if rows and rows[-1].model.endswith(LABELS_ONLY):
        sentences.append(
            "Labels alone were asked: robust accuracy is an upper bound, and weaker evidence than white-box "
            "attacks give. The number behind an attack is its budget of queries per image."
        )
    if rows and (lost := rows[-1].at_chance):
        sentences.append(_sentence(lost))
    return " ".join(sentences)


def _sentence(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def class_table(rows: Sequence[EvalRow]) -> Table:
    """One line per class, one column for each row that was measured per class."""
    with_classes = [row for row in rows if row.per_class]
    names = dict.fromkeys(chain.from_iterable(row.per_class for row in with_classes))
    cells: list[list[Cell]] = []
    for name in names:
        counts = [row.per_class.get(name, (0, 0)) for row in with_classes]
        cells.append([name, *(share_of(k, n) for k, n in counts)])
    columns = ["class", *map(_class_title, with_classes)]
    return Table("accuracy per class", columns, cells, _WILSON if cells else "")


def _class_title(row: EvalRow) -> str:
    if row.kind == "clean":
        return "clean accuracy"
    return f"accuracy under {row.title}"


def train_table(rows: Sequence[TrainRow], *, best_step: int | None = None) -> Table:
    """Where the run stood at its best and at its end. Without a row of `best_step`, only at its end."""
    best = [row for row in rows if row.step == best_step]
    shown = [("best", row) for row in best[-1:]] + [("last", row) for row in rows[-1:]]
    columns = ["", "step", "epoch", "loss", "clean accuracy", "robust accuracy", "attack", "ball"]
    cells = [_train_line(moment, row) for moment, row in shown]
    if any(row.verified is not None for _, row in shown):
        columns.insert(6, "verified accuracy")
        for line, (_, row) in zip(cells, shown, strict=True):
            line.insert(6, row.verified)
    names = list(shown[0][1].threats) if shown else []
    columns[6:6] = [f"robust in {name}" for name in names]
    for line, (_, row) in zip(cells, shown, strict=True):
        line[6:6] = [share_of(round(row.threats.get(name, 0.0) * row.n), row.n) for name in names]
    note = _train_note(rows)
    if shown and (lost := shown[0][1].at_chance):
        note = f"{note} {_sentence(f'{shown[0][0]}: {lost}')}"
    return Table("training", [*columns, "images per second"], cells, note)


def validated(rows: Sequence[TrainRow]) -> bool:
    """Whether a row has an accuracy. A run without validation images has none, and its best is its last."""
    return any(row.clean is not None or row.robust is not None for row in rows)


def _train_note(rows: Sequence[TrainRow]) -> str:
    """Of which samples the accuracies are shares, and what chose the best."""
    if not validated(rows):
        return "No accuracies: the run had no validation, and the best checkpoint is the last."
    return f"Accuracies: of all validation samples, which also chose the best. {_WILSON}"


def _train_line(moment: str, row: TrainRow) -> list[Cell]:
    threat: list[Cell] = [None, None]
    if row.attack:
        threat = [row.attack, _ball(row)]
    return [moment, row.step, row.epoch, row.loss, row.clean, row.robust, *threat, row.images_per_second]


def write_csv(path: Path, rows: Sequence[EvalRow | TrainRow | Mapping[str, Any]]) -> None:
    """Records as CSV, atomically: one line each, every field, fractions in [0, 1]. Raises ResourceError.

    An interval becomes NAME_low and NAME_high, a hash hash_NAME. Other maps and lists are JSON in one cell.
    """
    lines = [_csv_line(row) for row in rows]
    columns = list(dict.fromkeys(chain.from_iterable(lines)))
    table = Table("", columns, [[line.get(name) for name in columns] for line in lines])
    write_atomic(path, table.csv().encode("utf-8", "backslashreplace"))


def _csv_line(row: EvalRow | TrainRow | Mapping[str, Any]) -> dict[str, Cell]:
    if not isinstance(row, Mapping):
        row = row.to_json()
    line: dict[str, Cell] = {}
    for name, value in row.items():
        line |= _csv_cells(name, value)
    return line


def _csv_cells(name: str, value: Any) -> dict[str, Cell]:
    """The columns that one field of a record becomes."""
    if name == "intervals":
        ends: dict[str, Cell] = {}
        for rate, (low, high) in value.items():
            ends |= {f"{rate}_low": low, f"{rate}_high": high}
        return ends
    if name == "hashes":
        return {f"hash_{what}": text for what, text in value.items()}
    if isinstance(value, (Mapping, list, tuple)):
        return {name: json.dumps(value)}
    return {name: value}
