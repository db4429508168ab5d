"""The lines of `gpu_suite.py --part speed`: share of the measured matmul rate, and ratios to other code.

All ratios are of one process on one card, round by round.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import autoattack
import torch
from gpu_check import measured
from gpu_report import Line, Row
from speed import contenders
from torch import Tensor, nn

from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.samples import choose
from robustcli.assembly.setting import Setting, prepare
from robustcli.assembly.throughput import Bench
from robustcli.assembly.timing import BF16, FP32, Precision, Repeat, matmul_peak, precisions
from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.core.geometry import Ball
from robustcli.errors import RobustCliError
from robustcli.runtime.device import synchronise
from robustcli.terminal.console import Console

#: Asked of one card: share of the bf16 matmul rate in a training step, times the plain fp32 loop, times
#: torchattacks' AutoAttack.
SHARE, LOOP, ENSEMBLE = 0.4, 8.0, 5.0
#: The step that is measured: PGD-10 training of ResNet-18 on images of 32 pixels.
STEP = (
    "data.name=fake", "data.size=32", "model.name=resnet18", "ball.eps=8/255", "objective=madry",
    "adversary={name: pgd, steps: 10, step_size: 2/255}", "train.batch_size=512",
)  # fmt: skip
SMALL = (
    *STEP[:2],
    "model={name: small_cnn, widths: [4, 8], strides: [2, 2]}",
    *STEP[3:-1],
    "train.batch_size=4",
)
_WARM = 3  # rounds; recordings are made and proven in them


class Speed:
    """All lines; device and sizes are those of `options`."""

    def __init__(self, options: Namespace) -> None:
        self.device, self._toy = torch.device(options.device), bool(options.toy)
        self._asked = self.device.type == "cuda" and not self._toy  # whether figures are judged
        self._run = options.run
        self._repeat = Repeat(least=1, budget=0.0, warm=1) if self._toy else Repeat(budget=3.0, warm=4)
        self._settings = list(options.set)
        self._peaks: dict[str, float] = {}
        self._rates: dict[str, float] = {}
        #: Every measured number, for the report.
        self.facts: dict[str, Any] = {"seconds": {}, "steps": [], "autoattack": {}}

    def lines(self) -> list[Line]:
        """What is asked for first comes first."""
        low = precisions(self.device)[-1]
        steps = {"auto": 20.0, "off": 12.0}
        return [
            Line("matmul rate", 8, lambda: self._peak(low)),
            Line("training step", steps["auto"], lambda: self._step(low, "auto")),
            Line("training step against plain loops", 25, lambda: self._rounds("step")),
            Line("AutoAttack", 45, self._ensemble),
            Line("GPU against CPU", 30, self._against_cpu),
            Line("training step, eager", steps["off"], lambda: self._step(low, "off")),
            Line("attack against plain loops", 20, lambda: self._rounds("attack")),
            Line("training step in fp32", 20, lambda: self._step(FP32, "auto")),
        ]

    # ---- our step ------------------------------------------------------------------------------------------

    def _bench(self, way: str) -> Bench:
        words = [
            *(SMALL if self._toy else STEP),
            f"train.compile={way}",
            f"search.compile={way}",
            *self._settings,
        ]
        config = load_config(
            None, [parse_assignment(word, "suite") for word in (*words, f"device={self.device}")]
        ).config
        setting = prepare(config, Console(quiet=True), parts=("train",))
        return Bench(setting, ModelSource(setting).to_train(), self._repeat)

    def _peak(self, kind: Precision) -> Iterator[Row]:
        sides = [256] if self._toy else [4096, 8192, 16384]
        found = matmul_peak(self.device, kind, sides, self._repeat)
        self._peaks[kind.name] = found["tflops"]
        yield Row(f"matmul rate in {kind.name}, TFLOP/s", found["tflops"], f"side {found['size']}")

    def _step(self, kind: Precision, way: str) -> Iterator[Row]:
        if kind.name not in self._peaks:
            yield from self._peak(kind)
        step = self._bench(way).training_step(kind)
        self.facts["steps"].append(step)
        name = f"PGD-10 step, {kind.name}, compile {way}"
        self._rates[kind.name] = max(self._rates.get(kind.name, 0.0), step["images_per_second"])
        yield Row(f"{name}, images/s", step["images_per_second"], step["note"])
        share = step["tflops"] / self._peaks[kind.name]
        asked = self._asked and kind is BF16 and way == "auto"
        yield Row(
            f"{name}, share of the matmul rate", share, f"asked: {SHARE}", share >= SHARE if asked else None
        )

    def _against_cpu(self) -> Iterator[Row]:
        """The same step on the CPU, in its fastest precision, on fewer images."""
        host = torch.device("cpu")
        few = replace(self._bench("off"), repeat=Repeat(least=2, budget=0.0, warm=1))
        other = few.resized(min(64, few.batch)).on(host)
        if other is None or not self._rates:
            return
        step = other.training_step(precisions(host)[-1])
        self.facts["steps"].append({**step, "device": "cpu"})
        yield Row(
            f"{self.device.type} / cpu, PGD-10 step, times",
            max(self._rates.values()) / step["images_per_second"],
            f"the CPU: {step['images_per_second']:.4g} images/s, {step['precision']}, "
            f"{torch.get_num_threads()} threads",
        )

    # ---- other code ----------------------------------------------------------------------------------------

    def _rounds(self, work: str) -> Iterator[Row]:
        """Interleaved rounds of one kind of work; the rows are renewed after each."""
        batch, steps = (2, 1) if self._toy else (512, 10)
        arch = "mlp" if self._toy else "resnet18"
        jobs = {k: v for k, v in contenders(self.device, batch, steps, arch).items() if k.startswith(work)}
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        self.facts["seconds"].update(seconds)
        for number in range(_WARM + (2 if self._toy else 5)):
            for name, job in jobs.items():
                if number < _WARM and "robustcli" not in name and number:
                    continue  # other code is warm after one
                synchronise(self.device)
                began = time.perf_counter()
                job()
                synchronise(self.device)
                if number >= _WARM:
                    seconds[name].append(time.perf_counter() - began)
            if number >= _WARM:
                yield from self._ratios(batch, seconds)

    def _ratios(self, batch: int, seconds: dict[str, list[float]]) -> Iterator[Row]:
        for name, times in seconds.items():
            yield Row(f"{name}, images/s", batch / statistics.median(times))
        for mine in (name for name in seconds if "robustcli" in name):
            for other in (name for name in seconds if "robustcli" not in name):
                found = sorted(b / a for a, b in zip(seconds[mine], seconds[other], strict=True))
                middle = statistics.median(found)
                asked = self._asked and mine.startswith("step") and "plain" in other
                yield Row(
                    f"{mine} / {other.split(': ')[1]}, times",
                    middle,
                    f"{found[0]:.2f} to {found[-1]:.2f}",
                    middle >= LOOP if asked else None,
                )

    def _ensemble(self) -> Iterator[Row]:
        """AutoAttack, version standard, against torchattacks' attacks with the same parameters."""
        setting, model, trained = self._attacked()
        positions = choose(setting.data.test, n=4 if self._toy else 32, first=None, seed=0)
        x, y, _ = next(iter(setting.data.test.stream([positions], self.device)))
        version = "rapid" if self._toy else "standard"
        jobs: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, float]]] = {
            f"robustcli {version}": autoattack.ours(version, "auto", model, setting.ball, 0)
        }
        made = _peer(setting.ball, *((2, 5) if self._toy else (100, 5000)))
        if made is not None:
            jobs["torchattacks, 100 steps"] = autoattack.foreign(made, model, setting.ball)
        took: dict[str, float] = {}
        for name, job in jobs.items():
            began = time.perf_counter()
            survivors, _ = job(x, y)
            synchronise(self.device)
            took[name] = time.perf_counter() - began
            self.facts["autoattack"][name] = {
                "seconds": took[name],
                "standing": int(survivors.sum()),
                "n": len(x),
            }
            yield Row(
                f"AutoAttack, {name}, seconds for {len(x)}", took[name], f"{int(survivors.sum())} stand"
            )
        if len(took) == 2:
            ours, theirs = took.values()
            asked = self._asked and trained
            note = "" if trained else "an untrained network"
            yield Row(
                "AutoAttack / torchattacks, times",
                theirs / ours,
                note,
                theirs / ours >= ENSEMBLE if asked else None,
            )

    def _attacked(self) -> tuple[Setting, nn.Module, bool]:
        """The model of the last training here; without one an untrained network."""
        try:
            return *measured(self._run, str(self.device)), True
        except RobustCliError:
            bench = self._bench("off")
            setting = prepare(bench.setting.config, Console(quiet=True))
            return setting, bench.model.eval(), False


def _peer(
    ball: Ball, steps: int, queries: int
) -> Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]] | None:
    """model -> torchattacks' four attacks one after the other; None where it is not installed."""
    try:
        import torchattacks
    except ImportError:
        return None
    shared: dict[str, Any] = {"norm": {"linf": "Linf", "l2": "L2"}[ball.norm], "eps": ball.eps, "seed": 0}

    def make(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        attacks: Sequence[Any] = (
            torchattacks.APGD(model, steps=steps, loss="ce", n_restarts=1, **shared),
            torchattacks.APGDT(model, steps=steps, n_classes=10, n_restarts=1, **shared),
            torchattacks.FAB(model, steps=steps, multi_targeted=True, n_classes=10, n_restarts=1, **shared),
            torchattacks.Square(model, n_queries=queries, n_restarts=1, **shared),
        )
        return torchattacks.MultiAttack(attacks)  # type: ignore[no-any-return]

    return make
