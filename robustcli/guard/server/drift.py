"""How the scores of each detector move over time, as numbers and as the coordinates of a small picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robustcli.guard.store.rows import Observation

WIDTH, HEIGHT = 600.0, 120.0  # of a picture, in its own units
_BINS = 24
_QUANTILES = (0.05, 0.5, 0.95)
_MARGIN = 0.06  # of the height, above and below
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """Observations in a row, about as many in each span.

    Args:
        low, middle, high: the 5 %, 50 % and 95 % quantiles of a score.
    """

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Chart:
    """One detector's scores over time.

    Args:
        name: of the detector.
        spans: the oldest first.
        threshold: scores above it are alarms; None where it is not known.
        least, most: what the picture shows from below to above.
    """

    name: str
    spans: Sequence[Span]
    threshold: float | None
    least: float
    most: float

    @property
    def band(self) -> str:
        """Points of the polygon between the 5 % and the 95 % quantiles."""
        above = [self._point(place, span.high) for place, span in enumerate(self.spans)]
        below = [self._point(place, span.low) for place, span in enumerate(self.spans)]
        return " ".join([*above, *reversed(below)])

    @property
    def line(self) -> str:
        """Points of the line of medians."""
        return " ".join(self._point(place, span.middle) for place, span in enumerate(self.spans))

    @property
    def limit(self) -> float | None:
        """Height of the threshold in the picture."""
        return None if self.threshold is None else self._height(self.threshold)

    def _point(self, place: int, value: float) -> str:
        across = WIDTH * place / max(1, len(self.spans) - 1)
        return f"{across:.1f},{self._height(value):.1f}"

    def _height(self, value: float) -> float:
        share = (value - self.least) / ((self.most - self.least) or 1.0)
        return HEIGHT * (1 - _MARGIN - (1 - 2 * _MARGIN) * share)


def charts(seen: Sequence[Observation], thresholds: Mapping[str, float]) -> list[Chart]:
    """One chart for each detector with at least two spans of scores. seen: the oldest first."""
    names = sorted({name for each in seen for name in each.scores})
    made = [_chart(name, _scores(seen, name), thresholds.get(name)) for name in names]
    return [chart for chart in made if len(chart.spans) > 1]


def alarm_shares(seen: Sequence[Observation]) -> list[float]:
    """The share of alarms in each span of time."""
    alarms = np.array([not each.accepted for each in seen], dtype=np.float64)
    return [float(part.mean()) for part in _parts(alarms)]


def _scores(seen: Sequence[Observation], name: str) -> Values:
    """The finite scores of one detector."""
    found = [each.scores.get(name) for each in seen]
    return np.array([score for score in found if score is not None], dtype=np.float64)


def _chart(name: str, scores: Values, threshold: float | None) -> Chart:
    spans = [Span(*map(float, np.quantile(part, _QUANTILES))) for part in _parts(scores)]
    shown = [value for span in spans for value in (span.low, span.high)]
    if threshold is not None:
        shown.append(threshold)
    return Chart(name, spans, threshold, min(shown, default=0.0), max(shown, default=1.0))


def _parts(values: Values) -> list[Values]:
    """About equal parts in the order of time, none of them empty."""
    return [part for part in np.array_split(values, _BINS) if len(part)]
