"""`robustcli guard run`: one JSON line for each image file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from robustcli.data.images import Pixels, quiet_pillow
from robustcli.errors import DataError, ResourceError
from robustcli.guard.answer import Answer, Guarded, answers
from robustcli.guard.evidence import Keeper
from robustcli.jobs.guard.model import Opening, open_guard, open_keeper
from robustcli.jobs.guard.paths import Found, found_in
from robustcli.reporting.cells import amount
from robustcli.terminal.console import Console

_PATIENCE = 20.0  # seconds for messages about alarms that wait at the end


@dataclass
class Tally:
    """What was found, by number of files."""

    accepted: int = 0
    alarms: int = 0
    unreadable: int = 0


class Run:
    """Answers files in batches, in the order in which they were named.

    Args:
        say: takes one line of JSON.
        batch: images of one pass.
    """

    def __init__(self, model: Guarded, keeper: Keeper, say: Callable[[str], None], batch: int) -> None:
        self._model, self._keeper, self._say, self._batch = model, keeper, say, batch
        self.tally = Tally()
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1)

    def files(self, found: Sequence[Found]) -> None:
        """Answer these files, one line each. Raises what the store raises."""
        for start in range(0, len(found), self._batch):
            self._pass(found[start : start + self._batch])

    def _pass(self, found: Sequence[Found]) -> None:
        read = list(self._decoders.map(partial(_read, shape=self._model.info.shape), found))
        given = iter(self._answered([one for one in read if not isinstance(one, DataError)]))
        for file, one in zip(found, read, strict=True):
            self._say(json.dumps({"file": file.path, **self._line(one, given)}, allow_nan=False))

    def _answered(self, pixels: Sequence[Pixels]) -> list[Answer]:
        if not pixels:
            return []
        x = torch.from_numpy(np.stack(pixels)).float().div_(255)
        return self._keeper.keep(x, answers(self._model, x))

    def _line(self, read: Pixels | DataError, given: Iterator[Answer]) -> dict[str, Any]:
        """What is said of one file; its answer is the next one of `given`."""
        if isinstance(read, DataError):
            self.tally.unreadable += 1
            return {"error": read.what, "code": read.code}
        answer = next(given)
        self.tally.accepted += answer.accepted
        self.tally.alarms += not answer.accepted
        return answer.to_json()


def guard_run(opening: Opening, words: Sequence[str], batch: int, console: Console) -> None:
    """Answer all images that `words` name, see `found_in`; one JSON line each on stdout.

    Raises:
        DataError: E-IMAGE at the end, when files could not be answered; all others were.
        ResourceError: E-WEBHOOK at the end, when alarms were not delivered; they are in the store.
    """
    quiet_pillow()
    model = open_guard(opening)
    keeper = open_keeper(opening, model, console.warn)
    run = Run(model, keeper, console.result, batch)
    try:
        for word in words:
            for part in found_in(word):
                run.files(part)
    finally:
        lost = keeper.close(_PATIENCE)
    _conclude(run.tally, lost, keeper.store.where, console)


def _conclude(tally: Tally, lost: int, store: str, console: Console) -> None:
    total = tally.accepted + tally.alarms + tally.unreadable
    images, alarms = amount(total, "image"), amount(tally.alarms, "alarm")
    console.info(f"{images}: {tally.accepted} accepted, {alarms}; evidence in {store}")
    if tally.unreadable:
        raise DataError(
            f"{tally.unreadable} of {amount(total, 'file')} could not be answered",
            hint="the lines on stdout say why",
            code="E-IMAGE",
        )
    if lost:
        raise ResourceError(
            f"the webhook did not take {lost} of {alarms}",
            hint=f"the evidence is in {store}",
            code="E-WEBHOOK",
        )


def _read(file: Found, shape: tuple[int, int, int]) -> Pixels | DataError:
    try:
        return file.pixels(shape)
    except DataError as error:
        return error
