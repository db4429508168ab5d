"""One table, four forms: Rich for a terminal, markdown for people elsewhere, CSV and TSV for programs.

Clean accuracy, robust accuracy over all samples and attack success over the initially correct samples are three columns
everywhere, each with its n and 95 % interval (Wilson for eyes, Clopper-Pearson for programs).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustcli.proportions import Rate
from robustcli.records import EvalRow, TrainRow
from robustcli.reporting.cells import Cell, Eps, raw, shown
from robustcli.runtime.atomic import write_atomic

if TYPE_CHECKING:
    import rich.table


#: Names for programs where they are not the words for people: those of the JSON documents.
_KEYS = {"clean accuracy": "clean_acc", "robust accuracy": "robust_acc", "balanced accuracy": "balanced_acc"}


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

    def rich(self) -> rich.table.Table:
        """For a terminal; long cells wrap, nothing is cut."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=Text(shown(self.title)), caption=Text(shown(self.note)) if self.note else None, box=box.SIMPLE_HEAD, title_justify="left")
        table.caption_justify = "left"
        for i, name in enumerate(self.columns):
            table.add_column(Text(shown(name)), justify="right" if self._is_number(i) else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(shown(cell)) for cell in row))
        return table

    def markdown(self) -> str:
        """A GitHub table with aligned columns, of any width."""
        cells = [[_escaped(shown(cell)) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(self.columns))]
        right = [self._is_number(i) for i in range(len(self.columns))]
        ruler = [("-" * (width - 1) + ":") if number else "-" * width for width, number in zip(widths, right, strict=True)]
        lines = [[cell.rjust(w) if number else cell.ljust(w) for cell, w, number in zip(row, widths, right, strict=True)] for row in cells]
        body = "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ruler, *lines[1:]))
        title = f"**{_escaped(shown(self.title))}**\n\n" if self.title else ""
        return f"{title}{body}\n" + (f"\n{shown(self.note)}\n" if self.note else "")

    def flat(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for programs: a rate becomes four columns, NAME, NAME_low, NAME_high and NAME_n."""
        rates = [any(isinstance(row[i], Rate) for row in self.rows) for i in range(len(self.columns))]
        header: list[str] = []
        for name, rate in zip(self.columns, rates, strict=True):
            key = _KEYS.get(name, name.replace(" ", "_"))
            header += [key, f"{key}_low", f"{key}_high", f"{key}_n"] if rate else [key]
        return header, [[text for cell, rate in zip(row, rates, strict=True) for text in (_spread(cell) if rate else [raw(cell)])] for row in self.rows]

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


def write_csv(path: Path, table: Table) -> None:
    """`table` as CSV, atomically. Raises ResourceError."""
    write_atomic(path, table.csv().encode("utf-8", "backslashreplace"))


def eval_table(rows: Sequence[EvalRow], title: str = "robustness") -> Table:
    """One line per row: clean, each attack, all attacks together."""
    return compare_table({"": rows}, title)


def compare_table(models: Mapping[str, Sequence[EvalRow]], title: str = "robustness") -> Table:
    """The rows of several models below each other; the first column names the model, when there is a name."""
    rows = [(name, row) for name, of_model in models.items() for row in of_model]
    named = any(name for name, _ in rows)
    balanced = any(row.balanced_acc is not None for _, row in rows)
    columns = [*(["model"] if named else []), "attack", "norm", "eps", "clean accuracy", "robust accuracy", "attack success"]
    columns += [*(["balanced accuracy"] if balanced else []), "passes per sample", "seconds"]
    cells: list[list[Cell]] = []
    for name, row in rows:
        radius = None if row.kind == "clean" else Eps(row.eps, row.norm)
        line: list[Cell] = [*([name] if named else []), row.title, row.norm, radius, row.clean, row.robust, row.success]
        cells.append([*line, *([row.balanced_acc] if balanced else []), row.passes_per_sample, round(row.seconds, 3)])
    note = "Clean and robust accuracy: of all samples. Attack success: of the samples that are right without an attack. Brackets: 95 % Wilson interval."
    if any(sum(row.kind == "attack" for row in of_model) > 1 for of_model in models.values()):
        note += " Each attack runs on the samples that the attacks above it left standing."
    return Table(title, columns, cells, note)


def class_table(rows: Sequence[EvalRow], title: str = "accuracy per class") -> Table:
    """One line per class, one column per row that has classes."""
    with_classes = [row for row in rows if row.per_class]
    names = list(dict.fromkeys(name for row in with_classes for name in row.per_class))
    titles = [f"under {row.title}" if row.kind != "clean" else "clean" for row in with_classes]
    cells: list[list[Cell]] = []
    for name in names:
        pairs = [row.per_class.get(name, (0, 0)) for row in with_classes]
        cells.append([name, *(Rate(k, n) if n else None for k, n in pairs)])
    return Table(title, ["class", *titles], cells, "Brackets: 95 % Wilson interval." if cells else "")


def train_table(rows: Sequence[TrainRow], title: str = "training") -> Table:
    """One line per record: where the run was, and how it did on validation."""
    parts = list(dict.fromkeys(name for row in rows for name in row.parts))
    columns = ["step", "epoch", "lr", "loss", *parts, "clean accuracy", "robust accuracy", "images per second", "waiting share", "seconds"]
    cells: list[list[Cell]] = []
    for row in rows:
        line: list[Cell] = [row.step, row.epoch, row.lr, row.loss, *(row.parts.get(name) for name in parts), row.clean, row.robust]
        cells.append([*line, row.images_per_second, row.waiting_share, round(row.seconds, 3)])
    return Table(title, columns, cells, "Accuracies: on validation samples, all of them in the denominator. Brackets: 95 % Wilson interval.")


def _spread(cell: Cell) -> list[str]:
    """A rate as value, low, high, n."""
    if not isinstance(cell, Rate):
        return [raw(cell), "", "", ""]
    low, high = cell.exact
    return [repr(cell.value), repr(low), repr(high), repr(cell.n)]


def _escaped(text: str) -> str:
    """Pipes would end the cell and tags would be HTML; `<0.1` stays as it is."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text.replace("\\", "\\\\").replace("|", "\\|"))
