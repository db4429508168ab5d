"""Answers of a guarded model -> rows of the evidence store: alarms with their pixels, the scores of all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from robustcli.data.png import encode_png
from robustcli.guard.answer import Answer
from robustcli.guard.store import EvidenceStore, Seen
from robustcli.guard.webhook import Webhook


@dataclass(frozen=True)
class Keeper:
    """Keeps what one model answers, and tells of its alarms.

    Args:
        store: where it is kept.
        model: SHA-256 of the model.
        webhook: told of each alarm after it was stored; None tells nobody.
    """

    store: EvidenceStore
    model: str
    webhook: Webhook | None = None

    def keep(self, x: Tensor, found: Sequence[Answer]) -> list[Answer]:
        """The answers to x [B, C, H, W] in [0, 1]; alarms with the hashes of their evidence.

        What is returned is on the disk. Raises what the store raises.
        """
        seen = [_seen(image, answer) for image, answer in zip(x, found, strict=True)]
        hashes = self.store.record(self.model, seen)
        kept = [replace(answer, quarantined=name) for answer, name in zip(found, hashes, strict=True)]
        alarms = [answer for answer in kept if not answer.accepted]
        if self.webhook is not None and alarms:
            pngs = [each.image for each in seen if each.image is not None]
            self.webhook.tell([self._told(answer) for answer in alarms], pngs)
        return kept

    def _told(self, answer: Answer) -> dict[str, Any]:
        said = answer.to_json()
        return {"hash": said.pop("quarantined"), "time": round(time.time(), 3), "model": self.model, **said}

    def close(self, seconds: float) -> int:
        """Close the store; returns how many alarms the webhook has not taken, also in these last seconds."""
        self.store.close()
        return 0 if self.webhook is None else self.webhook.close(seconds)


def _seen(image: Tensor, answer: Answer) -> Seen:
    pixels = None if answer.accepted else png_of(image)
    return Seen(answer.accepted, answer.label, answer.confidence, answer.scores, pixels)


def png_of(image: Tensor) -> bytes:
    """The 8-bit PNG of pixels [1 or 3, H, W] in [0, 1], the same bytes for the same pixels."""
    return encode_png((image * 255).round().byte())
