"""What training costs on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from robustcli.records.common import SCHEMA_VERSION, from_fields, plain, rebuild
from robustcli.records.document import ENVELOPE

Measured = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """All measurements of one configuration.

    Args:
        device: its name, kind and memory, and the version of torch. threads: of the CPU.
        peak: precision -> rate of the fastest matrix product.
        batch_sizes: the sizes that were tried and what became of them; None when the size was given.
        model, parameters, data, batch_size, objective, adversary, step: what was measured.
        gflop_per_forward: of one image. passes_per_image: model passes of one training step.
        steps: attack and training steps, one entry per precision and kind of search.
        training_loop: the loop with its data.
        cpu: the same steps on the CPU. gpu_over_cpu: kind of step -> ratio of the fastest rates.
            Both are None where the CPU is what was measured.
        process_memory_mib: peak of the process; None where the system does not tell.
    """

    device: Measured
    threads: int
    peak: Mapping[str, Measured]
    batch_sizes: Measured | None
    model: str
    parameters: int
    data: str
    batch_size: int
    objective: str
    adversary: str
    step: str
    gflop_per_forward: float
    passes_per_image: int
    steps: Sequence[Measured]
    training_loop: Measured
    cpu: Sequence[Measured] | None
    gpu_over_cpu: Mapping[str, float] | None
    process_memory_mib: float | None

    def to_json(self) -> dict[str, Any]:
        """The keys of the `bench` document."""
        return {"schema_version": SCHEMA_VERSION, "kind": "bench", **plain(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> BenchRow:
        """The measurements of a `bench` document. Raises DataError E-RECORD as `rebuild`."""
        about = set(ENVELOPE) - {"schema_version"}
        row = {name: value for name, value in document.items() if name not in about}
        return rebuild(row, ("bench",), partial(from_fields, cls))
