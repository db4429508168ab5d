"""Pretrained weights of torchvision: found by name, fetched into torch's cache, checked, loaded safely."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import torch

from robustcli.errors import CheckpointError, ConfigError, ResourceError
from robustcli.models.complaint import first_line
from robustcli.registry import suggestion


def find_weights(zoo: ModuleType, name: str, weights: str) -> Any:
    """torchvision's entry of the named weights of a network. Raises ConfigError naming the nearest."""
    enum = zoo.get_model_weights(name)
    known = [*enum.__members__]
    if weights not in known:
        near = suggestion(weights, known)
        raise ConfigError(f"torchvision:{name} has no weights {weights!r}; {near}known: {', '.join(known)}")
    return enum[weights]


def fetch(weights: Any, *, download: bool) -> None:
    """Puts the file of `weights` into torch's cache, unless it is there, and checks its hash.

    The name of the file holds the beginning of its SHA-256; torch checks it only for what it downloads.

    Raises CheckpointError: not in the cache and no `download`, or another hash; ResourceError: no network.
    """
    name = os.path.basename(weights.url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    expected = name.rpartition(".")[0].rpartition("-")[2]
    if not path.is_file():
        if not download:
            raise CheckpointError(
                f"the weights {name} are not on this machine",
                where=str(path),
                hint="pass --download to fetch them",
                code="E-WEIGHTS",
            )
        _download(weights.url, path, expected)
    got = _sha256(path)
    if not got.startswith(expected):
        raise CheckpointError(
            f"{name} has another hash: expected {expected}…, got {got[:8]}…",
            where=str(path),
            hint="delete it and pass --download",
            code="E-CKPT-HASH",
        )


def _download(url: str, path: Path, sha256_prefix: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), sha256_prefix, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise ResourceError(
            f"cannot download {path.name}: {error}",
            hint="check the network, or put the file there by hand",
            where=str(path),
            code="E-NET",
        ) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def weights_only(name: str) -> Iterator[None]:
    """Inside, torch refuses code in weight files, although torchvision's builders do not ask for it.

    Raises CheckpointError E-CKPT-FORMAT when the file is refused, damaged, or of another network.
    """
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"the weights of {name} cannot be loaded: {first_line(error)}",
            hint="delete the file and pass --download",
            code="E-CKPT-FORMAT",
        ) from error
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before
