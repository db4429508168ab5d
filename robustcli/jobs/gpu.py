"""`robustcli check-gpu`: which devices there are, what is missing, and how fast they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from robustcli.assembly.timing import Repeat, matmul_peak, precisions, timed
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.errors import ResourceError
from robustcli.jobs.verb_flags import CheckFlags
from robustcli.models.build import build_model
from robustcli.models.info import ModelInfo
from robustcli.records.document import Document
from robustcli.reporting.tables import Table
from robustcli.runtime.device import describe_devices, why_no_cuda
from robustcli.runtime.precision import bf16_native
from robustcli.runtime.seed import environment
from robustcli.terminal.console import Console

_BRIEF = Repeat(least=3, budget=0.3, warm=1)
_BYTES = ("memory", "free")
# Kind of device -> how much work keeps it busy; the CPU's for all others.
_SIDE = {"cuda": 8192, "cpu": 1024}
_BATCH = {"cuda": 512, "cpu": 16}


def check_gpu(console: Console, flags: CheckFlags) -> dict[str, Any]:
    """Describe each device, and time it with `measure`; returns the document.

    Raises ResourceError (exit 6) with `require_cuda` and no CUDA.
    """
    document = Document("check-gpu")
    devices = describe_devices()
    for row in devices:
        device = torch.device(str(row["device"]))
        row["bf16"] = bf16_native(device)
        if flags.measure:
            row |= _matmul_rates(device) | _pgd_rate(device)
    missing = "" if torch.cuda.is_available() else why_no_cuda()
    console.table(_table(devices))
    console.info(f"CUDA: {torch.version.cuda or 'none in this build of torch'}, torch {torch.__version__}")
    if missing:
        _tell_missing(missing, console, flags.require_cuda)
    facts = {"devices": devices, "cuda": not missing, "missing": missing, "environment": environment()}
    return document.finish(None, facts)


def _tell_missing(missing: str, console: Console, require_cuda: bool) -> None:
    """Say why there is no CUDA device and what works without one. Raises ResourceError with require_cuda."""
    native = bf16_native(torch.device("cpu"))
    fast = "bf16 runs natively here" if native else "no native bf16: training runs in fp32"
    console.info(f"no CUDA device: {missing}")
    console.info(f"everything works on the CPU, slower ({fast}); start with: robustcli demo")
    if require_cuda:
        raise ResourceError(
            f"no CUDA device: {missing}",
            hint="install a CUDA build of torch and a driver, or drop --require-cuda",
            code="E-DEVICE",
        )


def _matmul_rates(device: torch.device) -> dict[str, Any]:
    """TFLOP/s of a square matrix product in every precision of the device; 2 n^3 operations."""
    n = _SIDE.get(device.type, _SIDE["cpu"])
    return {
        f"matmul_{kind.name}_tflops": round(matmul_peak(device, kind, [n], _BRIEF)["tflops"], 3)
        for kind in precisions(device)
    }


def _pgd_rate(device: torch.device) -> dict[str, Any]:
    """Images per second of one PGD step (forward + input gradient) of ResNet-18 on 32x32 pixels."""
    batch = _BATCH.get(device.type, _BATCH["cpu"])
    info = ModelInfo(num_classes=10, channels=3, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = build_model("resnet18", {}, info, seed=0).to(device).eval()
    x = torch.rand(batch, 3, 32, 32, device=device)
    y = torch.zeros(batch, dtype=torch.int64, device=device)
    ids = torch.arange(batch, device=device)
    dtype = torch.bfloat16 if bf16_native(device) else torch.float32
    twin = SearchTwin(model, dtype=dtype)  # what attacks search on

    def step() -> None:
        oracle = Oracle(twin, x, Criterion(y), rng=RowRandom(0, "start", ids))
        pgd(oracle, x, Ball("linf", 8 / 255), steps=1)

    with frozen(model):
        rate = timed(step, device, replace(_BRIEF, budget=1.0)).rate(batch)["median"]
    return {"pgd_step_images_per_second": round(rate, 1), "pgd_precision": str(dtype).removeprefix("torch.")}


def _table(devices: list[dict[str, Any]]) -> Table:
    """One row per fact, one column per device."""
    keys = list(dict.fromkeys(key for row in devices for key in row))
    body = [
        [key.replace("_", " "), *(_shown(row.get(key), key) for row in devices)]
        for key in keys
        if key != "device"
    ]
    return Table("devices", ["", *(str(row["device"]) for row in devices)], body)


def _shown(value: Any, key: str) -> str:
    """One fact as text; bytes as GiB."""
    if value is None or value == []:
        return "-"
    if key in _BYTES:
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
