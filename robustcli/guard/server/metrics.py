"""What /metrics says: counts and times, with no label that a client chooses."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from robustcli.guard.answer import Answer

#: Variable of prometheus-client: a folder in which several processes share their numbers.
SHARED = "PROMETHEUS_MULTIPROC_DIR"
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The numbers of one server; those of all its processes when they share a folder."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self._images = Counter("robustcli_images", "Images answered.", ["outcome"], registry=own)
        self._replies = Counter("robustcli_replies", "Replies by status.", ["status"], registry=own)
        self._kept = Counter("robustcli_quarantined", "Alarms whose evidence was stored.", registry=own)
        self.lost = Counter("robustcli_evidence_lost", "Images whose evidence was not stored.", registry=own)
        self.seconds = Histogram(
            "robustcli_predict_seconds", "From request to answers.", buckets=_SECONDS, registry=own
        )
        self._batch = Histogram("robustcli_batch_images", "Images of a pass.", buckets=_SIZES, registry=own)
        self._inside = Gauge(
            "robustcli_images_inside",
            "Images that wait or are worked on.",
            registry=own,
            multiprocess_mode="livesum",
        )
        for outcome in ("accepted", "rejected"):
            self._images.labels(outcome)
        ProcessCollector(registry=own)

    @contextmanager
    def holding(self, images: int) -> Iterator[None]:
        """Count images while they wait and are worked on."""
        self._inside.inc(images)
        try:
            yield
        finally:
            self._inside.dec(images)

    def replied(self, status: int) -> None:
        """Count one reply."""
        self._replies.labels(str(status)).inc()

    def answered(self, found: Sequence[Answer]) -> None:
        """Count one pass of the model."""
        accepted = sum(answer.accepted for answer in found)
        self._batch.observe(len(found))
        self._images.labels("accepted").inc(accepted)
        self._images.labels("rejected").inc(len(found) - accepted)
        self._kept.inc(sum(answer.quarantined is not None for answer in found))

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        if SHARED not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
