"""Where the course of a training goes besides the run's own files: the interface of trackers, and what keeps a run safe from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robustcli import registry
from robustcli.config.bind import bind_spec
from robustcli.config.spec import Spec
from robustcli.errors import ResourceError, RobustCliError, UsageError
from robustcli.records.train import TrainRow
from robustcli.reporting.gallery import amplified

Pixels = NDArray[np.uint8]
#: Name -> uint8 [N, H, W, 3]; the same N images in each, in the order in which they are read: clean, adversarial, difference.
Panels = Mapping[str, Pixels]


class Tracker(Protocol):
    """What a registered tracker `(run_dir: Path, *, …) -> Tracker` answers to. Its exceptions cost the run the tracker, and nothing else."""

    @property
    def examples(self) -> int:
        """Adversarial examples that it wants to see at each validation; 0 = none."""

    def resume(self, rows: Sequence[TrainRow]) -> None:
        """Before anything else where a run goes on: `rows` are all records that count so far; forget what came later."""

    def row(self, row: TrainRow) -> None:
        """One validation record."""

    def images(self, step: int, panels: Panels) -> None:
        """At most `examples` images of the validation at `step`."""

    def close(self) -> None:
        """The training is over; nothing follows."""


def open_trackers(specs: Sequence[Spec], run_dir: Path, warn: Callable[[str], None]) -> Trackers:
    """The configured trackers (`train.trackers`) of the run in `run_dir`; `warn` shows a line to the user.

    Raises ConfigError or UsageError for what cannot be configured, ResourceError where a tracker does not start (E-EXTRA: its package is missing).
    """
    opened: dict[str, Tracker] = {}
    for k, spec in enumerate(specs):
        where = f"train.trackers.{k}"
        bound = bind_spec(registry.trackers.discover(), spec, where)
        if spec.name in opened:
            raise UsageError(f"the tracker {spec.name} is named twice", where=where)
        try:
            opened[spec.name] = bound.fn(run_dir, **bound.params)
        except RobustCliError:
            raise
        except Exception as error:  # another library's: no login, no network
            raise ResourceError(
                f"the tracker {spec.name} does not start: {said(error)}",
                where=where,
                hint="repair that, or remove it",
            ) from error
    return Trackers(opened, warn)


class Trackers:
    """Hands everything to each tracker; one that raises is dropped with one warning.

    Args:
        trackers: name -> tracker. warn: shows a line to the user.
    """

    def __init__(self, trackers: Mapping[str, Tracker], warn: Callable[[str], None]) -> None:
        self._live, self._warn = dict(trackers), warn

    def __len__(self) -> int:
        return len(self._live)

    @property
    def examples(self) -> int:
        """The most examples that a tracker wants."""
        found = [0]
        self._each(lambda tracker: found.append(tracker.examples))
        return max(found)

    def resume(self, rows: Sequence[TrainRow]) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.resume(rows))

    def row(self, row: TrainRow) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.row(row))

    def images(self, step: int, panels: Panels) -> None:
        """See `Tracker`; each gets as many as it wants."""

        def give(tracker: Tracker) -> None:
            if tracker.examples > 0:
                tracker.images(step, {name: pixels[: tracker.examples] for name, pixels in panels.items()})

        self._each(give)

    def close(self) -> None:
        """See `Tracker`; twice is once."""
        self._each(lambda tracker: tracker.close())
        self._live.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._live.items()):
            try:
                call(tracker)
            except Exception as error:  # hours of training must not be lost to a picture of them
                del self._live[name]
                self._warn(f"the tracker {name} failed and gets nothing more from this run: {said(error)}")


def scalars(row: TrainRow) -> dict[str, float]:
    """The numbers of a record by name, those that were measured: train/loss, train/PART, val/clean_acc, lr, images_per_second, …"""
    validated = {"clean_acc": row.clean_acc, "robust_acc": row.robust_acc, "fgsm_acc": row.fgsm_acc}
    return {
        "train/loss": row.loss,
        **{f"train/{name}": value for name, value in row.parts.items()},
        **{f"val/{name}": value for name, value in validated.items() if value is not None},
        "lr": row.lr,
        "images_per_second": row.images_per_second,
        "waiting_share": row.waiting_share,
        "peak_memory": float(row.peak_memory),
    }


def panels_of(clean: Pixels, adversarial: Pixels, amplify: float) -> dict[str, Pixels]:
    """clean, adversarial and round(127.5 + amplify * (adversarial - clean)), as RGB.

    clean, adversarial: uint8 [N, H, W, C]; C = 3 is RGB, of other C the mean over channels is shown. amplify: > 0.
    Raises ValueError for other types or shapes.
    """
    if (
        clean.dtype != np.uint8
        or adversarial.dtype != np.uint8
        or clean.ndim != 4
        or clean.shape != adversarial.shape
    ):
        raise ValueError(
            f"need two equal uint8 [N, H, W, C], got {clean.dtype} {clean.shape} and {adversarial.dtype} {adversarial.shape}"
        )
    if not amplify > 0:
        raise ValueError(f"amplify must be > 0, got {amplify}")
    found = {"clean": clean, "adversarial": adversarial, "difference": amplified(clean, adversarial, amplify)}
    return {name: _colour(pixels) for name, pixels in found.items()}


def sheet(panels: Panels, *, tile: int = 96, gap: int = 4) -> Pixels:
    """All panels in one picture, uint8 [h, w, 3]: a row per panel, a column per image, white gaps of `gap` pixels.

    Images smaller than `tile` pixels are enlarged by a whole factor, each pixel a flat square. Raises ValueError without an image.
    """
    if len({pixels.shape for pixels in panels.values()}) != 1 or not next(iter(panels.values())).size:
        raise ValueError(
            f"need panels of one shape [N, H, W, 3], got {', '.join(str(pixels.shape) for pixels in panels.values()) or 'none'}"
        )
    count, height, width = next(iter(panels.values())).shape[:3]
    scale = max(1, tile // max(height, width))
    down, across = height * scale + gap, width * scale + gap
    picture = np.full((len(panels) * down - gap, count * across - gap, 3), 255, dtype=np.uint8)
    for i, pixels in enumerate(panels.values()):
        for k, image in enumerate(pixels):
            picture[i * down : i * down + height * scale, k * across : k * across + width * scale] = (
                image.repeat(scale, 0).repeat(scale, 1)
            )
    return picture


def _colour(pixels: Pixels) -> Pixels:
    if pixels.shape[3] == 3:
        return pixels
    return np.repeat(np.rint(pixels.mean(axis=3, keepdims=True)).astype(np.uint8), 3, axis=3)


def said(error: Exception) -> str:
    """The first line of an exception, with its kind."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}".rstrip(": ")
