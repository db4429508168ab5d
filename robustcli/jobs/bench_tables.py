"""A benchmark as tables: steps, matrix products, batch sizes where they were tried, the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustcli.records.bench import BenchRow
from robustcli.reporting.cells import Cell
from robustcli.reporting.tables import Table

#: Column of the table of steps -> key of a step.
_STEP = {
    "work": "work",
    "precision": "precision",
    "search": "search",
    "images/s": "images_per_second",
    "slowest": "low",
    "fastest": "high",
    "TFLOP/s": "tflops",
    "share of peak": "mfu",
    "peak MiB": "peak_memory_mib",
}
_PRODUCT = {"side": "size", "TFLOP/s": "tflops", "slowest": "low", "fastest": "high"}
_SIZE = {
    "images": "batch_size",
    "images/s": "images_per_second",
    "slowest": "low",
    "fastest": "high",
    "peak MiB": "peak_memory_mib",
}


def bench_tables(row: BenchRow) -> list[Table]:
    """All tables of a benchmark, in the order in which they are read."""
    return [_steps(row), _products(row), *_sizes(row), _whole(row)]


def _steps(row: BenchRow) -> Table:
    on_cpu = [{**step, "precision": f"{step['precision']} on the CPU", "mfu": None} for step in row.cpu or ()]
    steps = [*row.steps, *on_cpu]
    least = min(step["repetitions"] for step in row.steps)
    notes = "; ".join(sorted({_note(step) for step in steps if step["note"]}))
    title = (
        f"{row.model} on {row.data}, {row.objective}, {row.adversary},"
        f" steps of {row.batch_size} on {row.device['device']}"
    )
    cells = [_cells(step, _STEP) for step in steps]
    return Table(title, tuple(_STEP), cells, f"Medians of {least} repetitions or more. {notes}".strip())


def _note(step: Mapping[str, Any]) -> str:
    """The note of one step, behind the names of its search or work and its precision."""
    return f"{step['search'] or step['work']} {step['precision']}: {step['note']}"


def _products(row: BenchRow) -> Table:
    cells = [[name, *_cells(product, _PRODUCT)] for name, product in row.peak.items()]
    return Table("matrix products (the peak)", ["precision", *_PRODUCT], cells)


def _sizes(row: BenchRow) -> list[Table]:
    """The table of batch sizes; [] when the size was given."""
    if row.batch_sizes is None:
        return []
    tried, largest = row.batch_sizes, row.batch_sizes["largest"]
    end = "memory was not the limit"
    if tried["out_of_memory"]:
        end = f"{largest} fits, {2 * largest} does not"
    cells = [_cells(size, _SIZE) for size in tried["rows"]]
    return [Table("batch sizes", tuple(_SIZE), cells, f"Fastest: {tried['fastest']}; {end}.")]


def _whole(row: BenchRow) -> Table:
    loop = row.training_loop
    rate = f"{loop['images_per_second']:.4g} images/s ({loop['low']:.4g} to {loop['high']:.4g})"
    waiting = f"({loop['waiting_low']:.1%} to {loop['waiting_high']:.1%})"
    facts: dict[str, str] = {
        "forward pass": f"{row.gflop_per_forward:.4g} GFLOP an image",
        "passes": f"{row.passes_per_image} an image and training step",
        "training loop": f"{rate}, data and augmentation included",
        "waiting for data": f"{loop['waiting_share']:.1%} of the loop {waiting}",
    }
    for work, ratio in (row.gpu_over_cpu or {}).items():
        facts[f"GPU over CPU, {work}"] = f"{ratio:.3g} times"
    if row.process_memory_mib:
        facts["peak memory of the process"] = f"{row.process_memory_mib:.0f} MiB"
    return Table("training as a whole", ["", "measured"], [list(fact) for fact in facts.items()])


def _cells(measured: Mapping[str, Any], columns: Mapping[str, str]) -> list[Cell]:
    """The measured values in the order of the columns; None for what was not measured."""
    return [measured.get(key) for key in columns.values()]
