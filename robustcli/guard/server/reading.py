"""The images in a request: files of a form, or base64 in JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from robustcli.guard.server.refusal import Refused

T = TypeVar("T")
_FORM, _JSON = "multipart/form-data", "application/json"
_EXPECTED = f'send images as files of {_FORM}, or {_JSON} {{"images": ["BASE64", ...]}}'


async def images_in(request: Request, most: int, seconds: float) -> list[bytes]:
    """The files of one request, at least one.

    Args:
        most: images of a request.
        seconds: in which the body must arrive.

    Raises:
        Refused: 400, 408, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _FORM:
        files = await _in_time(_from_form(request, most), seconds)
    elif kind == _JSON:
        files = _from_json(await _in_time(request.body(), seconds))
    else:
        raise Refused(415, _EXPECTED)
    if not files:
        raise Refused(400, f"no images: {_EXPECTED}")
    if len(files) > most:
        raise Refused(413, f"{len(files)} images in one request, at most {most}")
    return files


async def discard(request: Request, seconds: float) -> None:
    """Read the body of a request, and keep nothing of it. Raises Refused (408, 413)."""

    async def read() -> None:
        async for _ in request.stream():
            pass

    await _in_time(read(), seconds)


async def _in_time(work: Awaitable[T], seconds: float) -> T:
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise Refused(408, f"the request took longer than {seconds:g} s") from None


async def _from_form(request: Request, most: int) -> list[bytes]:
    """All files of the form, in their order; the names of fields and files do not count."""
    async with form_of(request, files=most, fields=0) as form:
        values = [value for _, value in form.multi_items()]
        return [await value.read() for value in values if isinstance(value, UploadFile)]


@asynccontextmanager
async def form_of(request: Request, *, files: int, fields: int) -> AsyncIterator[FormData]:
    """The form that a request brings, with so many files and other fields at most. Raises Refused (400)."""
    try:
        form = await request.form(max_files=files, max_fields=fields)
    except HTTPException as error:  # what starlette says of a faulty form
        raise Refused(400, str(error.detail)) from None
    except FormParserError:  # older versions of starlette let the parser speak
        raise Refused(400, "not a form") from None
    try:
        yield form
    finally:
        await form.close()


def _from_json(body: bytes) -> list[bytes]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "not JSON") from None
    listed: Any = document.get("images") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise Refused(400, _EXPECTED)
    return _decoded(listed)


def _decoded(listed: Sequence[object]) -> list[bytes]:
    files = []
    for place, text in enumerate(listed):
        try:
            if not isinstance(text, str):
                raise ValueError
            files.append(base64.b64decode(text, validate=True))
        except (ValueError, binascii.Error):
            raise Refused(400, f"image {place}: not base64") from None
    return files
