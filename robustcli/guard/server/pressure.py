"""How much may be inside at once. Whoever comes later is told to come again: 429, or 503 at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from robustcli.guard.server.refusal import Refused

_SOON = 1  # seconds after which a client may try again


class Places:
    """Places for requests whose bodies are read, and for images until they are answered.

    Only the event loop counts here, so there is no lock.

    Args:
        requests: bodies that are read at once; each may take the memory of the largest body.
        images: images that may wait or be worked on.

    Attributes:
        draining: whether the server ends; new requests get a 503.
        reading, inside: requests and images that have a place now.
    """

    def __init__(self, requests: int, images: int) -> None:
        self._requests, self._images = requests, images
        self.draining = False
        self.reading = self.inside = 0

    @contextmanager
    def to_read(self) -> Iterator[None]:
        """A place for one request while its body is read and decoded. Raises Refused (429, 503)."""
        self._open()
        if self.reading >= self._requests:
            raise Refused(429, "too many requests at once", retry=_SOON)
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1

    @contextmanager
    def for_images(self, count: int) -> Iterator[None]:
        """Places for the images of a request until they are answered. Raises Refused as `need`."""
        self.need(count)
        self.inside += count
        try:
            yield
        finally:
            self.inside -= count

    def need(self, count: int) -> None:
        """Raises Refused (413, 429, 503) when there are no places for so many images now."""
        self._open()
        if count > self._images:
            raise Refused(413, f"{count} images, but only {self._images} may wait at once")
        if self.inside + count > self._images:
            raise Refused(429, "too many images are waiting", retry=_SOON)

    def _open(self) -> None:
        if self.draining:
            raise Refused(503, "the server ends", retry=_SOON)
