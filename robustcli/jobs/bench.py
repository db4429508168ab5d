"""`robustcli bench`: what a configuration costs on this device, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from robustcli import registry
from robustcli.assembly.attacks import make_attacks
from robustcli.assembly.cost import passes_per_image
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.origin import pinned
from robustcli.assembly.samples import split_of
from robustcli.assembly.setting import Setting, prepare
from robustcli.assembly.throughput import Bench
from robustcli.assembly.timing import Repeat, matmul_peak, precisions
from robustcli.config.load import Loaded
from robustcli.data.mixture import epoch_size
from robustcli.errors import ResourceError, out_of_memory, printable
from robustcli.jobs.evaluate import begin
from robustcli.models.size import count_parameters, flops
from robustcli.reporting.tables import Table
from robustcli.runtime.device import describe_devices, process_memory
from robustcli.runtime.signals import StopFlag
from robustcli.store.run import Run
from robustcli.store.rundir import open_run
from robustcli.terminal.console import Console

#: (full, smoke) sides of the square products, by kind of device.
_PRODUCTS = {"cuda": ([2048, 4096, 8192, 16384], [1024, 2048]), "cpu": ([512, 1024, 2048], [256, 512])}
_FULL, _SMOKE = Repeat(), Repeat(budget=0.0, warm=1)
_LARGEST, _SLOWEST = 2**17, 15.0  # images, seconds: where the search for a batch size ends at the latest
_ON_CPU = 64  # images per step of the comparison with the CPU, at most


@dataclass(frozen=True)
class BenchFlags:
    """What only the command line says of a benchmark."""

    overwrite: bool = False
    smoke: bool = False
    auto_batch: bool = False
    plugin: str | None = None
    allow_pickle: bool = False


def bench(loaded: Loaded, console: Console, flags: BenchFlags) -> dict[str, Any]:
    """Measure as configured; returns the `bench` document. Every number is the median of at least five timed repetitions.

    Raises ResourceError E-OOM: the batch does not fit (with auto_batch: not even the smallest).
    """
    config = pinned(loaded.config)
    began = time.perf_counter()
    setting = prepare(config, console)
    split_of(setting.data, "train")
    model = ModelSource.of(setting, flags).to_train()
    with open_run("bench", config.name, out=config.out, overwrite=flags.overwrite) as run, StopFlag() as stop:
        begin(run, config)
        subject = Bench(setting, model, _SMOKE if flags.smoke else _FULL, stop.check, _once(console.warn))
        found = _measured(subject, console, flags)
        tables = _tables(found)
        for table in tables:
            console.table(table)
        document = {
            "run": str(run.path),
            "seconds": round(time.perf_counter() - began, 3),
            "kind": "bench",
            **found,
        }
        for name in ("bench.json", "summary.json"):
            run.write_json(name, {"schema_version": 1, "ok": True, "verb": "bench", **document})
        run.write_text("summary.md", _summary(run, config.name, tables))
        run.status(state="done", code=0)
    return document


def _once(warn: Callable[[str], None]) -> Callable[[str], None]:
    """Each warning at its first time only: the same step is made for every precision."""
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            warn(text)

    return say


def _measured(subject: Bench, console: Console, flags: BenchFlags) -> dict[str, Any]:
    """All measurements; shares of the peak are added where the peak of that precision is known."""
    setting, device = subject.setting, subject.setting.device
    kinds = precisions(device)
    sides = _PRODUCTS.get(device.type, _PRODUCTS["cpu"])[flags.smoke]
    console.info(f"measuring on {device} in {', '.join(kind.name for kind in kinds)}: matrix products")
    peaks = {kind.name: matmul_peak(device, kind, sides, subject.repeat, subject.stop) for kind in kinds}
    found: dict[str, Any] = {
        "device": _device(device),
        "threads": torch.get_num_threads(),
        "peak": peaks,
        "batch_sizes": None,
    }
    batch = min(subject.batch, max(1, epoch_size(setting.data.train)))
    if flags.auto_batch:
        console.info(f"training steps at growing batch sizes, {kinds[-1].name}")
        found["batch_sizes"] = _sizes(subject, device, flags.smoke)
        batch = found["batch_sizes"]["fastest"]
    subject = subject.resized(batch)
    console.info(f"steps of {batch} images: attack")
    try:
        rows = [subject.attack_step(kind, twin) for kind in kinds for twin in (True, False)]
        console.info("training")
        rows += [subject.training_step(kind) for kind in kinds]
        console.info("training loop with its data")
        data = subject.data(1 if flags.smoke else 3)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        hint = "--batch-size auto finds what fits"
        raise ResourceError(
            f"{batch} images do not fit into memory", where="train.batch_size", hint=hint, code="E-OOM"
        ) from None
    for row in rows:
        row["mfu"] = row["tflops"] / peaks[row["precision"]]["tflops"]
    cost = {
        "gflop_per_forward": flops(subject.model, setting.data.shape) / 1e9,
        "passes_per_image": passes_per_image(setting),
    }
    about = {
        "model": setting.config.model.name,
        "parameters": count_parameters(subject.model),
        "data": setting.data.name,
        "batch_size": batch,
    }
    work = {
        "objective": setting.config.objective.name,
        "adversary": _adversary(setting),
        "step": setting.config.train.step.name,
    }
    found |= {
        **about,
        **work,
        **cost,
        "steps": rows,
        "training_loop": data,
        "cpu": None,
        "gpu_over_cpu": None,
    }
    if device.type == "cuda":
        console.info("the same on the CPU")
        found |= _against_cpu(subject, rows)
    return {**found, "process_memory_mib": (process_memory() or 0) / 2**20 or None}


def _adversary(setting: Setting) -> str:
    """``pgd-10 on kl``: the attack of the step and the loss it ascends."""
    inner = registry.objectives.get(setting.config.objective.name).facts.inner
    return (
        "none"
        if inner is None
        else f"{make_attacks([setting.config.adversary], setting.ball.norm, 'adversary')[0].label} on {inner}"
    )


def _sizes(subject: Bench, device: torch.device, smoke: bool) -> dict[str, Any]:
    """Doubling: on CUDA until memory runs out, elsewhere a few sizes. `largest` is the largest that fitted where `out_of_memory`."""
    first, last = (16, _LARGEST) if device.type == "cuda" else (16, 512)
    candidates = [8, 16] if smoke else [first << k for k in range((last // first).bit_length())]
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


def _against_cpu(subject: Bench, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest precision of each device against the other's, in images/s, each at its own batch size."""
    host = torch.device("cpu")
    other = subject.resized(min(subject.batch, _ON_CPU)).on(host)
    kind = precisions(host)[-1]
    on_cpu = [other.attack_step(kind, True), other.training_step(kind)]
    best = [
        max(float(row["images_per_second"]) for row in rows if row["work"] == slow["work"]) for slow in on_cpu
    ]
    ratios = {slow["work"]: fast / slow["images_per_second"] for fast, slow in zip(best, on_cpu, strict=True)}
    return {"cpu": on_cpu, "gpu_over_cpu": ratios}


def _device(device: torch.device) -> dict[str, Any]:
    known = next((row for row in describe_devices() if row["device"] in (str(device), device.type)), {})
    return {
        "device": str(device),
        "name": known.get("name"),
        "memory": known.get("memory"),
        "torch": str(torch.__version__),
    }


# ---- what people read ------------------------------------------------------------------------------------------


def _tables(found: dict[str, Any]) -> list[Table]:
    """Steps, matrix products, batch sizes where they were tried, and the rest."""
    steps = [
        *found["steps"],
        *({**row, "precision": f"{row['precision']} on the CPU", "mfu": None} for row in found["cpu"] or ()),
    ]
    names = (
        "work",
        "precision",
        "search",
        "images_per_second",
        "low",
        "high",
        "tflops",
        "mfu",
        "peak_memory_mib",
    )
    shown = (
        "work",
        "precision",
        "search",
        "images/s",
        "slowest",
        "fastest",
        "TFLOP/s",
        "share of peak",
        "peak MiB",
    )
    many = min(row["repetitions"] for row in found["steps"])
    notes = sorted(
        {f"{row['search'] or row['work']} {row['precision']}: {row['note']}" for row in steps if row["note"]}
    )
    note = f"Medians of {many} repetitions or more. " + "; ".join(notes)
    title = f"{found['model']} on {found['data']}, {found['objective']}, {found['adversary']}, steps of {found['batch_size']} on {found['device']['device']}"
    made = [Table(title, shown, [[row.get(name) for name in names] for row in steps], note.strip())]
    products = [
        [name, row["size"], row["tflops"], row["low"], row["high"]] for name, row in found["peak"].items()
    ]
    made.append(
        Table("matrix products (the peak)", ["precision", "side", "TFLOP/s", "slowest", "fastest"], products)
    )
    if found["batch_sizes"]:
        tried = found["batch_sizes"]
        rows = [
            [row["batch_size"], row["images_per_second"], row["low"], row["high"], row["peak_memory_mib"]]
            for row in tried["rows"]
        ]
        end = (
            f"{tried['largest']} fits, {2 * tried['largest']} does not"
            if tried["out_of_memory"]
            else "memory was not the limit"
        )
        made.append(
            Table(
                "batch sizes",
                ["images", "images/s", "slowest", "fastest", "peak MiB"],
                rows,
                f"Fastest: {tried['fastest']}; {end}.",
            )
        )
    loop = found["training_loop"]
    facts = [
        ["forward pass", f"{found['gflop_per_forward']:.4g} GFLOP an image"],
        ["passes", f"{found['passes_per_image']} an image and training step"],
    ]
    facts.append(
        [
            "training loop",
            f"{loop['images_per_second']:.4g} images/s ({loop['low']:.4g} to {loop['high']:.4g}), data and augmentation included",
        ]
    )
    facts.append(
        [
            "waiting for data",
            f"{loop['waiting_share']:.1%} of the loop ({loop['waiting_low']:.1%} to {loop['waiting_high']:.1%})",
        ]
    )
    facts += [
        [f"GPU over CPU, {work}", f"{ratio:.3g} times"]
        for work, ratio in (found["gpu_over_cpu"] or {}).items()
    ]
    if found["process_memory_mib"]:
        facts.append(["peak memory of the process", f"{found['process_memory_mib']:.0f} MiB"])
    return [*made, Table("training as a whole", ["", "measured"], facts)]


def _summary(run: Run, name: str, tables: list[Table]) -> str:
    command = printable(f"robustcli bench {run.path / 'config.resolved.yaml'}").replace("`", " ")
    return "\n".join(
        [
            f"# Benchmark: {name}",
            "",
            f"The same again: `{command}`.",
            "",
            *(table.markdown() for table in tables),
        ]
    )
