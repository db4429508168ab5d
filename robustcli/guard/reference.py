"""What a guard was fitted on, from the directory that `guard fit` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robustcli.guard.rules import Reference
from robustcli.models.guard_file import read_guard


def reference_of(directory: Path) -> Reference | None:
    """The reference of a guard; None for one without a detector.

    Its manifest has quantiles of the clean scores, and scores are read off them. Raises CheckpointError as
    `read_guard`.
    """
    manifest, _ = read_guard(directory)
    found = manifest.calibration
    if found is None:
        return None
    images = found.n
    if len(manifest.detectors) > 1:  # then other images were behind the spreads
        images += found.spread_n
    scores = {name: _scores(quantiles, images) for name, quantiles in manifest.clean.items()}
    return Reference(found.n, found.rank, found.alarms, scores, tuple(manifest.classes))


def _scores(quantiles: list[float], n: int) -> list[float]:
    """n scores with these quantiles, evenly spaced between them."""
    known, wanted = np.linspace(0, 1, len(quantiles)), np.linspace(0, 1, n)
    scores: list[float] = np.interp(wanted, known, quantiles).tolist()
    return scores
