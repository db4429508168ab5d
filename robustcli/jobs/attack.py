"""`robustcli attack`: the images that break a model, as 8-bit PNGs that were read back and scored again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.config.load import Loaded
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.errors import DataError
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.lattice import from_lattice, to_lattice
from robustcli.evaluation.robust import BatchOutcome
from robustcli.jobs.compose import Setting, eval_plan, prepare
from robustcli.jobs.evaluate import EvalFlags, begin, check_request, measure, report
from robustcli.jobs.plan import evaluation_plan
from robustcli.jobs.subjects import model_of
from robustcli.reporting.cells import format_eps
from robustcli.reporting.gallery import gallery
from robustcli.runtime.atomic import JsonLines, write_atomic
from robustcli.runtime.console import Console
from robustcli.runtime.run import Run
from robustcli.runtime.rundir import open_run
from robustcli.runtime.signals import StopFlag

_MODES = {1: "L", 3: "RGB"}


def attack(loaded: Loaded, console: Console, flags: EvalFlags) -> dict[str, Any]:
    """Attack as configured; returns the `attack` document of the machine contract."""
    config = loaded.config
    began = time.perf_counter()
    setting = prepare(config, console)
    model = model_of(setting, console, flags)
    if flags.dry_run:
        return evaluation_plan(setting, model, config.attacks, console)
    eval_plan(setting, config.attacks, target=config.eval.target)  # a fault of an attack is found before the run directory is made
    check_request(setting, [], None, False)
    if setting.data.shape[0] not in _MODES:
        raise DataError(f"images of {setting.data.shape[0]} channels cannot be written as PNG", hint="1 (grey) and 3 (RGB) can")
    with open_run("attack", config.name, out=config.out, overwrite=flags.overwrite) as run, StopFlag() as stop:
        begin(run, setting)
        writer = ImageWriter(setting, model, run)
        result, rows = measure(setting, model, console, stop.check, done=writer.take)
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
        self.written = self._right_8bit = self._right_float = 0
        self._shown: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str, str]] = []

    @property
    def robust_acc_8bit(self) -> float | None:
        """Share of the written images that are still classified correctly after the round trip through a file."""
        return self._right_8bit / self.written if self.written else None

    @property
    def robust_acc_float(self) -> float | None:
        """The same share before rounding, over the same images."""
        return self._right_float / self.written if self.written else None

    def take(self, outcome: BatchOutcome) -> None:
        """One evaluated batch: write, read back, judge."""
        room = len(outcome.y) if self.limit is None else min(len(outcome.y), self.limit - self.written)
        if room <= 0:
            return
        x, y, x_adv = outcome.x[:room], outcome.y[:room], outcome.x_adv[:room]
        levels = to_lattice(x, x_adv, self.setting.ball)
        paths = [self._path(int(i), name) for i, name in zip(outcome.ids[:room], self._names(y), strict=True)]
        for path, image in zip(paths, levels.cpu(), strict=True):
            write_atomic(path, encode_png(image))
        loaded = torch.stack([read_png(path) for path in paths]).to(x.device)
        if not torch.equal(loaded, levels):
            raise DataError("an adversarial image did not survive its file", where=str(self.folder))
        with frozen(self.model):
            goal = None if outcome.goal is None else outcome.goal[:room]
            ruling = Judge(self.model, self.setting.ball, draws=outcome.draws).rule(x, from_lattice(loaded), Criterion(y, goal))
        broken = outcome.correct[:room] & ruling.hit & (True if goal is None else goal != y)
        standing = outcome.survivors[:room]
        self._right_8bit += int((outcome.correct[:room] & ~broken).sum())
        self._right_float += int(standing.sum())
        self.written += room
        self._record(outcome, paths, ruling.predicted, ruling.distance, broken)
        self._keep(x, loaded, y, ruling.predicted, broken)

    def _names(self, y: Tensor) -> list[str]:
        return [self.setting.data.classes[int(k)] for k in y]

    def _path(self, sample: int, name: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:40]
        return self.folder / f"{sample:06d}_{safe}_adv.png"

    def _record(self, outcome: BatchOutcome, paths: list[Path], predicted: Tensor, distance: Tensor, broken: Tensor) -> None:
        classes = self.setting.data.classes
        for k, path in enumerate(paths):
            row: dict[str, Any] = {"id": int(outcome.ids[k]), "file": path.name, "label": classes[int(outcome.y[k])]}
            row |= {"clean_predicted": classes[int(outcome.clean_predicted[k])]}
            row |= {"predicted_8bit": classes[int(predicted[k])], "distance_8bit": float(distance[k]), "broken_8bit": bool(broken[k])}
            self.lines.write(row)

    def _keep(self, x: Tensor, levels: Tensor, y: Tensor, predicted: Tensor, broken: Tensor) -> None:
        """Up to `attack.gallery` broken images for the picture."""
        for k in broken.nonzero()[:, 0].tolist():
            if len(self._shown) >= self.setting.config.attack.gallery:
                return
            clean = (x[k].cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            classes = self.setting.data.classes
            self._shown.append((clean, levels[k].cpu().permute(1, 2, 0).numpy(), classes[int(y[k])], classes[int(predicted[k])]))

    def close(self, console: Console) -> dict[str, Any]:
        """The gallery picture and the two numbers; returns what the document says of the images."""
        self.lines.close()
        if self._shown:
            path = self.run.path / "plots" / "gallery.png"
            clean, adversarial, true, predicted = zip(*self._shown, strict=True)
            ball = f"{self.setting.ball.norm}, eps {format_eps(self.setting.ball.eps, self.setting.ball.norm)}"
            gallery(path, np.stack(clean), np.stack(adversarial), list(true), list(predicted), amplify=float(self.setting.config.attack.amplify), title=ball)
            console.info(f"gallery: {path}")
        if self.written:
            both = f"{self.robust_acc_float:.1%} as floats, {self.robust_acc_8bit:.1%} as 8-bit files read back"
            console.info(f"{self.written} images written to {self.folder}: robust accuracy {both}")
        scores = {"robust_acc_8bit": self.robust_acc_8bit, "robust_acc_float": self.robust_acc_float}
        return {"images": str(self.folder), "images_written": self.written, **scores}


def encode_png(image: Tensor) -> bytes:
    """uint8 [C, H, W], C = 1 or 3, as PNG bytes."""
    import io

    from PIL import Image

    pixels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, mode=_MODES[pixels.shape[2]]).save(buffer, format="PNG")
    return buffer.getvalue()


def read_png(path: Path) -> Tensor:
    """uint8 [C, H, W] of a PNG written by `encode_png`."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()
