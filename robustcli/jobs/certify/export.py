"""`certify --export DIR`: what stays unknown, for a complete verifier elsewhere.

DIR/model.onnx        the network, normalisation inside
DIR/vnnlib/ID.vnnlib  one question per sample
DIR/instances.csv     model, question and seconds to give it, a line per sample
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.data.split import Split
from robustcli.evaluation.certificates.onnx_file import export_onnx, needs_onnx
from robustcli.evaluation.certificates.vnnlib import check_norm, vnnlib
from robustcli.reporting.cells import amount
from robustcli.store.atomic import write_atomic

MODEL, QUESTIONS, INSTANCES = "model.onnx", "vnnlib", "instances.csv"
_SECONDS = 300  # per question, as in the verification competitions
_POINTS = 4  # of each of the first samples, where the file is compared with the network
_BATCH = 256


def check_export(ball: Ball) -> None:
    """Raises UsageError or ResourceError where `export` could write nothing; ask before the work begins."""
    check_norm(ball)
    needs_onnx()


def export(
    folder: Path,
    model: nn.Module,
    split: Split,
    positions: Tensor,
    ball: Ball,
    device: torch.device,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the network and the questions of the samples at `positions`, int64 [n].

    Returns ``{"folder", "samples", "difference"}``, the last the largest difference between the logits of
    file and network at random points of the first boxes; None without samples, where nothing is written.

    Raises as `check_export` and as `export_onnx`.
    """
    check_export(ball)
    if not len(positions):
        say("nothing stays unknown: nothing is exported")
        return {"folder": str(folder), "samples": 0, "difference": None}
    (folder / QUESTIONS).mkdir(parents=True, exist_ok=True)
    batches = list(positions.split(_BATCH))
    lines, difference = [], None
    for x, y, ids in split.stream(batches, device):
        if difference is None:
            difference = export_onnx(model, _points(x, ids, ball, seed), folder / MODEL)
        for image, label, sample in zip(x, y.tolist(), ids.tolist(), strict=True):
            name = f"{QUESTIONS}/{sample}.vnnlib"
            write_atomic(folder / name, vnnlib(image, label, len(split.classes), ball).encode())
            lines.append(f"{MODEL},{name},{_SECONDS}\n")
    write_atomic(folder / INSTANCES, "".join(lines).encode())
    asked = amount(len(lines), "open question")
    say(f"{asked} in {folder}; ONNX and network differ by {difference:.2g} at most")
    return {"folder": str(folder), "samples": len(lines), "difference": difference}


def _points(x: Tensor, ids: Tensor, ball: Ball, seed: int) -> Tensor:
    """The first images themselves, and random points of their balls."""
    x = x[:_POINTS]
    rng = RowRandom(seed, "export", ids[:_POINTS])
    drawn = [ball.random_point(x, rng) for _ in range(_POINTS)]
    return torch.cat([x, *drawn])
