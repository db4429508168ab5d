"""What a training run writes: records, checkpoints, pictures, summary.

One rank holds a `Written`, the others hold a `Silent`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robustcli.assembly.attacks import calls_of
from robustcli.assembly.setting import Setting, ball_of
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.random import RowRandom
from robustcli.data.split import Split
from robustcli.errors import Interrupted
from robustcli.evaluation.lattice import to_lattice
from robustcli.evaluation.plan import Search
from robustcli.records.read import train_rows
from robustcli.records.train import TrainRow
from robustcli.reporting.pictures.files import save_pictures
from robustcli.reporting.pictures.training import training_picture
from robustcli.reporting.pixels import Panels, Pixels, panels_of
from robustcli.reporting.record_tables import train_table, write_csv
from robustcli.reporting.summary import train_summary
from robustcli.reporting.tracking import error_line, open_trackers
from robustcli.store.atomic import JsonLines
from robustcli.store.checkpoint import save_checkpoint
from robustcli.store.run import Run
from robustcli.terminal.console import Console
from robustcli.training.saved import Groups
from robustcli.training.trainplan import Progress

_REDRAW = 30.0  # seconds between two drawings of the curves of a running training


class TrainLog(Protocol):
    """What a training run writes into its directory."""

    def open(self) -> None:
        """Open the records and the trackers; the directory is taken by then. Raises as `open_trackers`."""

    def check(self) -> None:
        """Raises GoneError when somebody has taken the directory or the records away."""

    def text(self, line: str) -> None:
        """One line for the log file."""

    def row(self, values: Mapping[str, Any]) -> None:
        """One validation record."""

    def save(self, progress: Progress, groups: Groups, tags: Sequence[str]) -> None:
        """A checkpoint with all that a resume needs."""

    def cut(self, offset: int) -> None:
        """Drop the records beyond `offset` bytes: they were written after the checkpoint that is resumed."""

    def show(self, examples: Callable[[int], Panels]) -> None:
        """Set the source of adversarial examples for the trackers: (largest number of images) -> panels.

        It is called after a record when a tracker wants images.
        """

    def finish(self, progress: Progress) -> None:
        """Write the table, the curves and the summary."""


class Silent:
    """The log of a rank that writes nothing."""

    def open(self) -> None: ...
    def check(self) -> None: ...
    def text(self, line: str) -> None: ...
    def row(self, values: Mapping[str, Any]) -> None: ...
    def save(self, progress: Progress, groups: Groups, tags: Sequence[str]) -> None: ...
    def cut(self, offset: int) -> None: ...
    def show(self, examples: Callable[[int], Panels]) -> None: ...
    def finish(self, progress: Progress) -> None: ...


class Written:
    """The log of rank 0, in the run directory.

    Args:
        run: the directory.
        setting: device, data, ball and configuration.
        config: the configuration as a tree.
        meta: what a checkpoint says of the model.
        digest: hash of the training data.
        console: shows the table at the end.
        common: fields that all records share.

    """

    def __init__(
        self,
        run: Run,
        setting: Setting,
        config: Mapping[str, Any],
        meta: Mapping[str, Any],
        digest: str,
        console: Console,
        common: Mapping[str, Any],
    ) -> None:
        self.run, self.setting, self.config = run, setting, config
        self.meta, self.digest, self.console = meta, digest, console
        self.common = {
            **ball_of(setting),
            "seed": setting.config.seed,
            "hashes": {"data": digest},
            **common,
        }
        self._examples: Callable[[int], Panels] | None = None
        self._drawn = time.monotonic()

    def open(self) -> None:
        """See `TrainLog`."""
        self.lines = JsonLines(self.run.path / "metrics.jsonl")
        self.trackers = open_trackers(self.setting.config.train.trackers, self.run.path, self._warn)

    def check(self) -> None:
        """See `TrainLog`."""
        self.run.check()
        self.lines.check()

    def text(self, line: str) -> None:
        """See `TrainLog`."""
        self.run.log(line)

    def row(self, values: Mapping[str, Any]) -> None:
        """See `TrainLog`. The curves are drawn again when the last drawing is 30 s old."""
        row = TrainRow.of(values, **self.common)
        self.lines.write(row.to_json())
        self.text(", ".join(_shown(key, value) for key, value in values.items() if value is not None))
        self.trackers.row(row)
        self._show(row.step)
        if time.monotonic() - self._drawn > _REDRAW:
            self._draw({})

    def save(self, progress: Progress, groups: Groups, tags: Sequence[str]) -> None:
        """See `TrainLog`."""
        self.run.check()
        self.lines.sync()
        progress.log_offset = self.lines.offset
        data = {"name": self.setting.data.name, "digest": self.digest}
        meta = {**self.meta, "config": dict(self.config), "progress": asdict(progress), "data": data}
        path = save_checkpoint(
            self.run.checkpoints, progress.step, groups, meta, tags=tags, keep=self.setting.config.train.keep
        )
        self.run.status(
            state="running", step=progress.step, last_checkpoint=str(path.relative_to(self.run.path))
        )

    def cut(self, offset: int) -> None:
        """See `TrainLog`."""
        self.lines.truncate(offset)
        if self.trackers:
            self.trackers.resume(train_rows(self.run.path / "metrics.jsonl"))

    def show(self, examples: Callable[[int], Panels]) -> None:
        """See `TrainLog`."""
        self._examples = examples

    def finish(self, progress: Progress) -> None:
        """See `TrainLog`."""
        self.lines.close()
        self.trackers.close()
        rows = self._draw(progress.best)
        write_csv(self.run.path / "results.csv", rows)
        self.run.write_text(
            "summary.md", train_summary(self.config, progress.best, progress.last, rows, progress.alarms)
        )
        self.console.table(train_table(rows, best_step=progress.best.get("step")))

    def _draw(self, best: Mapping[str, Any]) -> list[TrainRow]:
        """Draw the curves of all rows, which it returns. best: what is known of the best checkpoint."""
        rows = train_rows(self.run.path / "metrics.jsonl")
        if rows:
            picture = training_picture(rows, self.setting.config.objective.name, best)
            save_pictures([picture], self.run.path / "plots")
        self._drawn = time.monotonic()
        return rows

    def _show(self, step: int) -> None:
        count = self.trackers.examples
        if self._examples is None or not count:
            return
        try:
            panels = self._examples(count)
        except Interrupted:
            return  # the request stays: the loop stops at its next boundary, where all ranks do
        except Exception as error:  # out of memory, say: a picture is not worth the run
            self._examples = None
            self._warn(f"no adversarial examples for the trackers any more: {error_line(error)}")
            return
        self.trackers.images(step, panels)

    def _warn(self, text: str) -> None:
        self.console.warn(text)
        self.text(f"warning: {text}")


class Examples:
    """The first validation images and their adversarial images, for the trackers.

    Images and random draws are the same each time.

    Args:
        setting: device, ball, configured attack and seed.
        model: () -> the model that is validated now.
        split, positions: the validation images, positions int64 [m].
        stop: raises Interrupted.
    """

    def __init__(
        self,
        setting: Setting,
        model: Callable[[], nn.Module],
        split: Split,
        positions: Tensor,
        stop: Callable[[], None] | None = None,
    ) -> None:
        setting = setting.parts[0]  # of a union, the first ball
        self.setting, self.model, self.stop = setting, model, stop
        self.split, self.positions = split, positions
        (self.call,) = calls_of(setting.config.adversary, setting.ball.norm, "adversary", Search())
        self._batch: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, count: int) -> Panels:
        """Panels of at most `count` images: clean, adversarial, and their difference.

        The model is left unchanged.
        """
        if self._batch is None:
            self._batch = next(iter(self.split.stream([self.positions[:count]], self.setting.device)))
        x, y, ids = (part[:count] for part in self._batch)
        model, ball = self.model(), self.setting.ball
        with frozen(model):
            rng = RowRandom(self.setting.config.seed, "start", ids)
            oracle = self.call.oracle(model, x, Criterion(y), rng=rng, ball=ball, stop=self.stop)
            x_adv = self.call.points(oracle, x, ball)
        if self.call.bounded:
            x_adv = to_lattice(x, x_adv, ball)
        return panels_of(_pixels(x), _pixels(x_adv), self.setting.config.attack.amplify)


def _shown(key: str, value: Any) -> str:
    """One value of a record in the log file."""
    return f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"


def _pixels(x: Tensor) -> Pixels:
    """Images [N, C, H, W], float in [0, 1] or uint8 -> uint8 [N, H, W, C]."""
    if x.dtype != torch.uint8:
        x = (x * 255).round().to(torch.uint8)
    pixels: Pixels = x.permute(0, 2, 3, 1).cpu().numpy()
    return pixels
