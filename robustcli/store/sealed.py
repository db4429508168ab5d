"""JSON documents that prove their own integrity and, by size and SHA-256, that of the files beside them.

    {..., "format": FORMAT, "schema_version": N, "sha256": HEX over this document without this key}

A document has exactly one valid spelling (sorted keys, fixed spacing), so that no changed byte goes
unnoticed. The hashes prove integrity, not authenticity: whoever can write the directory can write a new
document.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from robustcli.errors import CheckpointError, NumericsError
from robustcli.regular import read_regular, strict_loads
from robustcli.store.atomic import strict_json

_SHA = re.compile(r"[0-9a-f]{64}", re.ASCII)


def seal(document: Mapping[str, Any], form: str, version: int) -> tuple[bytes, str]:
    """(the one valid spelling of the document, its SHA-256).

    Raises NumericsError: NaN or Inf inside; ValueError, TypeError: it is not plain JSON data.
    """
    whole = {**document, "format": form, "schema_version": version}
    sha256 = hashlib.sha256(_spell(whole)).hexdigest()
    return _spell({**whole, "sha256": sha256}), sha256


def unseal(data: bytes, form: str, version: int, *, what: str, where: str) -> tuple[dict[str, Any], str]:
    """(document without the keys that `seal` adds, its SHA-256).

    Args:
        data: the file.
        form, version: as they were given to `seal`.
        what: what the file is, for messages.
        where: its path, for messages.

    Raises CheckpointError for any other document, a changed one too.
    """
    try:
        document = strict_loads(data)
        spelled = _spell(document)
    except (ValueError, TypeError, RecursionError, NumericsError) as error:
        _bad(f"not strict JSON ({error})", where)
    if not isinstance(document, dict) or document.get("format") != form:
        _bad(f"not a {what}", where)
    if document.get("schema_version") != version:
        got = document.get("schema_version")
        _bad(f"schema_version {got!r}; this version of robustcli reads {version}", where)
    recorded = document.pop("sha256", None)
    actual = hashlib.sha256(_spell(document)).hexdigest()
    if recorded != actual or spelled != data:
        raise CheckpointError(
            f"manifest was changed: expected {recorded}, got {actual}",
            where=where,
            hint="the file is damaged",
            code="E-CKPT-HASH",
        )
    return {key: value for key, value in document.items() if key not in ("format", "schema_version")}, actual


def proof(data: bytes) -> dict[str, Any]:
    """What a document says of a file: ``{"sha256": HEX, "size": BYTES}``."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def is_proof(entry: Any) -> bool:
    """Whether an entry is one that `proof` makes."""
    if not isinstance(entry, dict) or set(entry) != {"sha256", "size"}:
        return False
    sha256, size = entry["sha256"], entry["size"]
    return type(size) is int and size >= 0 and isinstance(sha256, str) and bool(_SHA.fullmatch(sha256))


def proven(path: Path, sha256: str, size: int) -> bytes:
    """The bytes of a file. Raises CheckpointError E-CKPT-HASH or E-CKPT-MISSING for any others."""
    data = read_regular(path, size, exactly=size)
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise CheckpointError(
            f"expected sha256 {sha256}, got {got}",
            where=str(path),
            hint="the file is damaged",
            code="E-CKPT-HASH",
        )
    return data


def _spell(document: Mapping[str, Any]) -> bytes:
    return strict_json(document, indent=1).encode() + b"\n"


def _bad(what: str, where: str) -> NoReturn:
    raise CheckpointError(
        what, where=where, hint="the checkpoint is damaged or from another program", code="E-CKPT-FORMAT"
    )
