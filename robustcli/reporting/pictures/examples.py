"""What broke the model, to look at: clean image, adversarial image, and the difference made visible."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np

from robustcli.errors import CheckpointError
from robustcli.reporting.cells import Cell, format_eps
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures.gallery import difference_words, gallery
from robustcli.reporting.pixels import fitting_change
from robustcli.reporting.tables import Table
from robustcli.store.examples import NAME, Examples, read_examples

_KEEPERS = ("eval", "attack")  # verbs that keep images
_PIXELS = 900_000  # of all tiles of a picture, so that a report stays small


def picture(dossier: Dossier) -> Picture | str | None:
    """The examples that a run of `eval` or `attack` has kept."""
    path = dossier.path / NAME
    if not path.is_file():
        return _reason(dossier)
    try:
        return examples_picture(read_examples(path))
    except CheckpointError as error:
        return f"Examples: {error.what}."


def _reason(dossier: Dossier) -> str | None:
    """Why a run with verdicts has no examples."""
    if dossier.verb not in _KEEPERS or not dossier.answers:
        return None
    if all(sample.broken_by is None for sample in dossier.answers):
        return "Examples: no attack broke a sample."
    return "Examples: the run has kept no images (`eval.examples`)."


def examples_picture(examples: Examples) -> Picture:
    """Three tiles for each sample: as many samples as a report has room for."""
    room = _PIXELS // (3 * max(1, examples.rows[0].clean[..., 0].size))
    few = examples.rows[: max(1, room)]
    return gallery_picture("examples", replace(examples, rows=few))


def gallery_picture(name: str, examples: Examples, amplify: float | None = None) -> Picture:
    """Three tiles for each sample. amplify: as of `gallery`."""
    rows, png = examples.rows, io.BytesIO()
    clean = np.stack([row.clean for row in rows])
    change = 255 * np.stack([row.change for row in rows]).astype(np.float64)
    adversarial = np.clip(np.rint(clean + change), 0, 255).astype(np.uint8)
    factor = amplify or fitting_change(change)
    distances = [f"{examples.norm} {format_eps(row.distance, examples.norm)}" for row in rows]
    true, predicted = [row.true for row in rows], [row.predicted for row in rows]
    gallery(
        png, clean, adversarial, true, predicted,
        change=change, distances=distances, amplify=factor, title=examples.title,
    )  # fmt: skip
    caption = (
        f"{examples.title} Each row has the clean image, the adversarial image and their difference, with the"
        f" answers of the model and the norm of the difference. {difference_words(change, factor)}"
    )
    lines: list[list[Cell]] = [
        [row.id, row.true, row.predicted, examples.norm, row.distance, factor] for row in rows
    ]
    table = Table("examples", ["sample", "label", "answer", "norm", "distance", "amplified"], lines)
    return Picture(name, "examples", "What broke the model", caption.strip(), png.getvalue(), table)
