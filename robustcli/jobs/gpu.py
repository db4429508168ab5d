"""`robustcli check-gpu`: what is there, what is missing, and how fast it is."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from robustcli.assembly.timing import Repeat, matmul_peak, precisions, timed
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.errors import ResourceError
from robustcli.models.build import build_model
from robustcli.models.info import ModelInfo
from robustcli.reporting.tables import Table
from robustcli.runtime.device import describe_devices, why_no_cuda
from robustcli.runtime.precision import bf16_native
from robustcli.runtime.seed import environment
from robustcli.terminal.console import Console

_BRIEF = Repeat(least=3, budget=0.3, warm=1)


def check_gpu(console: Console, *, require_cuda: bool, measure: bool = True) -> dict[str, Any]:
    """Describe and time each device; returns the document. Raises ResourceError (exit 6) with require_cuda and no CUDA."""
    began = time.perf_counter()
    devices = describe_devices()
    for row in devices:
        device = torch.device(str(row["device"]))
        row["bf16"] = bf16_native(device)
        if measure:
            row |= matmul_rates(device) | pgd_rate(device)
    missing = "" if torch.cuda.is_available() else why_no_cuda()
    console.table(_table(devices))
    console.info(f"CUDA: {torch.version.cuda or 'none in this build of torch'}, torch {torch.__version__}")
    if missing:
        fast = (
            "bf16 runs natively here"
            if bf16_native(torch.device("cpu"))
            else "no native bf16: training runs in fp32"
        )
        console.info(f"no CUDA device: {missing}")
        console.info(f"everything works on the CPU, slower ({fast}); start with: robustcli demo")
        if require_cuda:
            raise ResourceError(
                f"no CUDA device: {missing}",
                hint="install a CUDA build of torch and a driver, or drop --require-cuda",
                code="E-DEVICE",
            )
    seconds = round(time.perf_counter() - began, 3)
    return {
        "run": None,
        "seconds": seconds,
        "devices": devices,
        "cuda": not missing,
        "missing": missing,
        "environment": environment(),
    }


def matmul_rates(device: torch.device) -> dict[str, Any]:
    """TFLOP/s of a square matrix product in every precision of the device; 2 n^3 operations."""
    n = 8192 if device.type == "cuda" else 1024
    return {
        f"matmul_{kind.name}_tflops": round(matmul_peak(device, kind, [n], _BRIEF)["tflops"], 3)
        for kind in precisions(device)
    }


def pgd_rate(device: torch.device) -> dict[str, Any]:
    """Images per second of one PGD step (forward + input gradient) of ResNet-18 on 32x32 pixels, as the attacks run it."""
    batch = 512 if device.type == "cuda" else 16
    info = ModelInfo(num_classes=10, channels=3, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    model: nn.Module = build_model("resnet18", {}, info, seed=0).to(device).eval()
    x, y, ids = (
        torch.rand(batch, 3, 32, 32, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
        torch.arange(batch, device=device),
    )
    dtype = torch.bfloat16 if bf16_native(device) else torch.float32
    twin = SearchTwin(model, dtype=dtype)

    def step() -> None:
        oracle = Oracle(twin, x, Criterion(y), rng=RowRandom(0, "start", ids))
        pgd(oracle, x, Ball("linf", 8 / 255), steps=1)

    with frozen(model):
        rate = timed(step, device, replace(_BRIEF, budget=1.0)).rate(batch)["median"]
    return {"pgd_step_images_per_second": round(rate, 1), "pgd_precision": str(dtype).removeprefix("torch.")}


def _table(devices: list[dict[str, Any]]) -> Table:
    """One row per fact, one column per device."""
    keys = list(dict.fromkeys(key for row in devices for key in row if key != "device"))
    body = [[key.replace("_", " "), *(_shown(row.get(key), key) for row in devices)] for key in keys]
    return Table("devices", ["", *(str(row["device"]) for row in devices)], body)


def _shown(value: Any, key: str = "") -> str:
    if value is None or value == []:
        return "-"
    if key in ("memory", "free"):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
