"""The tracker for TensorBoard."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from robustcli.errors import ResourceError
from robustcli.records.train import TrainRow
from robustcli.registry import trackers
from robustcli.reporting.pixels import Panels, sheet
from robustcli.reporting.tracking import Tracker, scalars
from robustcli.store.disk import explained

_EXTRA = 'pip install "robustcli[tensorboard]"'


@trackers.register("tensorboard")
def tensorboard(
    run_dir: Path,
    *,
    images: Annotated[int, Ge(0), Le(64)] = 8,
    flush: Annotated[float, Ge(0), Le(3600)] = 0.0,
) -> Tracker:
    """Event files in RUN/tensorboard: the numbers of each validation record, and adversarial examples.

    `tensorboard --logdir runs` shows them.

    Args:
        run_dir: the run's directory.
        images: adversarial examples per validation, in [0, 64]; 0 = none.
        flush: seconds between two writes to the file, in [0, 3600]. 0 = after every record, so that a killed
            run has lost none.

    Raises:
        ResourceError: E-EXTRA, tensorboard is not installed; or the folder cannot be made.
    """
    make_writer = _summary_writer()
    folder = run_dir / "tensorboard"
    with explained(folder):
        folder.mkdir(exist_ok=True)
    return _Events(folder, make_writer, images, flush)


def _summary_writer() -> Callable[..., Any]:
    """torch's SummaryWriter. Raises ResourceError E-EXTRA where it cannot be imported."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        what = "the tracker tensorboard needs a package that is not installed"
        raise ResourceError(what, where="train.trackers", hint=_EXTRA, code="E-EXTRA") from error
    except Exception as error:  # its protobuf fits no other version: TypeError, AttributeError
        first_line = (str(error).splitlines() or [""])[0]
        what = f"tensorboard cannot be imported: {first_line[:160]}"
        raise ResourceError(what, where="train.trackers", hint=_EXTRA, code="E-EXTRA") from error
    return SummaryWriter


class _Events:
    """A `Tracker`. `make_writer` is torch's SummaryWriter; the first record makes the file."""

    def __init__(self, folder: Path, make_writer: Callable[..., Any], images: int, flush: float) -> None:
        self.folder, self.examples = folder, images
        self._make_writer, self._flush = make_writer, flush
        self._opened: Any = None

    def resume(self, rows: Sequence[TrainRow]) -> None:
        """Hides what an earlier process wrote after `rows`. Where none wrote anything, writes `rows`."""
        if any(self.folder.glob("events.out.tfevents.*")):
            self._writer(purge_step=rows[-1].step + 1 if rows else 0)
            return
        for row in rows:
            self.row(row)

    def row(self, row: TrainRow) -> None:
        """See `Tracker`."""
        for name, value in scalars(row).items():
            self._writer().add_scalar(name, value, row.step)
        self._flush_each_time()

    def images(self, step: int, panels: Panels) -> None:
        """See `Tracker`: one picture, a row per panel."""
        self._writer().add_image(f"examples/{'-'.join(panels)}", sheet(panels), step, dataformats="HWC")
        self._flush_each_time()

    def close(self) -> None:
        """See `Tracker`."""
        if self._opened is not None:
            self._opened.close()

    def _writer(self, purge_step: int | None = None) -> Any:
        """The writer; the first call opens it. What the file holds from `purge_step` on is hidden."""
        if self._opened is None:
            flush_secs = self._flush or 120
            self._opened = self._make_writer(str(self.folder), purge_step=purge_step, flush_secs=flush_secs)
            if self._flush:
                atexit.register(self._opened.close)  # a preempted run is resumed, and has no gap then
        return self._opened

    def _flush_each_time(self) -> None:
        """Write to the file now, unless the writer does so by the clock."""
        if not self._flush:
            self._writer().flush()
