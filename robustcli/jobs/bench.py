"""`robustcli bench`: what a configuration costs on this device, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from robustcli import registry
from robustcli.assembly.attacks import make_attacks
from robustcli.assembly.cost import bench_plan, passes_per_image
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.origin import pinned
from robustcli.assembly.samples import split_of
from robustcli.assembly.setting import Setting, prepare
from robustcli.assembly.sources import sources_of
from robustcli.assembly.throughput import Bench
from robustcli.assembly.timing import Precision, Repeat, matmul_peak, precisions
from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.data.mixture import epoch_size
from robustcli.errors import ResourceError, out_of_memory
from robustcli.jobs.bench_tables import bench_tables
from robustcli.jobs.rerun import same_again, write_inputs
from robustcli.jobs.verb_flags import BenchFlags
from robustcli.models.flops import flops
from robustcli.models.size import count_parameters
from robustcli.records.bench import BenchRow
from robustcli.records.document import Document
from robustcli.reporting.tables import Table
from robustcli.runtime.device import describe_devices, process_memory
from robustcli.runtime.signals import StopFlag
from robustcli.store.run import Run
from robustcli.store.rundir import open_run
from robustcli.terminal.console import Console
from robustcli.terminal.once import each_once

# Pairs hold the values of a full run and of --smoke.
#: Kind of device -> sides of the square products.
_PRODUCTS = {"cuda": ([2048, 4096, 8192, 16384], [1024, 2048]), "cpu": ([512, 1024, 2048], [256, 512])}
_REPEAT = (Repeat(), Repeat(budget=0.0, warm=1))
_LOOP_STEPS = (3, 1)  # of the training loop in one repetition
#: Batch sizes where the search begins and ends. On CUDA memory usually runs out before the last.
_SMALLEST, _LARGEST, _LARGEST_CPU = 16, 2**17, 512
_SLOWEST = 15.0  # seconds; the search ends before a step that would take longer
_ON_CPU = 64  # images per step of the comparison with the CPU, at most

Rows = list[dict[str, Any]]


def bench(loaded: Loaded, console: Console, flags: BenchFlags) -> dict[str, Any]:
    """Measure as configured; returns the `bench` document.

    Every number is the median of at least five timed repetitions.
    Raises ResourceError E-OOM: the batch does not fit. With auto_batch: not even the smallest one fits.
    """
    document = Document("bench")
    config = pinned(loaded.config)
    setting = prepare(config, console, parts=("train",), dry_run=flags.dry_run)
    split_of(setting.data, "train")
    model = ModelSource.of(setting, flags).to_train(console.warn, console.info)
    repeat = _REPEAT[flags.smoke]
    if flags.dry_run:
        return bench_plan(setting, model, precisions(setting.device), repeat, console)
    sources = sources_of(config, flags.plugin)
    with (
        open_run("bench", config.name, out=config.out, overwrite=flags.overwrite, sources=sources) as run,
        StopFlag() as stop,
    ):
        write_inputs(run, config)
        subject = Bench(setting, model, repeat, stop.check, each_once(console.warn))
        row = _measure(subject, console, flags)
        tables = bench_tables(row)
        for table in tables:
            console.table(table)
        answer = document.finish(run.path, row.to_json())
        for name in ("bench.json", "summary.json"):
            run.write_json(name, answer)
        run.write_text("summary.md", _summary(run, config, tables))
        run.status(state="done", code=0)
    return answer


def _measure(subject: Bench, console: Console, flags: BenchFlags) -> BenchRow:
    """Make all measurements, one after the other."""
    setting, device = subject.setting, subject.setting.device
    kinds = precisions(device)
    console.info(f"measuring on {device} in {', '.join(kind.name for kind in kinds)}: matrix products")
    peak = _peak(subject, kinds, flags.smoke)
    sizes = None
    batch = min(subject.batch, max(1, epoch_size(setting.data.train)))
    if flags.auto_batch:
        console.info(f"training steps at growing batch sizes, {kinds[-1].name}")
        sizes = _sizes(subject, device, flags.smoke)
        batch = sizes["fastest"]
    subject = subject.resized(batch)
    steps, training_loop = _steps(subject, kinds, console, flags.smoke)
    for step in steps:
        step["mfu"] = step["tflops"] / peak[step["precision"]]["tflops"]
    facts = _facts(subject)
    comparison: dict[str, Any] = {"cpu": None, "gpu_over_cpu": None}
    if device.type == "cuda":
        console.info("the same on the CPU")
        comparison = _against_cpu(subject, steps)
    return BenchRow(
        device=_device(device),
        threads=torch.get_num_threads(),
        peak=peak,
        batch_sizes=sizes,
        batch_size=batch,
        steps=steps,
        training_loop=training_loop,
        process_memory_mib=(process_memory() or 0) / 2**20 or None,
        **facts,
        **comparison,
    )


def _peak(subject: Bench, kinds: Sequence[Precision], smoke: bool) -> dict[str, dict[str, Any]]:
    """Precision -> rate of the fastest square matrix product."""
    device = subject.setting.device
    sides = _PRODUCTS.get(device.type, _PRODUCTS["cpu"])[smoke]
    return {kind.name: matmul_peak(device, kind, sides, subject.repeat, subject.stop) for kind in kinds}


def _steps(
    subject: Bench, kinds: Sequence[Precision], console: Console, smoke: bool
) -> tuple[Rows, dict[str, Any]]:
    """Attack steps and training steps in every precision, and the training loop with its data."""
    console.info(f"steps of {subject.batch} images: attack")
    try:
        rows = [subject.attack_step(kind, twin) for kind in kinds for twin in (True, False)]
        console.info("training")
        rows += [subject.training_step(kind) for kind in kinds]
        console.info("training loop with its data")
        return rows, subject.data(_LOOP_STEPS[smoke])
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"{subject.batch} images do not fit into memory",
            where="train.batch_size",
            hint="--batch-size auto finds what fits",
            code="E-OOM",
        ) from None


def _facts(subject: Bench) -> dict[str, Any]:
    """What is measured: model, data, work and its cost."""
    setting, config = subject.setting, subject.setting.config
    return {
        "model": config.model.label,
        "parameters": count_parameters(subject.model),
        "data": setting.data.name,
        "objective": config.objective.name,
        "adversary": _adversary(setting),
        "step": config.train.step.name,
        "gflop_per_forward": flops(subject.model, setting.data.shape) / 1e9,
        "passes_per_image": passes_per_image(setting),
    }


def _adversary(setting: Setting) -> str:
    """``pgd-10 on kl``: the attack of the training step and the loss that it ascends."""
    config = setting.config
    inner = registry.objectives.get(config.objective.name).facts.inner
    if inner is None:
        return "none"
    (attack,) = make_attacks([config.adversary], setting.ball.norm, "adversary")[:1]
    return f"{attack.label} on {inner}"


def _sizes(subject: Bench, device: torch.device, smoke: bool) -> dict[str, Any]:
    """Training steps at batch sizes that double; the rows, the fastest size and the largest one.

    On CUDA the sizes double until memory runs out, which `out_of_memory` tells. `largest` is the largest size
    that was measured.
    """
    candidates = _candidates(device, smoke)
    rows, full = subject.sizes(precisions(device)[-1], candidates, _SLOWEST)
    if not rows:
        raise ResourceError(
            f"{candidates[0]} images do not fit into memory", hint="choose a smaller model", code="E-OOM"
        )
    fastest = max(rows, key=lambda row: float(row["images_per_second"]))
    return {
        "rows": rows,
        "fastest": fastest["batch_size"],
        "largest": rows[-1]["batch_size"],
        "out_of_memory": full,
    }


def _candidates(device: torch.device, smoke: bool) -> list[int]:
    if smoke:
        return [8, 16]
    last = _LARGEST if device.type == "cuda" else _LARGEST_CPU
    return [_SMALLEST << k for k in range((last // _SMALLEST).bit_length())]


def _against_cpu(subject: Bench, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The CPU's steps, and per work the ratio of images/s: fastest precision here over the CPU's fastest.

    Each device has a batch size of its own. None where the model cannot be copied.
    """
    host = torch.device("cpu")
    other = subject.resized(min(subject.batch, _ON_CPU)).on(host)
    if other is None:
        return {"cpu": None, "gpu_over_cpu": None}
    kind = precisions(host)[-1]
    on_cpu = [other.attack_step(kind, True), other.training_step(kind)]
    ratios = {slow["work"]: _fastest(rows, slow["work"]) / slow["images_per_second"] for slow in on_cpu}
    return {"cpu": on_cpu, "gpu_over_cpu": ratios}


def _fastest(rows: Sequence[Mapping[str, Any]], work: str) -> float:
    """Images/s of the fastest row of this work."""
    return max(float(row["images_per_second"]) for row in rows if row["work"] == work)


def _device(device: torch.device) -> dict[str, Any]:
    known = next((row for row in describe_devices() if row["device"] in (str(device), device.type)), {})
    return {
        "device": str(device),
        "name": known.get("name"),
        "memory": known.get("memory"),
        "torch": str(torch.__version__),
    }


def _summary(run: Run, config: Config, tables: Sequence[Table]) -> str:
    code = config.model.plugin
    command = "robustcli bench" if code is None else f"robustcli bench --plugin {code.spec}"
    lines = (f"# Benchmark: {config.name}", "", same_again(run, command), "")
    return "\n".join([*lines, *(table.markdown() for table in tables)])
