"""Whether more attack still helps: accuracy after each attack of the list, against the passes spent."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import accumulate

from robustcli.proportions import Rate
from robustcli.records.eval import EvalRow
from robustcli.reporting.cells import Cell, percent
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import COLOURS, WIDTH, accuracy_axis, saved_figure
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import SPREAD, shortened, spread
from robustcli.reporting.tables import Table

_NAMED = 12  # attacks at most that the legend names
_ONE = "Plateau: one attack alone shows none; `eval --sweep steps=...` draws accuracy against its steps."


def picture(dossier: Dossier) -> Picture | str | None:
    """The stages of an evaluation; a list of one attack has no plateau to show."""
    clean, worst = dossier.eval_row("clean"), dossier.eval_row("worst")
    if clean is None or worst is None:
        return None
    stages = [row for row in dossier.of(EvalRow) if row.kind == "attack" and row.norm == worst.norm != "none"]
    if len(stages) < 2:
        return _ONE
    rates = [clean.clean, *(Rate(row.correct, row.n) for row in stages)]
    passes = list(accumulate([0.0, *(row.passes_per_sample for row in stages)]))
    names = ["clean", *(row.title for row in stages)]
    title = f"{worst.data}: accuracy as the attacks go on"
    lines: list[list[Cell]] = [
        [name, spent, *spread(rate)] for name, spent, rate in zip(names, passes, rates, strict=True)
    ]
    return Picture(
        "plateau",
        "strength",
        "Accuracy against the passes of the attacks",
        _caption(rates, passes, names),
        _png(passes, rates, names, title),
        Table(title, ["attack", "passes per sample", *SPREAD], lines),
    )


def _caption(rates: Sequence[Rate], passes: Sequence[float], names: Sequence[str]) -> str:
    lost = rates[-2].k - rates[-1].k
    return (
        f"Accuracy over {rates[0].n:,} samples after each attack and all before it, with its 95 % interval,"
        f" against the forward and backward passes spent per sample. It goes from {percent(rates[0].value)} %"
        f" to {percent(rates[-1].value)} % in {passes[-1]:,.0f} passes; the last attack, {names[-1]}, broke"
        f" {lost:,} of them."
    )


def _png(passes: Sequence[float], rates: Sequence[Rate], names: Sequence[str], title: str) -> bytes:
    """Steps that go down where an attack breaks samples; the legend names their numbered ends."""
    png = io.BytesIO()
    named = list(names[:_NAMED])
    with saved_figure(png, WIDTH, 3.6 + 0.2 * (len(named) + 1) // 2, title) as figure:
        axes = figure.add_subplot()
        low, high = ([100 * rate.display[k] for rate in rates] for k in (0, 1))
        axes.fill_between(passes, low, high, step="post", color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.step(passes, [100 * rate.value for rate in rates], where="post", color=COLOURS[0])
        for k, (spent, rate) in enumerate(zip(passes, rates, strict=True)):
            place = (spent, 100 * rate.value)
            label = f"{k}: {shortened(names[k], 24)}" if k < len(named) else None
            axes.plot(*place, "o", color=COLOURS[0], markersize=5, label=label, clip_on=False)
            beside = (7, -13) if rate.value > 0.5 else (7, 5)
            axes.annotate(str(k), place, beside, textcoords="offset points", ha="center", fontsize=9)
        accuracy_axis(axes)
        axes.set(xlim=(-0.02 * passes[-1], None), xlabel="model passes per sample, forward and backward")
        figure.legend(loc="outside lower center", ncols=2, handlelength=0, handletextpad=0, markerscale=0)
    return png.getvalue()
