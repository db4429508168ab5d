"""Median distance against queries: what attackers by labels alone reach with so many answers."""

from __future__ import annotations

import io
from collections.abc import Sequence

from robustcli.records.distance import DistanceRow
from robustcli.reporting.cells import Cell
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import WIDTH, eps_scale, plain, saved_figure
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.lines import colour, marker
from robustcli.reporting.tables import Table


def picture(dossier: Dossier) -> Picture | None:
    """The curves of a run with `--sweep distance` under attacks that have a budget of queries."""
    rows = [row for row in dossier.of(DistanceRow) if row.after]
    return queries_picture(rows) if rows else None


def queries_picture(rows: Sequence[DistanceRow]) -> Picture:
    """One line per attack; numbers of queries where half of the samples still stand have no point.

    rows: with `after`, of one norm. Raises ValueError without any.
    """
    if not rows:
        raise ValueError("no points to draw")
    norm, png, title = rows[0].norm, io.BytesIO(), f"{rows[0].data}: median distance against queries"
    scale = eps_scale(norm)
    with saved_figure(png, WIDTH, 3.7, title) as figure:
        axes = figure.add_subplot()
        for i, row in enumerate(rows):
            reached = [(count, scale * far) for count, far in row.after if count and far is not None]
            axes.plot(
                [count for count, _ in reached],
                [far for _, far in reached],
                label=plain(row.label),
                color=colour(i),
                marker=marker(i),
                markersize=5,
            )
        axes.set_xscale("log")
        counts = sorted({int(count) for row in rows for count, _ in row.after if count})
        decades = [count for count in counts if str(count).strip("0") == "1"] or counts[:1]
        axes.set_xticks(decades, [f"{count:,}" for count in decades])  # not as powers, which need mathtext
        axes.set_ylim(bottom=0)
        axes.set_xlabel("queries per image")
        axes.set_ylabel(f"median distance ({norm}{' x 255' if scale > 1 else ''})")
        axes.legend(loc="best")
    caption = (
        f"Median distance of {rows[0].n:,} samples to the nearest error that each attack has found with so"
        " many queries per image. Only labels were asked."
    )
    lines: list[list[Cell]] = [[row.label, count, far] for row in rows for count, far in row.after]
    table = Table(title, ["series", "queries", "median distance"], lines)
    return Picture("distance_queries", "strength", "Distance against queries", caption, png.getvalue(), table)
