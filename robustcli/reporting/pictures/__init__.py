"""The pictures of a run: a file here for each, a PNG and the table of what it shows, from records alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from robustcli.reporting.dossier import Dossier
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures import (
    certified,
    classes,
    confusion,
    demo,
    distances,
    examples,
    guard,
    leakage,
    plateau,
    queries,
    reliability,
    sweep,
    training,
    transfer,
)
from robustcli.reporting.pictures.comparison import comparison_of
from robustcli.reporting.pictures.files import save_pictures

__all__ = ["Drawn", "comparison_of", "drawn", "save_pictures"]

#: A picture of the run; None where the run measured nothing of the kind; a sentence where it cannot be drawn.
Painter = Callable[[Dossier], Picture | str | None]
#: In the order of a report.
PAINTERS: Sequence[Painter] = (
    training.picture,
    leakage.picture,
    demo.picture,
    sweep.picture,
    guard.picture,
    guard.roc_picture,
    certified.picture,
    plateau.picture,
    distances.picture,
    queries.picture,
    classes.picture,
    confusion.clean_picture,
    confusion.adversarial_picture,
    reliability.picture,
    examples.picture,
    transfer.picture,
)


class Drawn(NamedTuple):
    """What a run has to show. left_out: a sentence for each picture that its records are too few for."""

    pictures: list[Picture]
    left_out: list[str]


def drawn(dossier: Dossier) -> Drawn:
    """All pictures of one run, drawn from its records. Runs that lie inside it have their own."""
    found = [painter(dossier) for painter in PAINTERS]
    return Drawn(
        [one for one in found if isinstance(one, Picture)], [one for one in found if isinstance(one, str)]
    )
