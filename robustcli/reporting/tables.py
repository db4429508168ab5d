"""One table, four forms: Rich for a terminal, markdown for people elsewhere, CSV and TSV for programs.

Clean accuracy, robust accuracy over all samples and attack success over the initially correct samples are three columns
everywhere, each with its n and 95 % interval (Wilson for eyes, Clopper-Pearson for programs).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.proportions import Rate
from robustcli.records.eval import EvalRow
from robustcli.records.train import TrainRow
from robustcli.reporting.cells import Cell, Eps, raw, shown, tall
from robustcli.store.atomic import write_atomic

if TYPE_CHECKING:
    import rich.table


#: Names for programs where they are not the words for people: those of the JSON documents.
_KEYS = {"clean accuracy": "clean_acc", "robust accuracy": "robust_acc", "balanced accuracy": "balanced_acc"}


_LEAST_TEXT = 6


@dataclass(frozen=True)
class Table:
    """Columns, and rows of as many cells. `note` is a line below the table, for eyes only.

    Raises ValueError for a row of another length.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells for {len(self.columns)} columns: {row}")

    def _is_number(self, column: int) -> bool:
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)

    def rich(self, width: int = 80) -> rich.table.Table:
        """For a terminal of `width` columns; too wide a table becomes one line per cell. Text may wrap, nothing is cut."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        widths = self._widths(width)
        caption = Text(shown(self.note)) if self.note else None
        table = RichTable(
            title=Text(shown(self.title)), caption=caption, title_justify="left", caption_justify="left"
        )
        table.box, table.padding, table.pad_edge, table.show_edge = (
            box.SIMPLE_HEAD,
            (0, 1, 0, 0),
            False,
            False,
        )
        if widths is None:
            table.show_header = False
            table.add_column(overflow="fold", style="bold")
            table.add_column(overflow="fold")
            for k, row in enumerate(self.rows):
                for name, cell in zip(self.columns, row, strict=True):
                    table.add_row(Text(shown(name)), Text(shown(cell)))
                table.add_row(*([] if k + 1 == len(self.rows) else ["", ""]))
            return table
        table.leading = int(
            any("\n" in tall(cell) for row in self.rows for cell in row)
        )  # cells of several lines need air
        for i, (name, size) in enumerate(zip(self.columns, widths, strict=True)):
            table.add_column(
                Text(shown(name)),
                justify="right" if self._is_number(i) else "left",
                overflow="fold",
                width=size,
            )
        for row in self.rows:
            table.add_row(*(Text(tall(cell)) for cell in row))
        return table

    def _widths(self, width: int) -> list[int] | None:
        """Width of each column: whole headers if they fit, else wrapped ones, else shared room for text; None: does not fit."""
        cells = [
            max((len(line) for row in self.rows for line in tall(row[i]).split("\n")), default=0)
            for i in range(len(self.columns))
        ]
        names = [shown(name) for name in self.columns]
        room = width - 2 * (len(names) - 1)
        for header in (len, lambda name: max(map(len, name.split()), default=1)):
            widths = [max(cell, header(name)) for cell, name in zip(cells, names, strict=True)]
            if sum(widths) <= room:
                return widths
        texts = [i for i in range(len(names)) if not self._is_number(i)]
        share = (room - sum(size for i, size in enumerate(widths) if i not in texts)) // max(1, len(texts))
        return (
            [min(size, share) if i in texts else size for i, size in enumerate(widths)]
            if texts and share >= _LEAST_TEXT
            else None
        )

    def markdown(self) -> str:
        """A GitHub table with aligned columns, of any width."""
        cells = [[_escaped(shown(cell)) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(self.columns))]
        right = [self._is_number(i) for i in range(len(self.columns))]
        ruler = [
            ("-" * (width - 1) + ":") if number else "-" * width
            for width, number in zip(widths, right, strict=True)
        ]
        lines = [
            [
                cell.rjust(w) if number else cell.ljust(w)
                for cell, w, number in zip(row, widths, right, strict=True)
            ]
            for row in cells
        ]
        body = "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ruler, *lines[1:]))
        title = f"**{_escaped(shown(self.title))}**\n\n" if self.title else ""
        return f"{title}{body}\n" + (f"\n{shown(self.note)}\n" if self.note else "")

    def flat(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for programs: a rate becomes NAME, NAME_low, NAME_high and NAME_n, a radius norm and eps."""
        kinds = [
            next((type(row[i]) for row in self.rows if isinstance(row[i], (Rate, Eps))), None)
            for i in range(len(self.columns))
        ]
        header: list[str] = []
        for name, kind in zip(self.columns, kinds, strict=True):
            key = _KEYS.get(name, name.replace(" ", "_"))
            header += (
                [key, f"{key}_low", f"{key}_high", f"{key}_n"]
                if kind is Rate
                else ["norm", "eps"]
                if kind is Eps
                else [key]
            )
        return header, [
            [text for cell, kind in zip(row, kinds, strict=True) for text in _spread(cell, kind)]
            for row in self.rows
        ]

    def csv(self) -> str:
        """Comma-separated, RFC 4180 quoting, fractions in [0, 1]."""
        return self._separated(",")

    def tsv(self) -> str:
        """Tab-separated, fractions in [0, 1]; no cell holds a tab or a line break."""
        return self._separated("\t")

    def _separated(self, delimiter: str) -> str:
        header, rows = self.flat()
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
        return text.getvalue()


def write_csv(path: Path, rows: Sequence[EvalRow | TrainRow | Mapping[str, Any]]) -> None:
    """Records as CSV, atomically: one line each, every field, fractions in [0, 1]. Raises ResourceError.

    An interval becomes NAME_low and NAME_high, a hash hash_NAME; other maps and lists are JSON in one cell.
    """
    flat = [_flat(row if isinstance(row, Mapping) else row.to_json()) for row in rows]
    columns = list(dict.fromkeys(name for line in flat for name in line))
    write_atomic(
        path,
        Table("", columns, [[line.get(name) for name in columns] for line in flat])
        .csv()
        .encode("utf-8", "backslashreplace"),
    )


def _flat(row: Mapping[str, Any]) -> dict[str, Cell]:
    line: dict[str, Cell] = {}
    for name, value in row.items():
        if name == "intervals":
            line |= {
                f"{rate}_{end}": pair[k]
                for rate, pair in value.items()
                for k, end in enumerate(("low", "high"))
            }
        elif name == "hashes":
            line |= {f"hash_{what}": text for what, text in value.items()}
        else:
            line[name] = json.dumps(value) if isinstance(value, (Mapping, list, tuple)) else value
    return line


def eval_table(rows: Sequence[EvalRow], title: str = "robustness") -> Table:
    """One line per row: clean, each attack, all attacks together."""
    return compare_table({"": rows}, title)


def compare_table(models: Mapping[str, Sequence[EvalRow]], title: str = "robustness") -> Table:
    """The rows of several models below each other; the first column names the model, when there is a name."""
    rows = [(name, row) for name, of_model in models.items() for row in of_model]
    named = any(name for name, _ in rows)
    balanced = any(row.balanced_acc is not None for _, row in rows)
    columns = [
        *(["model"] if named else []),
        "attack",
        "ball",
        "clean accuracy",
        "robust accuracy",
        "attack success",
    ]
    columns += [*(["balanced accuracy"] if balanced else []), "passes per sample", "seconds"]
    cells: list[list[Cell]] = []
    for name, row in rows:
        ball = None if row.kind == "clean" or row.norm == "none" else Eps(row.eps, row.norm)
        line: list[Cell] = [*([name] if named else []), row.title, ball, row.clean, row.robust, row.success]
        cells.append(
            [*line, *([row.balanced_acc] if balanced else []), row.passes_per_sample, round(row.seconds, 3)]
        )
    note = "Clean and robust accuracy: of all samples. Attack success: of the samples that are right without an attack. Brackets: 95 % Wilson interval."
    if any(row.norm == "none" for _, row in rows):
        note += " Transformations without a ball are each measured alone."
    if any(
        sum(row.kind == "attack" and row.norm != "none" for row in of_model) > 1
        for of_model in models.values()
    ):
        note += " Each attack runs on the samples that the attacks above it left standing."
    return Table(title, columns, cells, note)


def class_table(rows: EvalRow | Sequence[EvalRow], title: str = "accuracy per class") -> Table:
    """One line per class, one column per row that has classes."""
    with_classes = [row for row in ([rows] if isinstance(rows, EvalRow) else rows) if row.per_class]
    names = list(dict.fromkeys(name for row in with_classes for name in row.per_class))
    titles = [
        "clean accuracy" if row.kind == "clean" else f"accuracy under {row.title}" for row in with_classes
    ]
    cells: list[list[Cell]] = []
    for name in names:
        pairs = [row.per_class.get(name, (0, 0)) for row in with_classes]
        cells.append([name, *(Rate(k, n) if n else None for k, n in pairs)])
    return Table(title, ["class", *titles], cells, "Brackets: 95 % Wilson interval." if cells else "")


def train_table(rows: Sequence[TrainRow], *, best_step: int | None = None, title: str = "training") -> Table:
    """Where the run stood at its best (the row of `best_step`, when there is one) and at its end."""
    chosen = [("best", row) for row in rows if row.step == best_step][-1:] + [
        ("last", row) for row in rows[-1:]
    ]
    columns = [
        "",
        "step",
        "epoch",
        "loss",
        "clean accuracy",
        "robust accuracy",
        "attack",
        "ball",
        "images per second",
    ]
    cells: list[list[Cell]] = [
        [
            name,
            row.step,
            row.epoch,
            row.loss,
            row.clean,
            row.robust,
            row.attack or None,
            Eps(row.eps, row.norm) if row.attack else None,
            row.images_per_second,
        ]
        for name, row in chosen
    ]
    return Table(
        title,
        columns,
        cells,
        "Accuracies: of all validation samples, which also chose the best. Brackets: 95 % Wilson interval.",
    )


def _spread(cell: Cell, kind: type | None) -> list[str]:
    """The cells that `flat` makes of one cell in a column of rates, of radii or of anything else."""
    if isinstance(cell, Rate):
        low, high = cell.exact
        return [repr(cell.value), repr(low), repr(high), repr(cell.n)]
    if isinstance(cell, Eps):
        return [cell.norm, raw(cell)]
    return [raw(cell)] + [""] * ({Rate: 3, Eps: 1}.get(kind, 0) if kind else 0)


def _escaped(text: str) -> str:
    """Pipes would end the cell and tags would be HTML; `<0.1` stays as it is."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text.replace("\\", "\\\\").replace("|", "\\|"))
