"""The page on which a person looks at alarms and says what they were, with a click or a key for each.

A form carries a mark that only this server can make, so that no other site can send one (CSRF).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool

from robustcli.errors import DataError, UsageError
from robustcli.guard.server import drift
from robustcli.guard.server.reading import form_of
from robustcli.guard.server.refusal import Refused
from robustcli.guard.server.service import Service
from robustcli.guard.store import Review

_AT_ONCE = 24  # alarms on one page
_LOOKED_AT = 5000  # newest observations in the charts
_MOST_BUTTONS = 12  # classes that have a button each
_ASSETS = {"review.css": "text/css", "review.js": "text/javascript", "icon.svg": "image/svg+xml"}
Start = Annotated[int, Query(ge=0, le=1_000_000_000)]
_PACKAGE = "robustcli.guard.server"


class Page:
    """The page over one service.

    secret: of all processes of the server; it signs the forms.
    """

    def __init__(self, service: Service, secret: bytes) -> None:
        self._service, self._store = service, service.evidence.store
        self._mark = hmac.new(secret, b"review", hashlib.sha256).hexdigest()

    def html(self, reviewed: bool, start: int) -> str:
        """The page from alarm number `start` on."""
        alarms = self._store.evidence(reviewed=reviewed, limit=_AT_ONCE + 1, offset=start)
        seen = self._store.observations(last=_LOOKED_AT, model=self._service.evidence.model)
        html: str = _template().render(
            alarms=alarms[:_AT_ONCE],
            more=len(alarms) > _AT_ONCE,
            reviewed=reviewed,
            start=start,
            step=_AT_ONCE,
            counts=self._store.counts(),
            charts=drift.charts(seen, self._service.thresholds),
            shares=drift.alarm_shares(seen),
            seen=seen,
            size=(drift.WIDTH, drift.HEIGHT),
            mark=self._mark,
            **self._classes(),
        )
        return html

    def _classes(self) -> Mapping[str, Any]:
        model = self._service.model
        names = model.classes or tuple(map(str, range(model.reject)))
        return {
            "classes": names,
            "buttons": len(names) <= _MOST_BUTTONS,
            "thresholds": self._service.thresholds,
            "name_of": lambda label: dict(enumerate(names)).get(label, label),
        }

    def take(self, form: Mapping[str, Any]) -> None:
        """Store what a person found. Raises Refused (400, 403)."""
        if not hmac.compare_digest(str(form.get("mark", "")).encode(), self._mark.encode()):
            raise Refused(403, "this form is not from this server, or from before its start: reload the page")
        try:
            review = Review.parse(str(form.get("kind", "")) + str(form.get("class", "")))
            if review.label is not None and review.label >= self._service.model.reject:
                raise Refused(400, f"the classes are 0 to {self._service.model.reject - 1}")
            self._store.review(str(form.get("hash", "")), review, "page")
        except UsageError as error:
            raise Refused(400, error.what) from None

    def image(self, name: str) -> bytes:
        """PNG bytes of an alarm. Raises Refused (404)."""
        try:
            return self._store.image(name)
        except DataError as error:
            raise Refused(404, error.what) from None


def review_routes(service: Service, secret: bytes) -> APIRouter:
    """The page, its images, its style and script, and what its buttons send."""
    page, routes = Page(service, secret), APIRouter()

    @routes.get("/review")
    def show(reviewed: bool = False, start: Start = 0) -> HTMLResponse:
        return HTMLResponse(page.html(reviewed, start))

    @routes.post("/review")
    async def take(request: Request) -> Response:
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Refused(403, "this form is from another site")
        async with form_of(request, files=0, fields=8) as form:
            await run_in_threadpool(page.take, form)
        return RedirectResponse("/review", 303)

    @routes.get("/review/image/{name}.png")
    def image(name: str) -> Response:
        return Response(page.image(name), media_type="image/png")

    @routes.get("/review/{name}")
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise Refused(404, "Not Found")
        return Response(_asset(name), media_type=_ASSETS[name])

    return routes


@cache
def _asset(name: str) -> bytes:
    return (files(_PACKAGE) / "pages" / name).read_bytes()


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"moment": _moment, "short": _short}
    return environment.get_template("review.html")


def _moment(time: float) -> str:
    return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _short(score: float | None) -> str:
    return "no number" if score is None else f"{score:.3g}"
