"""The work of `robustcli certify`: certify, attack, compare, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from robustcli.assembly.lineage import begins_with
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting, prepare_to_measure
from robustcli.config.load import Loaded
from robustcli.evaluation.certificates.attacked import Attacked
from robustcli.evaluation.certificates.measured import Certification, Certified
from robustcli.evaluation.certificates.shards import CertificateStore
from robustcli.evaluation.header import Header
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.pulse import Beat
from robustcli.evaluation.shards import parse_part
from robustcli.jobs.certify.cost import certification_plan
from robustcli.jobs.certify.flags import CertifyFlags
from robustcli.jobs.certify.method import Method, Watch, check_model, method_of
from robustcli.jobs.certify.plan import CertifyPlan, attack_plan, numbers_of, radii
from robustcli.jobs.certify.report import report
from robustcli.jobs.measure import check_attacks
from robustcli.jobs.rerun import write_inputs
from robustcli.jobs.resuming import check_flags
from robustcli.jobs.sharded import header_of, open_sharded, with_source
from robustcli.records.alarm import Alarm
from robustcli.records.certify import CertificateRow
from robustcli.records.document import Document
from robustcli.runtime.signals import StopFlag
from robustcli.store.run import Run
from robustcli.terminal.console import Console
from robustcli.terminal.progress import Bar, Silent

_SHOWN = 8  # images on which the model is looked at first


def certify(loaded: Loaded, console: Console, flags: CertifyFlags) -> dict[str, Any]:
    """Certify as configured; returns the `certify` document.

    Raises UnreliableError E-INVERSION for a sample that was broken where it is certified.
    """
    document = Document("certify")
    check_flags(flags.resume, flags.overwrite)
    share = parse_part(flags.shard) if flags.shard else None
    config = with_source("certify", loaded.config, console, resume=flags.resume)
    setting = prepare_to_measure(config, console, begins_with(config), dry_run=flags.dry_run)
    model = ModelSource.of(setting, flags).to_measure(console)
    check_attacks(setting)
    work = Work(setting, model, console)
    numbers = numbers_of(share, work.shards)
    if flags.dry_run:
        return certification_plan(setting, model, work.method, work.plan, work.n, console)
    with open_sharded("certify", config, console, flags, flags.plugin) as run, work.stop:
        result, header = work.measure(run, numbers)
        return report(run, document, config, header, result, console, strict=flags.strict)


class Work:
    """One certification: the method, the attacks, and how far they are."""

    def __init__(self, setting: Setting, model: nn.Module, console: Console) -> None:
        self._setting, self._model, self._console = setting, model, console
        self.stop = StopFlag()
        self._tally = Tally(Silent(), 0)
        self._split, self._positions = samples(setting)
        self.n = len(self._positions)
        check_model(setting, model, self._few_images())
        self.method: Method = method_of(setting, model, Watch(self.stop.check, self._progress))
        self.plan: EvalPlan = attack_plan(setting, self.method, self.n)

    @property
    def shards(self) -> int:
        """Number of shards of the whole."""
        return -(-self.n // self._setting.config.certify.shard_size)

    def measure(self, run: Run, numbers: Sequence[int] | None) -> tuple[Certified, Header]:
        """What was found, and the header of its shards; numbers: of the shards to measure, None = all."""
        setting, method, console = self._setting, self.method, self._console
        size, opened = setting.config.certify.shard_size, []

        def open_store(plan: EvalPlan, alarms: list[Alarm], ids: Tensor) -> CertificateStore:
            header = self._header(plan, alarms, ids)
            opened.append(header)
            store = CertificateStore(run.path / "shards", header, console.warn)
            run.begin()  # a refused --resume must leave the run as it was
            write_inputs(run, setting.config)
            return store

        n = self.n if numbers is None else sum(min(size, self.n - k * size) for k in numbers)
        names = ", ".join(call.label for call in self.plan.attacks)
        title = f"{setting.config.eval.split} images"
        console.info(f"{n} {title}, {method.certifier.name} beside {names}")
        with console.progress(n, title) as bar:
            self._tally = tally = Tally(bar, n)
            certification = Certification(
                method.certifier,
                self._attacked(tally),
                setting.ball.eps,
                size,
                batch_size=setting.config.eval.batch_size,
                say=console.warn,
                at=tally.phase,
            )
            result = certification.run(
                self._split,
                self._positions,
                setting.device,
                open_store=open_store,
                numbers=numbers,
                done=tally.done,
            )
        return result, opened[0]

    def _attacked(self, tally: Tally) -> Attacked:
        method = self.method
        return Attacked(
            method.attacked,
            self.plan,
            radii(self._setting),
            confirm=method.confirm,
            reset=method.reset,
            stop=self.stop.check,
            say=self._console.warn,
            beat=tally.beat,
        )

    def _header(self, plan: EvalPlan, alarms: Sequence[Alarm], ids: Tensor) -> Header:
        setting, method = self._setting, self.method
        described = CertifyPlan(
            method.certifier.name,
            method.parameters,
            setting.ball,
            radii(setting),
            plan,
            setting.config.seed,
        )
        return header_of(setting, self._model, described, ids, alarms, setting.config.certify.shard_size)

    def _few_images(self) -> Tensor:
        """The first images of the samples, [B, C, H, W], on the device."""
        few: list[Tensor] = [self._positions[:_SHOWN]]
        x, _, _ = next(iter(self._split.stream(few, self._setting.device)))
        return x

    def _progress(self, samples: float) -> None:
        self._tally.certified(samples)


class Tally:
    """Certified and robust accuracy so far, shown beside the progress bar, inside a shard too."""

    def __init__(self, bar: Bar, total: int) -> None:
        self._bar, self._total, self._began = bar, total, time.perf_counter()
        self._n = self._proven = self._standing = self._measured = 0
        self._inside, self._at = 0.0, ""

    def done(self, rows: Sequence[CertificateRow], known: bool) -> None:
        """Add a shard. known: an earlier run measured it."""
        self._n += len(rows)
        self._measured += 0 if known else len(rows)
        self._proven += sum(row.status == "verified" for row in rows)
        self._standing += sum(row.right and row.broken_at is None for row in rows)
        self._inside = 0.0
        certified, robust = self._proven / self._n, self._standing / self._n
        self._bar.advance(len(rows), certified=f"{certified:.1%}", robust=f"{robust:.1%}")

    def phase(self, name: str) -> None:
        """What is done now."""
        self._at = name

    def certified(self, samples: float) -> None:
        """So many samples' worth of proof was done."""
        self._inside += samples
        self._bar.within(self._inside, self._left(), at=self._at)

    def beat(self, beat: Beat) -> None:
        """An attack is at work."""
        self._bar.within(self._inside, self._left(), at=beat.words)

    def _left(self) -> float | None:
        """Seconds to the end, at the speed so far; None while nobody knows."""
        done = self._measured + self._inside
        if not done:
            return None
        seconds = time.perf_counter() - self._began
        return max(0.0, self._total - self._n - self._inside) * seconds / done
