"""Images per second of the configured training: attack step, training step, loop with its data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.assembly.attacks import make_search
from robustcli.assembly.cost import passes_per_image
from robustcli.assembly.engine import Engine, make_engine
from robustcli.assembly.method import method_of
from robustcli.assembly.samples import split_of
from robustcli.assembly.setting import Setting
from robustcli.assembly.timing import Precision, Repeat, Timing, timed
from robustcli.assembly.trainstep import make_step
from robustcli.core.copies import copy_of
from robustcli.core.losses import Criterion, bind_inner
from robustcli.core.modes import frozen, in_mode
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier
from robustcli.core.untouched import as_before
from robustcli.data.mixture import epoch_batches, epoch_size
from robustcli.errors import out_of_memory
from robustcli.models.contract.training import keeps_channels_last
from robustcli.models.flops import flops
from robustcli.runtime.device import synchronise
from robustcli.runtime.distributed import solo
from robustcli.runtime.precision import tf32_products
from robustcli.training.forward import Forward
from robustcli.training.guarding import Guards
from robustcli.training.step import Step

#: The step is measured as it is at the end of a run: curricula and warm-ups are over.
_LATE = 0.999
_MB = 2**20


@dataclass(frozen=True)
class Bench:
    """What is measured, and how often.

    Args:
        setting: device, data, ball and configuration, with the batch size to measure.
        model: on the device; never changed.
        repeat: repetitions of each measurement.
        stop: raises to interrupt.
        warn: shows one line to the user.
    """

    setting: Setting
    model: nn.Module
    repeat: Repeat
    stop: Callable[[], None] = lambda: None
    warn: Callable[[str], None] = lambda text: None

    @property
    def batch(self) -> int:
        """Images in a step."""
        return self.setting.config.train.batch_size

    def resized(self, batch: int, **train: Any) -> Bench:
        """The same measurements with another batch size and other keys of `train`."""
        config = self.setting.config
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"batch_size": batch, **train})}
        )
        return replace(self, setting=replace(self.setting, config=config))

    def on(self, device: torch.device) -> Bench | None:
        """The same measurements on another device, with a copy of the model; None where it has no copies."""
        copied = self._copied()
        if copied is None:
            return None
        return replace(self, setting=replace(self.setting, device=device), model=copied.to(device))

    def _copied(self) -> nn.Module | None:
        """A copy of the model; None where its code refuses to be copied, and one line says so."""
        copied = copy_of(self.model)
        if not isinstance(copied, Exception):
            return copied
        self.warn(f"steps are timed on the network itself: it cannot be copied ({type(copied).__name__})")
        return None

    @contextmanager
    def _worn(self) -> Iterator[nn.Module]:
        """A model that steps may change: a copy, or the model itself, which is put back afterwards."""
        copied = self._copied()
        if copied is not None:
            yield copied
            return
        with as_before(self.model), in_mode(self.model, self.model.training):
            yield self.model
        self.model.zero_grad(set_to_none=True)

    def pixels(self) -> tuple[Tensor, Tensor, Tensor]:
        """One batch of training images on the device: x [B, C, H, W] in [0, 1], y and ids int64 [B].

        Images repeat where the split has fewer than B. Raises DataError for an empty split.
        """
        train, device = split_of(self.setting.data, "train"), self.setting.device
        x, y, ids = next(iter(train.stream([torch.arange(self.batch) % len(train)], device)))
        if self.setting.config.train.channels_last and keeps_channels_last(self.model):
            x = x.contiguous(memory_format=torch.channels_last)
        return x, y, ids

    # ---- one step ------------------------------------------------------------------------------------------

    def attack_step(self, precision: Precision, twin: bool) -> dict[str, Any]:
        """Images/s of one input gradient of the inner loss: on the search twin, or on the model itself."""
        config, device = self.setting.config, self.setting.device
        x, y, ids = self.pixels()
        method, note, graphs = method_of(config), "", None
        inner, rng = method.inner or "ce", RowRandom(config.seed, "start", ids)
        with frozen(self.model), tf32_products(precision.tf32):
            searcher: Classifier = Forward(self.model, dtype=precision.dtype)
            if twin:
                search = replace(make_search(config, device), dtype=precision.dtype, fold_bn=True)
                copied, note = search.faithful(self.model, x)
                searcher = copied or searcher
                graphs = None if copied is None else copied.graphs
            with torch.no_grad():
                loss = bind_inner(inner, y, clean=lambda: searcher(x))
            seen = searcher if method.view is None else method.view(searcher, x, rng)
            oracle = Oracle(seen, x, Criterion(y), loss=loss, rng=rng)
            repeat = self.repeat
            if graphs is not None:  # recorded at the third pass, proven at the fourth
                repeat = replace(repeat, warm=repeat.warm + 4)
            timing = timed(lambda: oracle.gradient(x), device, repeat, self.stop)
        return {
            "work": "attack step",
            "precision": precision.name,
            "search": "twin" if twin else "plain",
            **self._row(timing, 2 * method.copies),
            "note": note or (graphs.note if graphs is not None else ""),
        }

    def training_step(self, precision: Precision) -> dict[str, Any]:
        """Images/s of the whole configured step, attack included.

        The learning rate is 0, so that every repetition does the same work.
        """
        device, config = self.setting.device, self.setting.config
        search = config.search.model_copy(
            update={"precision": "bf16" if precision.dtype is torch.bfloat16 else "fp32"}
        )
        config = config.model_copy(update={"precision": precision.name, "search": search})
        x, y, ids = self.pixels()
        with self._worn() as model, tf32_products(precision.tf32):
            classes = self.setting.classes
            made = make_step(
                replace(self.setting, config=config),
                model,
                solo(),
                Guards(0, classes, None, "off"),
                self.stop,
                self.warn,
            )
            step = _still(made)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            timing = timed(
                lambda: step(x, y, ids, seed=config.seed, epoch=0, progress=_LATE),
                device,
                self.repeat,
                self.stop,
            )
        memory = torch.cuda.max_memory_allocated(device) / _MB if device.type == "cuda" else None
        row = self._row(timing, passes_per_image(self.setting))
        forward = step.descent.forward
        note = step.twin_note or forward.note or step.way or forward.way
        return {
            "work": "training step",
            "precision": precision.name,
            "search": "",
            **row,
            "peak_memory_mib": memory,
            "note": note,
        }

    def _row(self, timing: Timing, passes: int) -> dict[str, Any]:
        rate = timing.rate(self.batch)
        tflops = rate["median"] * passes * flops(self.model, self.setting.data.shape) / 1e12
        row = {
            "batch_size": self.batch,
            "images_per_second": rate["median"],
            "low": rate["low"],
            "high": rate["high"],
        }
        return {
            **row,
            "repetitions": rate["repetitions"],
            "seconds": timing.median,
            "passes_per_image": passes,
            "tflops": tflops,
        }

    # ---- the loop ------------------------------------------------------------------------------------------

    def data(self, steps: int) -> dict[str, Any]:
        """Images/s of the training loop as configured, and the share of its time spent waiting for data.

        One repetition is `steps` steps: fetch, augment, attack, descend. The first repetition warms up and
        does not count.
        """
        with self._worn() as model:
            return self._loop(make_engine(self.setting, model, solo(), self.stop, self.warn), steps)

    def _loop(self, engine: Engine, steps: int) -> dict[str, Any]:
        """`data`, with the engine that trains."""
        device = self.setting.device
        step, stream = _still(engine.step), _batches(engine, self.setting)
        waits, rates = [], []
        for number in range(self.repeat.least + 1):
            waited = images = 0.0
            began = time.perf_counter()
            for _ in range(steps):
                self.stop()
                asked = time.perf_counter()
                epoch, (x, y, ids) = next(stream)
                waited += time.perf_counter() - asked
                x, y_soft = engine.plan.augmented(x, y, ids, epoch)
                step(x, y, ids, seed=engine.plan.seed, epoch=epoch, y_soft=y_soft, progress=_LATE)
                images += len(x)
            synchronise(device)
            total = time.perf_counter() - began
            if number:
                waits.append(waited / total)
                rates.append(images / total)
        shares = {
            "waiting_share": statistics.median(waits),
            "waiting_low": min(waits),
            "waiting_high": max(waits),
        }
        return {
            **shares,
            "images_per_second": statistics.median(rates),
            "low": min(rates),
            "high": max(rates),
            "repetitions": len(rates),
            "steps": steps,
        }

    # ---- batch size ----------------------------------------------------------------------------------------

    def sizes(
        self, precision: Precision, candidates: list[int], slowest: float
    ) -> tuple[list[dict[str, Any]], bool]:
        """(a row of `training_step` for each batch size, whether memory ran out).

        Args:
            precision: of the steps.
            candidates: batch sizes, ascending.
            slowest: seconds; a step that would take longer is not made, and the search ends.

        Nothing is compiled, because each size would be compiled anew.
        """
        rows: list[dict[str, Any]] = []
        full = False
        for size in candidates:
            if rows and rows[-1]["seconds"] * size / rows[-1]["batch_size"] > slowest:
                break
            other = self.resized(size, compile="off", micro_batch=None)
            config = other.setting.config
            config = config.model_copy(update={"search": config.search.model_copy(update={"compile": "off"})})
            try:
                rows.append(
                    replace(other, setting=replace(other.setting, config=config)).training_step(precision)
                )
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                full = True
            if full:  # outside of the handler, whose traceback holds the tensors
                torch.cuda.empty_cache()
                break
        return rows, full


def _still(step: Step) -> Step:
    """The step with learning rate 0, which leaves the weights as they are."""
    for group in step.settings.optimizer.param_groups:
        group["lr"] = 0.0
    return step


def _batches(engine: Engine, setting: Setting) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
    """(epoch, batch) without end, in training order."""
    size, epoch = min(engine.plan.batch_size, epoch_size(engine.train)), 0
    while True:
        for batch in engine.train.stream(
            epoch_batches(engine.train, size, engine.plan.seed, epoch), setting.device
        ):
            yield epoch, batch
        epoch += 1
