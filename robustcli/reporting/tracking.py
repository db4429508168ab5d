"""Trackers: where the course of a training goes besides the run's own files. Their faults never end a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from robustcli import registry
from robustcli.config.bind import bind_spec
from robustcli.config.spec import Spec
from robustcli.errors import ResourceError, RobustCliError, UsageError
from robustcli.records.train import TrainRow
from robustcli.reporting.pixels import Panels
from robustcli.runtime.generators import generators_as_before


class Tracker(Protocol):
    """What a registered function returns, which gets `run_dir: Path` and the parameters of the configuration.

    Where a method raises, the run goes on without this tracker.
    """

    @property
    def examples(self) -> int:
        """Adversarial examples that it wants to see at each validation; 0 = none."""

    def resume(self, rows: Sequence[TrainRow]) -> None:
        """Called first where a run goes on. `rows`: all records that still count; forget what came later."""

    def row(self, row: TrainRow) -> None:
        """One validation record."""

    def images(self, step: int, panels: Panels) -> None:
        """At most `examples` images of the validation at `step`."""

    def close(self) -> None:
        """The training is over; nothing follows."""


def open_trackers(specs: Sequence[Spec], run_dir: Path, warn: Callable[[str], None]) -> Trackers:
    """The configured trackers (`train.trackers`) of the run in `run_dir`; `warn` shows a line to the user.

    Raises ConfigError or UsageError for what cannot be configured, and ResourceError where a tracker does not
    start (E-EXTRA: its package is missing).
    """
    opened: dict[str, Tracker] = {}
    for k, spec in enumerate(specs):
        where = f"train.trackers.{k}"
        bound = bind_spec(registry.trackers, spec, where)
        if spec.name in opened:
            raise UsageError(f"the tracker {spec.name} is named twice", where=where)
        try:
            with generators_as_before():
                opened[spec.name] = bound.fn(run_dir, **bound.params)
        except RobustCliError:
            raise
        except Exception as error:  # another library's: no login, no network
            raise ResourceError(
                f"the tracker {spec.name} does not start: {error_line(error)}",
                where=where,
                hint="repair that, or remove it",
            ) from error
    return Trackers(opened, warn)


class Trackers:
    """Hands everything to each tracker. One that raises is dropped with one warning.

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
        wanted = [0]
        self._call(lambda tracker: wanted.append(tracker.examples))
        return max(wanted)

    def resume(self, rows: Sequence[TrainRow]) -> None:
        """See `Tracker`."""
        self._call(lambda tracker: tracker.resume(rows))

    def row(self, row: TrainRow) -> None:
        """See `Tracker`."""
        self._call(lambda tracker: tracker.row(row))

    def images(self, step: int, panels: Panels) -> None:
        """See `Tracker`; each gets as many as it wants."""

        def give(tracker: Tracker) -> None:
            if tracker.examples > 0:
                tracker.images(step, {name: pixels[: tracker.examples] for name, pixels in panels.items()})

        self._call(give)

    def close(self) -> None:
        """See `Tracker`; a second call does nothing."""
        self._call(lambda tracker: tracker.close())
        self._live.clear()

    def _call(self, act: Callable[[Tracker], None]) -> None:
        """`act` on each tracker, and drop the ones on which it raises."""
        for name, tracker in list(self._live.items()):
            try:
                with generators_as_before():  # a tracked training draws what one without draws
                    act(tracker)
            except Exception as error:  # hours of training must not be lost to a picture of them
                del self._live[name]
                reason = error_line(error)
                self._warn(f"the tracker {name} failed and gets nothing more from this run: {reason}")


def scalars(row: TrainRow) -> dict[str, float]:
    """The numbers of a record by name: train/loss, train/PART, val/clean_acc, lr, images_per_second and more.

    An accuracy that was not measured is left out.
    """
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


def error_line(error: Exception) -> str:
    """The kind of an exception and its first line."""
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line[:200]}".rstrip(": ")
