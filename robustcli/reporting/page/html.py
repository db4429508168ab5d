"""A report as one HTML page: no network, no script, all pictures inside."""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from robustcli.reporting.cells import Cell, shown, tall
from robustcli.reporting.page.blocks import Report
from robustcli.reporting.tables import Table

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

#: Columns of a table that fits on a telephone, and of one whose numbers fit on one line on a desk.
_NARROW, _WIDE = 3, 8
_HERE = Path(__file__).parent
#: A shape for each light: colour alone says nothing.
_SIGNS = {"good": "\u25cf", "care": "\u25b2", "bad": "\u25a0", "none": "\u25cb"}
_CODE = re.compile("`([^`]*)`")


def html_of(report: Report) -> str:
    """The page. Names from users are text in it, whatever they hold."""
    style = (_HERE / "report.css").read_text("utf-8")
    return _environment().get_template("report.html.j2").render(report=report, style=style)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        inline=_inline,
        data_uri=_data_uri,
        cell=shown,
        lines=_lines,
        numeric=_numeric,
        shape=_shape,
        sign=_SIGNS.get,
    )
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    return environment


def _inline(text: str) -> Markup:
    """A text with what stands between backticks as code; all of it is escaped."""
    from markupsafe import Markup, escape

    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _lines(cell: Cell) -> Markup:
    """A cell; the interval of a rate stands below it, in small."""
    from markupsafe import Markup

    first, *rest = tall(cell).split("\n")
    small = Markup("<small>{}</small>").format(" ".join(rest)) if rest else ""
    return Markup("<span>{}</span>{}").format(_inline(first), small)


def _shape(table: Table) -> str:
    """How a table folds on a narrow screen: pairs of texts, a card for each row of a wide one, or not."""
    columns = len(table.columns)
    if columns == 2 and not any(_numeric(table, i) for i in range(2)):
        return "pairs"
    if columns <= _NARROW:
        return "narrow"
    return "wide" if columns <= _WIDE else "wide many"


def _numeric(table: Table, i: int) -> bool:
    """Whether a column has numbers and no text."""
    cells = [row[i] for row in table.rows if row[i] is not None]
    return bool(cells) and not any(isinstance(cell, str) for cell in cells)
