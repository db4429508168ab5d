"""`robustcli attack`: the images that break a model, as 8-bit PNGs that were read back and scored again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.assembly.compose import Setting, prepare
from robustcli.assembly.cost import evaluation_plan
from robustcli.assembly.origin import pinned
from robustcli.assembly.subjects import model_of
from robustcli.config.load import Loaded
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.errors import DataError
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.lattice import from_lattice, to_lattice
from robustcli.evaluation.result import BatchOutcome
from robustcli.jobs.evaluate import EvalFlags, begin, check_request, measure, report
from robustcli.reporting.cells import format_eps
from robustcli.reporting.gallery import gallery
from robustcli.runtime.signals import StopFlag
from robustcli.store.atomic import JsonLines, write_atomic
from robustcli.store.run import Run
from robustcli.store.rundir import open_run
from robustcli.terminal.console import Console

_MODES = {1: "L", 3: "RGB"}


def attack(loaded: Loaded, console: Console, flags: EvalFlags) -> dict[str, Any]:
    """Attack as configured; returns the `attack` document of the machine contract."""
    config = pinned(loaded.config)
    began = time.perf_counter()
    setting = prepare(config, console)
    model = model_of(setting, console, flags)
    if flags.dry_run:
        return evaluation_plan(setting, model, config.attacks, console)
    check_request(setting, [], None, False)
    if setting.data.shape[0] not in _MODES:
        raise DataError(
            f"images of {setting.data.shape[0]} channels cannot be written as PNG",
            hint="1 (grey) and 3 (RGB) can",
        )
    with (
        open_run("attack", config.name, out=config.out, overwrite=flags.overwrite) as run,
        StopFlag() as stop,
    ):
        begin(run, config)
        writer = ImageWriter(setting, model, run)
        result, rows = measure(setting, model, console, stop.check, done=writer.take, audit=False)
        more = writer.close(console)
        document = report(run, "attack", config, result, rows, console, began, more)
    return document


class ImageWriter:
    """Writes each adversarial image as PNG, reads it back, scores it again with the judge, and collects the gallery."""

    def __init__(self, setting: Setting, model: nn.Module, run: Run) -> None:
        self.setting, self.model, self.run = setting, model, run
        self.folder = run.path / "images"
        self.folder.mkdir(exist_ok=True)
        self.lines = JsonLines(run.path / "images.jsonl")
        self.limit = setting.config.attack.save
        self.written = self.scored = self._right_8bit = self._right_float = 0
        self._shown: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str, str]] = []

    @property
    def robust_acc_8bit(self) -> float | None:
        """Share of all images that are still classified correctly as 8-bit images in the ball."""
        return self._right_8bit / self.scored if self.scored else None

    @property
    def robust_acc_float(self) -> float | None:
        """The same share before rounding, over the same images."""
        return self._right_float / self.scored if self.scored else None

    def take(self, outcome: BatchOutcome) -> None:
        """One evaluated batch: round to 8 bits, judge all, write the broken ones and read them back."""
        x, y = outcome.x, outcome.y
        levels = to_lattice(x, outcome.x_adv, self.setting.ball)
        with frozen(self.model):
            ruling = Judge(self.model, self.setting.ball, draws=outcome.draws).rule(
                x, from_lattice(levels), Criterion(y, outcome.goal)
            )
        broken = outcome.correct & ruling.hit & (True if outcome.goal is None else outcome.goal != y)
        self._right_8bit += int((outcome.correct & ~broken).sum())
        self._right_float += int(outcome.survivors.sum())
        self.scored += len(y)
        self._keep(x, levels, y, ruling.predicted, broken)
        rows = broken.nonzero()[:, 0]
        rows = rows if self.limit is None else rows[: max(0, self.limit - self.written)]
        if len(rows):
            self._write(outcome, rows, levels[rows], ruling.predicted[rows], ruling.distance[rows])

    def _write(
        self, outcome: BatchOutcome, rows: Tensor, levels: Tensor, predicted: Tensor, distance: Tensor
    ) -> None:
        """The chosen rows as PNG files, each compared with what it reads back as, and their lines."""
        classes = self.setting.data.classes
        for k, image, label, far in zip(
            rows.tolist(), levels.cpu(), predicted.tolist(), distance.tolist(), strict=True
        ):
            name = classes[int(outcome.y[k])]
            path = self._path(int(outcome.ids[k]), name)
            write_atomic(path, encode_png(image))
            if not torch.equal(read_png(path), image):
                raise DataError("an adversarial image did not survive its file", where=str(path))
            row: dict[str, Any] = {"id": int(outcome.ids[k]), "file": path.name, "label": name}
            row |= {
                "clean_predicted": classes[int(outcome.clean_predicted[k])],
                "predicted_8bit": classes[label],
                "distance_8bit": far,
                "broken_8bit": True,
            }
            self.lines.write(row)
        self.written += len(rows)

    def _path(self, sample: int, name: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:40]
        return self.folder / f"{sample:06d}_{safe}_adv.png"

    def _keep(self, x: Tensor, levels: Tensor, y: Tensor, predicted: Tensor, broken: Tensor) -> None:
        """Up to `attack.gallery` broken images for the picture."""
        for k in broken.nonzero()[:, 0].tolist():
            if len(self._shown) >= self.setting.config.attack.gallery:
                return
            clean = (x[k].cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            classes = self.setting.data.classes
            self._shown.append(
                (
                    clean,
                    levels[k].cpu().permute(1, 2, 0).numpy(),
                    classes[int(y[k])],
                    classes[int(predicted[k])],
                )
            )

    def close(self, console: Console) -> dict[str, Any]:
        """The gallery picture and the two numbers; returns what the document says of the images."""
        self.lines.close()
        if self._shown:
            path = self.run.path / "plots" / "gallery.png"
            clean, adversarial, true, predicted = zip(*self._shown, strict=True)
            ball = (
                f"{self.setting.ball.norm}, eps {format_eps(self.setting.ball.eps, self.setting.ball.norm)}"
            )
            gallery(
                path,
                np.stack(clean),
                np.stack(adversarial),
                list(true),
                list(predicted),
                amplify=float(self.setting.config.attack.amplify),
                title=ball,
            )
            console.info(f"gallery: {path}")
        else:
            console.info("no gallery: no image was broken")
        if self.scored:
            both = f"{self.robust_acc_float:.1%} as floats, {self.robust_acc_8bit:.1%} as 8-bit images, of {self.scored}"
            console.info(f"robust accuracy {both}; {self.written} broken images written to {self.folder}")
        scores = {"robust_acc_8bit": self.robust_acc_8bit, "robust_acc_float": self.robust_acc_float}
        return {"images": str(self.folder), "images_written": self.written, **scores}


def encode_png(image: Tensor) -> bytes:
    """uint8 [C, H, W], C = 1 or 3, as PNG bytes."""
    import io

    from PIL import Image

    pixels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, mode=_MODES[pixels.shape[2]]).save(
        buffer, format="PNG"
    )
    return buffer.getvalue()


def read_png(path: Path) -> Tensor:
    """uint8 [C, H, W] of a PNG written by `encode_png`."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()
