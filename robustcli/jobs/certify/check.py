"""`certify --check FILE`: whether a certificate holds, or a random part of a folder of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.data.split import Split
from robustcli.errors import DataError
from robustcli.evaluation.certificates.check import Recheck
from robustcli.evaluation.certificates.document import FOLDER, Certificate, read_certificate, refused
from robustcli.terminal.console import Console

FILES = 10  # of a folder that are checked


def check(
    file: Path, model: nn.Module, split: Split, console: Console, *, device: torch.device
) -> dict[str, Any]:
    """Check one certificate, or up to 10 random ones of a folder (a run, or its ``certificates/``).

    Args:
        file: ``certificates/ID.json``, or the folder.
        model: the network that it should be about, on `device`.
        split: the images, found by their ids.
        console: told what holds.
        device: where to compute.

    Returns ``{"holds": True, "checked": [{"file", "id", "label", "radius", "norm", "method", "again"}]}``.

    Raises DataError E-CERTIFICATE for the first certificate that does not hold; E-FILE for a folder without.
    """
    checked = []
    for path in _chosen(file):
        claim = read_certificate(path)
        x = _image(claim, split, device, str(path))
        again = Recheck(claim, model, x, str(path), secrets.randbits(63))()
        console.info(
            f"{path.name}: holds: class {claim.label} within {claim.norm} {claim.radius:.6g} ({claim.method})"
        )
        checked.append(
            {
                "file": str(path),
                "id": claim.id,
                "label": claim.label,
                "radius": claim.radius,
                "norm": claim.norm,
                "method": claim.method,
                "again": again,
            }
        )
    return {"holds": True, "checked": checked}


def _chosen(file: Path) -> Iterator[Path]:
    """The file; of a folder up to `FILES` random ones, by name."""
    if not file.is_dir():
        yield file
        return
    inner = file / FOLDER
    folder = inner if inner.is_dir() else file
    found = sorted(folder.glob("*.json"))
    if not found:
        raise DataError(
            "no certificates lie there",
            where=str(folder),
            hint="give certificates/ID.json of a run of certify",
            code="E-FILE",
        )
    chosen = secrets.SystemRandom().sample(found, min(FILES, len(found)))
    yield from sorted(chosen)


def _image(claim: Certificate, split: Split, device: torch.device, where: str) -> Tensor:
    """Pixels [C, H, W] of the sample. Raises DataError where the data have none of its id."""
    places = (split.ids == claim.id).nonzero()[:, 0]
    if not len(places):
        raise refused(f"the data have no sample {claim.id}", where)
    x, _, _ = next(iter(split.stream([places[:1]], device)))
    return x[0]
