"""What the routes share: the model's queue, the evidence, the places and the numbers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from torch import Tensor

from robustcli.guard.answer import Answer, Guarded, answers
from robustcli.guard.evidence import Keeper
from robustcli.guard.server.batching import Batcher
from robustcli.guard.server.decoding import Uploads
from robustcli.guard.server.metrics import Metrics
from robustcli.guard.server.pressure import Places
from robustcli.guard.server.reading import discard, images_in
from robustcli.guard.server.refusal import Refused

_LAST = 0.5  # seconds for messages about alarms that wait at the end
_READERS = 32  # bodies that are read at once


@dataclass(frozen=True)
class Limits:
    """What one process serves at most.

    Args:
        batch: images of one pass of the model.
        queue: images that wait or are worked on; more get a 429.
        images: images of one request.
        body: bytes of one request.
        seconds: in which a body must arrive.
        threads: of PyTorch, and of decoding.
    """

    batch: int = 64
    queue: int = 512
    images: int = 64
    body: int = 10_000_000
    seconds: float = 10.0
    threads: int = 1


class Service:
    """One model behind one queue.

    Args:
        model: the guarded model, in eval mode.
        evidence: where alarms and scores are kept.
        say: told once of each new kind of failure.
    """

    def __init__(self, model: Guarded, evidence: Keeper, limits: Limits, say: Callable[[str], None]) -> None:
        self.model, self.evidence, self.limits = model, evidence, limits
        self.metrics, self.places = Metrics(), Places(_READERS, limits.queue)
        self._say, self._said = say, set[str]()
        self.keeps = True  # whether the last write of evidence succeeded
        self._read = Uploads(model.info.shape)
        self._decoders = ThreadPoolExecutor(limits.threads, "decode")
        self._batcher = Batcher(
            partial(answers, model), self._keep, batch=limits.batch, threads=limits.threads
        )

    @property
    def thresholds(self) -> dict[str, float]:
        """Detector -> the score above which it raises an alarm."""
        found = zip(self.model.detectors, self.model.thresholds.tolist(), strict=True)
        return {name: value for name, value in found if math.isfinite(value)}

    async def predict(self, request: Request) -> list[dict[str, Any]]:
        """The answers to the images of one request. Raises Refused."""
        with self.metrics.seconds.time():
            return [answer.to_json() for answer in await self._answered(request)]

    async def _answered(self, request: Request) -> list[Answer]:
        with self.places.to_read():
            x = await self._pixels(request)
        with self.places.for_images(len(x)), self.metrics.holding(len(x)):
            return await asyncio.wrap_future(self._batcher.submit(x))

    async def _pixels(self, request: Request) -> Tensor:
        try:
            self.places.need(1)
        except Refused:
            await discard(request, self.limits.seconds)  # a client that still sends hears no reply
            raise
        files = await images_in(request, self.limits.images, self.limits.seconds)
        self.places.need(len(files))  # before the work of decoding
        return await asyncio.get_running_loop().run_in_executor(self._decoders, self._read, files)

    def _keep(self, x: Tensor, found: list[Answer]) -> list[Answer]:
        """The answers with the hashes of their evidence. An answer does not fail where its evidence does."""
        try:
            kept, self.keeps = self.evidence.keep(x, found), True
        except Exception as error:
            self.metrics.lost.inc(len(found))
            self.failed(error)
            kept, self.keeps = found, False
        self.metrics.answered(kept)
        return kept

    def failed(self, error: Exception) -> None:
        """Say what failed on this side, each kind once: a client may bring it about again and again."""
        kind = type(error).__name__
        if kind not in self._said:
            self._said.add(kind)
            self._say(f"{kind}: {error}")

    def close(self) -> None:
        """Answer what is inside, then end the threads."""
        self._batcher.close()
        self._decoders.shutdown()
        self.evidence.close(_LAST)
