"""The manifest of a checkpoint: strict JSON that proves its own integrity and that of every file beside it.

    {"aliases": {GROUP: {NAME: NAME}},
     "files": {"GROUP.safetensors": {"sha256": HEX, "size": BYTES}},
     "format": "robustcli-checkpoint",
     "meta": JSON DATA,
     "schema_version": 1,
     "sha256": HEX over this document without this key,
     "step": N}

Neither pickle nor safetensors notices a flipped bit in the data; SHA-256 does. See `store.sealed`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from robustcli.errors import CheckpointError
from robustcli.regular import read_regular
from robustcli.store.sealed import is_proof, seal, unseal

NAME = "manifest.json"
SCHEMA_VERSION = 1
MAX_BYTES = 16 << 20
STEP_DIR = re.compile(r"step-(\d{8,18})", re.ASCII)
_FORMAT = "robustcli-checkpoint"
_GROUP = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Manifest:
    """What one checkpoint directory must hold.

    Args:
        step: optimiser steps done.
        files: name -> (SHA-256, size in bytes).
        aliases: group -> {name: name under which the same tensor is stored}.
        meta: plain JSON data.
        sha256: of the document; set by `parse`.
    """

    step: int
    files: dict[str, tuple[str, int]]
    aliases: dict[str, dict[str, str]]
    meta: dict[str, Any]
    sha256: str = ""


def file_name(group: str) -> str:
    """The file of a group. Raises ValueError: a group is a lower-case identifier of at most 32 characters."""
    if not _GROUP.fullmatch(group):
        raise ValueError(f"checkpoint group {group!r} is not a lower-case identifier")
    return group + _SUFFIX


def group_name(file: str) -> str:
    """The group of a file name that `parse` has accepted."""
    return file.removesuffix(_SUFFIX)


def encode(manifest: Manifest) -> bytes:
    """The one valid spelling of the document.

    Raises NumericsError: NaN or Inf in `meta`; ValueError, TypeError: `meta` is not plain JSON data.
    """
    document = {
        "aliases": {group: dict(names) for group, names in manifest.aliases.items() if names},
        "files": {name: {"sha256": sha, "size": size} for name, (sha, size) in manifest.files.items()},
        "meta": manifest.meta,
        "step": manifest.step,
    }
    data, _ = seal(document, _FORMAT, SCHEMA_VERSION)
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"the manifest would be {len(data)} bytes, more than {MAX_BYTES}; "
            "large state belongs into a tensor group"
        )
    return data


def read(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory, proven.

    Raises CheckpointError E-CKPT-MISSING, E-CKPT-FORMAT or E-CKPT-HASH.
    """
    path = directory / NAME
    manifest = parse(read_regular(path, MAX_BYTES), str(path))
    named = STEP_DIR.fullmatch(directory.name)
    if named and int(named[1]) != manifest.step:
        _bad(f"the directory is named {directory.name}, the manifest is of step {manifest.step}", str(path))
    return manifest


def parse(data: bytes, where: str) -> Manifest:
    """Bytes -> Manifest. Raises CheckpointError for any other document, a changed one too."""
    document, actual = unseal(
        data, _FORMAT, SCHEMA_VERSION, what="robustcli checkpoint manifest", where=where
    )
    return _checked(document, actual, where)


def _checked(document: dict[str, Any], sha256: str, where: str) -> Manifest:
    """The Manifest of a document whose hash is right, its types and names checked.

    A forged document has a right hash, too: its names may not lead out of the directory.
    """
    if set(document) != {"aliases", "files", "meta", "step"}:
        _bad("unknown or missing keys", where)
    step, files, aliases, meta = (document[key] for key in ("step", "files", "aliases", "meta"))
    mappings = all(isinstance(part, dict) for part in (files, aliases, meta))
    if type(step) is not int or not 0 <= step < 10**18 or not mappings:
        _bad("a field has the wrong type", where)
    for name, entry in files.items():
        if not (name.endswith(_SUFFIX) and _GROUP.fullmatch(group_name(name))):
            _bad(f"file name {name!r} is not allowed", where)
        if not is_proof(entry):
            _bad(f"entry of {name} is malformed", where)
    for group, names in aliases.items():
        if group + _SUFFIX not in files or not _maps_to_names(names):
            _bad(f"tied tensors of {group!r} are malformed", where)
    proofs = {name: (entry["sha256"], entry["size"]) for name, entry in files.items()}
    return Manifest(step, proofs, aliases, meta, sha256)


def _maps_to_names(names: Any) -> bool:
    return isinstance(names, dict) and all(isinstance(target, str) for target in names.values())


def _bad(what: str, where: str) -> NoReturn:
    raise CheckpointError(
        what, where=where, hint="the checkpoint is damaged or from another program", code="E-CKPT-FORMAT"
    )
