"""The images that `eval` keeps for its report: a few broken samples, wherever they were measured.

Each process keeps those of its batches in a file beside the shards, before the shard itself is kept. So a
run that is killed and resumed, the processes of a team and the parts of a merge have them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from robustcli.assembly.setting import Setting
from robustcli.config.schema import Config
from robustcli.evaluation.answers import REJECT
from robustcli.evaluation.header import Header
from robustcli.evaluation.result import BatchOutcome, Evaluation
from robustcli.records.eval import EvalRow
from robustcli.reporting.cells import format_eps
from robustcli.reporting.pixels import Pixels, change_of
from robustcli.store.examples import (
    NAME,
    Example,
    Examples,
    chosen,
    fitting,
    place,
    sealed_examples,
    write_examples,
)
from robustcli.store.run import Run


class Panel(NamedTuple):
    """One image of the gallery: uint8 [H, W, C], clean and adversarial; its true and its predicted class."""

    id: int
    distance: float
    clean: Pixels
    adversarial: Pixels
    true: str
    predicted: str


class Keeper:
    """Keeps broken samples of the batches of one process.

    rank: of the process in its team. say: told of a file that does not count.
    """

    def __init__(self, setting: Setting, rank: int, say: Callable[[str], None]) -> None:
        self._setting, self._rank, self._say = setting, rank, say
        self._most = setting.config.eval.examples
        self._path: Path | None = None
        self._seal = ""
        self._rows: list[Example] = []

    def open(self, folder: Path, seal: str) -> None:
        """Keep them in this folder of shards, beside what a killed run has left. seal: of the evaluation."""
        self._path, self._seal = folder / f"examples-{self._rank}.safetensors", seal
        self._rows = chosen(sealed_examples(folder, seal, self._say), self._most)

    def add(self, outcome: BatchOutcome) -> None:
        """Look at one batch, and write the file anew where one of its samples belongs there."""
        most = fitting(outcome.x[0].numel(), self._most)
        if self._path is None or not most:
            return
        broken = (outcome.correct & ~outcome.survivors).nonzero()[:, 0]
        found = dict(zip(outcome.ids[broken].tolist(), broken.tolist(), strict=True))
        if wanted := self._wanted(found, most):
            self._rows = chosen([*self._rows, *self._examples(outcome, wanted)], most)
            write_examples(self._path, Examples(self._rows, self._setting.ball.norm, seal=self._seal))

    def _wanted(self, broken: Mapping[int, int], most: int) -> list[int]:
        """Places in a batch of the samples that belong to the first `most`. broken: id -> place."""
        new = sorted(broken.keys() - {row.id for row in self._rows}, key=place)[:most]
        if len(self._rows) == most:
            last = max(place(row.id) for row in self._rows)
            new = [sample for sample in new if place(sample) < last]
        return [broken[sample] for sample in new]

    def _examples(self, outcome: BatchOutcome, places: Sequence[int]) -> list[Example]:
        """The samples at these places of a batch."""
        x, x_adv = outcome.x[places], outcome.x_adv[places]
        clean = (x * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        change = (x_adv - x).to(torch.float16).permute(0, 2, 3, 1).cpu().numpy()
        far = self._setting.ball.distance(x, x_adv).tolist()
        names = (*self._setting.data.classes, REJECT)
        answers = zip(outcome.ids[places].tolist(), outcome.y[places], outcome.predicted[places], strict=True)
        return [
            Example(i, names[int(y)], names[int(answer)], far[k], clean[k], change[k])
            for k, (i, y, answer) in enumerate(answers)
        ]


def keep_examples(
    run: Run,
    folders: Sequence[Path],
    config: Config,
    result: Evaluation,
    worst: EvalRow,
    say: Callable[[str], None],
) -> None:
    """Write the examples of a finished evaluation into its run, from the folders of its shards.

    Only samples count that the verdicts call broken. worst: the record of the worst case.
    """
    broken = set(result.ids[result.correct & ~result.survivors].tolist())
    rows, norm = list[Example](), worst.norm
    for folder in folders:
        header = Header.read(folder)
        if header is not None:
            norm = header.plan["ball"]["norm"]
            rows += [row for row in sealed_examples(folder, header.digest, say) if row.id in broken]
    kept = chosen(rows, config.eval.examples)
    if not kept:
        if folders:
            (run.path / NAME).unlink(missing_ok=True)  # of an earlier end of this run
        return
    ball = "" if worst.norm == "none" else f", {worst.norm} {format_eps(worst.eps, worst.norm)}"
    title = (
        f"{worst.model} on {worst.data} {worst.split}, under {worst.title}{ball}."
        f" {len(kept)} of {len(broken)} broken samples."
    )
    write_examples(run.path / NAME, Examples(kept, norm, title))


def panel_examples(panels: Sequence[Panel], norm: str, title: str) -> Examples:
    """The images of a gallery. norm: of their distances."""
    rows = [
        Example(
            panel.id,
            panel.true,
            panel.predicted,
            panel.distance,
            panel.clean,
            (change_of(panel.clean, panel.adversarial) / 255).astype(np.float16),
        )
        for panel in panels
    ]
    return Examples(rows, norm, title)


def keep_few(run: Path, examples: Examples, most: int) -> None:
    """Write the first of them, at most so many, as the examples of a run."""
    kept = chosen(examples.rows[:most], most)
    if kept:
        write_examples(run / NAME, replace(examples, rows=kept))
