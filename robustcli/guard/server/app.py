"""The routes of the server. What a reply says is JSON, the text of Prometheus, or the page for reviewing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from robustcli.guard.server.door import App, Door, Rules, refusal
from robustcli.guard.server.refusal import Refused
from robustcli.guard.server.review import review_routes
from robustcli.guard.server.service import Service


def application(service: Service, rules: Rules, secret: bytes) -> App:
    """The server as an ASGI application; its end closes the service.

    secret: of all processes of the server; it signs the forms of the page.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="robustcli guard", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _not_served)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(Exception, _broken)
    _add_routes(app, service)
    app.include_router(review_routes(service, secret))
    return Door(app, rules, service.failed, service.metrics.replied)


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        return JSONResponse(await service.predict(request))

    @app.get("/health")
    async def health() -> JSONResponse:
        draining = service.places.draining
        state = {"status": _word(draining, "draining", "ok"), "evidence": _word(service.keeps, "ok", "lost")}
        return JSONResponse(state, 503 if draining else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _word(condition: bool, yes: str, no: str) -> str:
    return yes if condition else no


async def _refused(request: Request, error: Any) -> Response:
    return refusal(error)


async def _not_understood(request: Request, error: Any) -> Response:
    """Parameters of an address that are none."""
    first = error.errors()[0]
    return refusal(Refused(400, f"{first['loc'][-1]}: {first['msg']}"))


async def _broken(request: Request, error: Any) -> Response:
    """A fault of this side; the door says here what it was."""
    return refusal(Refused(500, "internal error"))


async def _not_served(request: Request, error: Any) -> Response:
    """404 and 405 of the router, as the one line that all other refusals are."""
    return refusal(Refused(error.status_code, str(error.detail)))
