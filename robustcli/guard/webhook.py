"""Alarms told to an address: a few tries each, in a thread of its own, so that no answer waits for it."""

from __future__ import annotations

import base64
import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from robustcli.errors import UsageError

ENVIRONMENT = "ROBUSTCLI_WEBHOOK"
_TIMEOUT = 4.0  # seconds of one try
_PAUSES = (0.0, 0.5, 1.0, 2.0)  # seconds before each try
_WAITING = 100  # messages at most; more are lost, and counted
Alarm = Mapping[str, Any]


class Webhook:
    """POST url {"alarms": [{"hash", "time", "model", "label", "confidence", "scores"}, ...]} as JSON.

    Args:
        url: http or https. Redirects are not followed, since the address is the user's choice.
        images: whether each alarm has its PNG too, as base64 under "image".
        say: told once that the address does not take messages.

    Attributes:
        lost: alarms that were not delivered.

    Raises UsageError for another kind of address.
    """

    def __init__(self, url: str, *, images: bool, say: Callable[[str], None]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("a webhook is an http or https address", where="--webhook")
        self._url, self._name, self._images, self._say = url, parts.hostname, images, say
        self.lost = 0
        self._opener = build_opener(_Stay)
        self._messages: queue.Queue[Sequence[Alarm] | None] = queue.Queue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def tell(self, alarms: Sequence[Alarm], pngs: Sequence[bytes]) -> None:
        """Send one message about these alarms, as soon as the earlier ones are through."""
        if self._images:
            texts = [base64.b64encode(png).decode() for png in pngs]
            alarms = [{**alarm, "image": text} for alarm, text in zip(alarms, texts, strict=True)]
        if self._messages.qsize() < _WAITING:
            self._messages.put(alarms)
        else:
            self._lose(alarms, "too many messages wait")

    def close(self, seconds: float) -> int:
        """Deliver what waits, for some seconds at most; returns how many alarms were lost in all."""
        self._messages.put(None)
        self._thread.join(seconds)
        self._ended.set()  # a try that is under way is the last one
        self._thread.join(_TIMEOUT)
        while not self._messages.empty():
            self._lose(self._messages.get_nowait() or (), "there was no time for it")
        return self.lost

    def _work(self) -> None:
        while not self._ended.is_set() and (alarms := self._messages.get()) is not None:
            self._deliver(alarms)

    def _deliver(self, alarms: Sequence[Alarm]) -> None:
        reason = ""
        for pause in _PAUSES:
            if self._ended.wait(pause):
                break
            reason = self._sent(alarms)
            if not reason:
                return
        self._lose(alarms, reason)

    def _sent(self, alarms: Sequence[Alarm]) -> str:
        """One try; "" where it was taken, else why not."""
        body = json.dumps({"alarms": list(alarms)}, allow_nan=False).encode()
        request = Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
        try:
            with self._opener.open(request, timeout=_TIMEOUT):
                return ""
        except HTTPError as error:
            error.close()
            return f"it answers {error.code}"
        except (OSError, HTTPException) as error:
            return str(getattr(error, "reason", error)) or type(error).__name__

    def _lose(self, alarms: Sequence[Alarm], reason: str) -> None:
        if not self.lost:
            self._say(f"the webhook at {self._name} did not take an alarm: {reason}")
        self.lost += len(alarms)


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None
