"""What a guard was fitted on, as the manifest of its directory says."""

from __future__ import annotations

import json
from pathlib import Path

from robustcli.errors import DataError
from robustcli.guard.rules import Reference
from robustcli.regular import read_bytes

_MANIFEST = "guard.json"
_LARGEST = 1 << 28  # bytes of a manifest


def reference_of(directory: Path) -> Reference:
    """The reference of a directory of `guard fit`. Raises DataError E-FILE for one that has none."""
    path = directory / _MANIFEST
    try:
        return Reference.from_json(json.loads(read_bytes(path, _LARGEST))["reference"])
    except OSError as error:
        raise _without(path, error.strerror or str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _without(path, "it does not say what the guard was fitted on") from error


def _without(path: Path, why: str) -> DataError:
    hint = "name the directory that `robustcli guard fit` has written"
    return DataError(f"no guard: {why}", where=str(path), hint=hint, code="E-FILE")
