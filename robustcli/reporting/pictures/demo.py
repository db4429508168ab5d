"""The curves of `demo`: the natural and the robust model side by side, against eps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from robustcli.reporting.dossier import Dossier
from robustcli.reporting.figure import Point
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.data import curve_table
from robustcli.reporting.pictures.lines import eps_curve


def picture(dossier: Dossier) -> Picture | None:
    """The curves in the document of a demo."""
    curves, models = (dossier.document.get(name) for name in ("curves", "models"))
    if not curves or not models:
        return None
    measured = next(iter(models.values()))
    return curves_picture(curves, measured["data"], measured["attacks"][0]["name"], measured["norm"])


def curves_picture(curves: Mapping[str, Sequence[Point]], data: str, attack: str, norm: str) -> Picture:
    """Accuracy against eps, a line for each model. curves: name -> (eps, accuracy, low, high)."""
    png, title = io.BytesIO(), f"{data}: accuracy under {attack}"
    eps_curve(png, curves, title=title, norm=norm)
    caption = f"Accuracy of {' and '.join(curves)} models under {attack} against eps, with 95 % intervals."
    name, shown = "accuracy_against_eps", "Accuracy against eps"
    return Picture(name, "verdict", shown, caption, png.getvalue(), curve_table(title, "eps", curves))
