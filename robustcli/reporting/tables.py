"""One table, three forms: Rich for a terminal, markdown for a page, CSV for programs.

An interval in brackets is Wilson's, for eyes; the interval in CSV is Clopper and Pearson's.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell, Eps, raw, shown, tall

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

#: Column names in CSV where they differ from those for people: CSV has the names of the JSON documents.
_KEYS = {"clean accuracy": "clean_acc", "robust accuracy": "robust_acc", "balanced accuracy": "balanced_acc"}
#: What markdown reads as the middle of a link, as emphasis, or as struck out.
_LIVE = re.compile(r"\](?=[(\[:])|\*|(?<![^\W_])_|_(?![^\W_])|~(?=~)")
_LEAST_TEXT = 6  # a column of text is not squeezed below this many characters
_BETWEEN = 2  # characters between two columns on a terminal


@dataclass(frozen=True)
class Table:
    """Columns, and rows of as many cells. `note` is a line below the table; CSV leaves it out.

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

    def rich(self, width: int) -> RichTable:
        """For a terminal of `width` characters: a grid where one fits, else a line for each cell.

        Text may wrap; nothing is cut.
        """
        widths = self._widths(width)
        if widths is None:
            return self._list()
        return self._grid(widths)

    def markdown(self) -> str:
        """A GitHub table with aligned columns, of any width."""
        texts = [[_escaped(shown(cell)) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*texts, strict=True)]
        numeric = self._numeric()
        header, *body = [map(_aligned, row, widths, numeric) for row in texts]
        lines = [header, map(_ruler, widths, numeric), *body]
        paragraphs = ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
        if self.title:
            paragraphs.insert(0, f"**{_escaped(shown(self.title))}**")
        if self.note:
            paragraphs.append(_escaped(shown(self.note)))
        return "\n\n".join(paragraphs) + "\n"

    def csv(self) -> str:
        """Comma-separated with the quoting of RFC 4180; shares are fractions in [0, 1].

        A column of rates becomes NAME, NAME_low, NAME_high and NAME_n.
        A column of radii becomes norm and eps.
        """
        kinds = [_kind(self._column(i)) for i in range(len(self.columns))]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(chain.from_iterable(map(_keys, self.columns, kinds)))
        for row in self.rows:
            writer.writerow(chain.from_iterable(map(_spread, row, kinds)))
        return text.getvalue()

    def _column(self, i: int) -> list[Cell]:
        return [row[i] for row in self.rows]

    def _numeric(self) -> list[bool]:
        """For each column, whether it holds numbers and no text."""
        return [_are_numbers(self._column(i)) for i in range(len(self.columns))]

    def _widths(self, width: int) -> list[int] | None:
        """Characters for each column of a grid; None when no grid fits into `width`.

        Headers stay on one line if they fit, else they wrap between words. Columns of text wrap too when that
        is not enough.
        """
        names = [shown(name) for name in self.columns]
        cells = [_widest(self._column(i)) for i in range(len(names))]
        room = width - _BETWEEN * (len(names) - 1)
        whole = list(map(max, cells, map(len, names)))
        if sum(whole) <= room:
            return whole
        wrapped = list(map(max, cells, map(_longest_word, names)))
        if sum(wrapped) <= room:
            return wrapped
        return self._squeezed(wrapped, room)

    def _squeezed(self, widths: Sequence[int], room: int) -> list[int] | None:
        """Columns of text share what columns of numbers leave of `room`; None when that is too little."""
        squeezed = list(widths)
        texts = [i for i, is_number in enumerate(self._numeric()) if not is_number]
        if not texts:
            return None
        numbers = sum(widths) - sum(widths[i] for i in texts)
        share = (room - numbers) // len(texts)
        if share < _LEAST_TEXT:
            return None
        for i in texts:
            squeezed[i] = min(widths[i], share)
        return squeezed

    def _grid(self, widths: Sequence[int]) -> RichTable:
        """A line of headers, and the rows below it."""
        lines = [[tall(cell) for cell in row] for row in self.rows]
        table = self._frame()
        table.leading = int(any("\n" in text for text in chain.from_iterable(lines)))  # tall rows need air
        for name, size, is_number in zip(self.columns, widths, self._numeric(), strict=True):
            table.add_column(
                _plain(shown(name)),
                justify="right" if is_number else "left",
                overflow="fold",
                width=size,
            )
        for line in lines:
            table.add_row(*map(_plain, line))
        return table

    def _list(self) -> RichTable:
        """A line per cell, its column's name before it; an empty line after each row."""
        table = self._frame()
        table.show_header = False
        table.add_column(overflow="fold", style="bold")
        table.add_column(overflow="fold")
        for row in self.rows:
            for name, cell in zip(self.columns, row, strict=True):
                table.add_row(_plain(shown(name)), _plain(shown(cell)))
            table.add_row()
        return table

    def _frame(self) -> RichTable:
        """Title and note, without columns."""
        from rich import box
        from rich.table import Table as RichTable

        return RichTable(
            title=_plain(shown(self.title)),
            caption=_plain(shown(self.note)) if self.note else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
        )


def _are_numbers(cells: Sequence[Cell]) -> bool:
    """Whether there are numbers among the cells, and no text."""
    filled = [cell for cell in cells if cell is not None]
    return bool(filled) and not any(isinstance(cell, str) for cell in filled)


def _widest(cells: Sequence[Cell]) -> int:
    """Characters of the longest line."""
    lines = chain.from_iterable(tall(cell).split("\n") for cell in cells)
    return max(map(len, lines), default=0)


def _longest_word(name: str) -> int:
    return max(map(len, name.split()), default=1)


def _plain(text: str) -> Text:
    """A text in which Rich reads no markup."""
    from rich.text import Text

    return Text(text)


def _aligned(text: str, width: int, is_number: bool) -> str:
    if is_number:
        return text.rjust(width)
    return text.ljust(width)


def _ruler(width: int, is_number: bool) -> str:
    """The dashes below a markdown header; a colon at their end aligns the column to the right."""
    if is_number:
        return "-" * (width - 1) + ":"
    return "-" * width


def _escaped(text: str) -> str:
    """A text that shows as it is; words between single backticks are code. Pipes would end the cell."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0 or "``" in text:
        return _inert(text).replace("`", "\\`")
    return "`".join(_inert(piece) if i % 2 == 0 else _piped(piece) for i, piece in enumerate(pieces))


def _inert(text: str) -> str:
    """Without tags, links, images and emphasis; `<0.1` and `a_b` stay as they are."""
    plain = _piped(text.replace("\\", "\\\\"))
    return _LIVE.sub(r"\\\g<0>", re.sub(r"<(?=[A-Za-z/!?])", "&lt;", plain))


def _piped(text: str) -> str:
    return text.replace("|", "\\|")


def _kind(cells: Sequence[Cell]) -> type | None:
    """Rate for a column of rates, Eps for one of radii, else None."""
    for cell in cells:
        if isinstance(cell, (Rate, Eps)):
            return type(cell)
    return None


def _keys(name: str, kind: type | None) -> list[str]:
    """The CSV columns that a column becomes."""
    key = _KEYS.get(name, name.replace(" ", "_"))
    if kind is Rate:
        return [key, f"{key}_low", f"{key}_high", f"{key}_n"]
    if kind is Eps:
        return ["norm", "eps"]
    return [key]


def _spread(cell: Cell, kind: type | None) -> list[str]:
    """The CSV cells that a cell becomes in a column of this kind."""
    if isinstance(cell, Rate):
        low, high = cell.exact
        return [repr(cell.value), repr(low), repr(high), repr(cell.n)]
    if isinstance(cell, Eps):
        return [cell.norm, raw(cell)]
    blanks = len(_keys("", kind)) - 1
    return [raw(cell), *[""] * blanks]
