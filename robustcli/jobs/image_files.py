"""The adversarial images of `robustcli attack`: PNG files, their scores as 8-bit images, the gallery."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.assembly.attacks import eval_plan
from robustcli.assembly.samples import split_of
from robustcli.assembly.setting import Setting
from robustcli.core.modes import frozen
from robustcli.data.png import MODES, encode_png, read_png, upright
from robustcli.errors import DataError
from robustcli.evaluation.answers import REJECT
from robustcli.evaluation.judge import Judge, Ruling
from robustcli.evaluation.lattice import from_lattice, nearest_levels, to_lattice
from robustcli.evaluation.result import BatchOutcome
from robustcli.jobs.album import Album, Scored
from robustcli.jobs.evidence.examples import Panel, keep_few, panel_examples
from robustcli.reporting.cells import format_eps
from robustcli.reporting.pictures.examples import gallery_picture
from robustcli.reporting.pictures.files import save_pictures
from robustcli.runtime.team import Team
from robustcli.store.atomic import JsonLines, write_atomic
from robustcli.store.disk import explained
from robustcli.store.follower import Follower
from robustcli.store.run import Run
from robustcli.terminal.console import Console

_LONGEST = 40  # characters of a class in a file name


class ImageWriter:
    """Rounds adversarial images to 8 bits, scores them again, and writes the broken ones.

    It also collects the gallery. A written file is read back and compared. Where a team is at work each
    process writes the files of its batches into an album, and rank 0 takes from there in `finish`.
    """

    def __init__(self, setting: Setting, model: nn.Module, run: Run | Follower, team: Team) -> None:
        self.setting, self.model, self.run = setting, model, run
        self.folder = run.path / "images"
        with explained(self.folder):
            self.folder.mkdir(exist_ok=True)
        self._album = Album(team) if team.many else None
        self.written = self.scored = self._right_8bit = self._right_float = 0
        self._fell = self._broken = 0  # images that an attack broke, as floats and as 8-bit images
        self._panels: list[Panel] = []
        self._lines: JsonLines | None = None
        if self._album is None:
            self._file()

    def add(self, outcome: BatchOutcome) -> None:
        """One attacked batch: round to 8 bits, judge all images, write the broken ones, read them back."""
        x, y = outcome.x, outcome.y
        levels = nearest_levels(outcome.x_adv)
        if outcome.bounded:
            levels = to_lattice(x, outcome.x_adv, self.setting.ball)
        with frozen(self.model):
            judge = Judge(self.model, self.setting.ball, draws=outcome.draws, bounded=outcome.bounded)
            ruling = judge.rule(x, from_lattice(levels), judge.criterion(y, outcome.goal))
        broken = outcome.correct & ruling.hit
        if outcome.goal is not None:
            broken = broken & (outcome.goal != y)
        rows = broken.nonzero()[:, 0]
        if self._album is None:
            self._collect(outcome, rows, levels, ruling)
        rows = rows[: self._room(len(rows))]
        lines = self._write(outcome, rows, levels[rows], ruling.predicted[rows], ruling.distance[rows])
        scored = _scored(outcome, broken, dict(zip(rows.tolist(), lines, strict=True)))
        if self._album is None:
            self._count(scored)
        else:
            self._album.note(scored)

    def _count(self, images: Sequence[Scored]) -> None:
        """Add these images to the numbers, and the lines of those that were written to images.jsonl."""
        self._fell += sum(image.fell for image in images)
        self._broken += sum(image.broken for image in images)
        self._right_8bit += sum(image.right_8bit for image in images)
        self._right_float += sum(image.right_float for image in images)
        self.scored += len(images)
        lines = [image.line for image in images if image.line is not None]
        self.written += len(lines)
        for line in lines:
            self._file().write(line)

    def _file(self) -> JsonLines:
        """images.jsonl. It is opened, and emptied, by the process that writes it."""
        if self._lines is None:
            self._lines = JsonLines(self.run.path / "images.jsonl")
            self._lines.truncate(0)
        return self._lines

    def _room(self, wanted: int) -> int:
        """How many of `wanted` more images may be written: `attack.save` limits all of them.

        A process of a team does not know what the others write, and the gallery is made from files.
        """
        config = self.setting.config.attack
        if self._album is not None:
            return min(wanted, max(config.save, config.gallery))
        return max(0, min(wanted, config.save - self.written))

    def _write(
        self, outcome: BatchOutcome, rows: Tensor, levels: Tensor, predicted: Tensor, distance: Tensor
    ) -> list[dict[str, Any]]:
        """Write images as PNG files; returns the line of each in images.jsonl.

        Args:
            rows: int64 [R], their places in the batch.
            levels: uint8 [R, C, H, W].
            predicted: int64 [R], predicted classes.
            distance: float64 [R], distance from the clean image.

        Raises DataError when a file reads back as another image.
        """
        classes, lines = self.setting.data.classes, []
        for k, image, label, far in zip(
            rows.tolist(), levels.cpu(), predicted.tolist(), distance.tolist(), strict=True
        ):
            sample, name = int(outcome.ids[k]), classes[int(outcome.y[k])]
            path = self._path(sample, name)
            write_atomic(path, encode_png(image))
            if not torch.equal(read_png(path), image):
                raise DataError("an adversarial image did not survive its file", where=str(path))
            lines.append(
                {
                    "id": sample,
                    "file": path.name,
                    "label": name,
                    "clean_predicted": (*classes, REJECT)[int(outcome.clean_predicted[k])],
                    "predicted_8bit": classes[label],
                    "distance_8bit": far,
                    "broken_8bit": True,
                }
            )
        return lines

    def _path(self, sample: int, name: str) -> Path:
        safe = re.sub(r"[^\w-]", "_", name)[:_LONGEST]
        folder = self.folder if self._album is None else self._album.folder
        return folder / f"{sample:06d}_{safe}_adv.png"

    def _collect(self, outcome: BatchOutcome, rows: Tensor, levels: Tensor, ruling: Ruling) -> None:
        """Keep broken images for the gallery, at most `attack.gallery` in all.

        rows: int64, places of the broken images in the batch. levels, ruling: of the whole batch.
        """
        classes = self.setting.data.classes
        room = max(0, self.setting.config.attack.gallery - len(self._panels))
        for k in rows[:room].tolist():
            clean = (outcome.x[k].cpu() * 255).round().to(torch.uint8)
            true, wrong = classes[int(outcome.y[k])], classes[int(ruling.predicted[k])]
            images = (upright(clean), upright(levels[k].cpu()))
            self._panels.append(Panel(int(outcome.ids[k]), float(ruling.distance[k]), *images, true, wrong))

    def finish(self, console: Console) -> dict[str, Any]:
        """Draw the gallery and show both accuracies; returns the keys of the document about images.

        One accuracy counts the images as floats, the other as 8-bit images.
        """
        if self._album is not None:
            self._join(self._album)
        self._file().close()
        if self._panels:
            console.info(f"gallery: {self._draw()}")
        else:
            console.info(f"no gallery: {self._reason()}")
        as_8bit, as_float = self._share(self._right_8bit), self._share(self._right_float)
        if self.scored:
            both = f"{as_float:.1%} as floats, {as_8bit:.1%} as 8-bit images, of {self.scored}"
            console.info(f"robust accuracy {both}; {self.written} broken images written to {self.folder}")
        return {
            "images": str(self.folder),
            "images_written": self.written,
            "robust_acc_8bit": as_8bit,
            "robust_acc_float": as_float,
        }

    def _join(self, album: Album) -> None:
        """Count what all processes of a team noted; copy the first files, and draw the first images."""
        config, images = self.setting.config.attack, album.images()
        noted = [image for image in images if image.line is not None]
        self._panels = [self._panel(image, album.folder) for image in noted[: config.gallery]]
        kept = {image.id for image in noted[: config.save]}
        images = [image if image.id in kept else replace(image, line=None) for image in images]
        self._count(images)
        for image in images:
            if image.line is not None:
                name = image.line["file"]
                write_atomic(self.folder / name, (album.folder / name).read_bytes())

    def _panel(self, image: Scored, folder: Path) -> Panel:
        """A broken image for the gallery, from its file in `folder` and its data set."""
        assert image.line is not None
        split = split_of(self.setting.data, self.setting.config.eval.split)
        position = (split.ids == image.id).nonzero()[:, 0]
        x, _, _ = next(iter(split.stream([position], self.setting.device)))
        clean = (x[0].cpu() * 255).round().to(torch.uint8)
        adversarial = read_png(folder / image.line["file"])
        names = (image.line["label"], image.line["predicted_8bit"])
        far = image.line["distance_8bit"]
        return Panel(image.id, far, upright(clean), upright(adversarial), *names)

    def _reason(self) -> str:
        """Why there is no gallery."""
        if not self.setting.config.attack.gallery:
            return "attack.gallery is 0"
        if self._fell:
            return "no image is still broken when it is rounded to 8 bits"
        return "no image was broken"

    def _share(self, right: int) -> float | None:
        """`right` / all images that were scored; None when there was none."""
        return right / self.scored if self.scored else None

    def _draw(self) -> Path:
        """Draw the gallery, and keep its first images for a report; returns the path of the picture."""
        config, norm = self.setting.config, self.setting.ball.norm
        examples = panel_examples(self._panels, norm, self._title())
        (path,) = save_pictures(
            [gallery_picture("gallery", examples, config.attack.amplify)], self.run.path / "plots"
        )
        keep_few(self.run.path, examples, config.eval.examples)
        return path

    def _title(self) -> str:
        """Model, data, attacks, ball and run, in one line."""
        config, ball = self.setting.config, self.setting.ball
        plan = eval_plan(self.setting, config.attacks)
        attacks = ", ".join(call.label for call in plan.attacks)
        threat = "without a ball"
        if plan.bounded:  # the gallery has images, so there are attacks
            threat = f"{ball.norm}, eps {format_eps(ball.eps, ball.norm)}"
        shown = f"{len(self._panels)} of {self._broken} broken images"
        return (
            f"{self.run.path.name}: {config.model.label} on {self.setting.data.name} {config.eval.split},"
            f" under {attacks}, {threat}. {shown}."
        )


def _scored(outcome: BatchOutcome, broken: Tensor, lines: Mapping[int, dict[str, Any]]) -> list[Scored]:
    """What became of each image of a batch.

    broken: bool [B], as 8-bit images. lines: place in the batch -> its line of images.jsonl.
    """
    correct, survivors = outcome.correct, outcome.survivors
    flags = torch.stack([correct & ~survivors, broken, survivors, correct & ~broken], 1).tolist()
    images = []
    for k, (sample, row) in enumerate(zip(outcome.ids.tolist(), flags, strict=True)):
        fell, gone, right_float, right_8bit = row
        images.append(Scored(sample, fell, gone, right_float, right_8bit, lines.get(k)))
    return images


def check_channels(channels: int) -> None:
    """Raises DataError unless images have 1 or 3 channels, which PNG can hold."""
    if channels not in MODES:
        raise DataError(
            f"images of {channels} channels cannot be written as PNG", hint="1 (grey) and 3 (RGB) can"
        )
