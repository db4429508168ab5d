"""What a path in the place of a model or of a data set means: a run, a guard, a file of weights."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from robustcli.config.spec import GUARD
from robustcli.errors import UsageError

RUN = "run:"
GUARD_FILE = "guard.json"  # what a directory of `guard fit` holds
OWN = "model.safetensors"  # the weights in a checkpoint of ours
_TAGS = ("best", "last")
_DATA_AT_A_PATH = {"npz": "npz", "csv": "csv", "parquet": "hf", "tar": "wds"}  # ending -> kind
_PACKED = ("parquet", "tar")  # kinds of files that a folder may hold in place of class folders
_SUFFIXES = (".safetensors", ".npz", ".bin", ".pt", ".pth", ".ckpt")


def meant_model(name: str) -> str:
    """The reference that a path in the place of a model means; any other name is itself.

    A directory of a run or of a checkpoint of ours, and the weight file in it, mean ``run:PATH``; one of
    `guard fit` means ``guard:DIR``. Raises UsageError E-MODEL with the words to write for another directory.
    """
    path = Path(name.removeprefix(RUN))
    if is_own_file(path):
        return f"{RUN}{path.parent}"
    if name.startswith(RUN) or not os.path.isdir(path):  # never raises
        return name
    if (path / GUARD_FILE).is_file():
        return f"{GUARD}{name}"
    if _is_run(path):
        return f"{RUN}{name}"
    raise UsageError(f"{name} is a directory, and no run", hint=words_for(path), code="E-MODEL")


def is_own_file(path: Path) -> bool:
    """Whether this is the weight file inside a checkpoint of ours."""
    return path.name == OWN and os.path.isfile(path.parent / "manifest.json") and os.path.isfile(path)


def words_for(folder: Path) -> str:
    """What to write for a directory that holds weights from elsewhere."""
    if _is_run(folder):
        return f"write --model {RUN}{folder}"
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        runs = sorted(inner for inner in folder.iterdir() if inner.is_dir() and _is_run(inner))
        return f"write --model {RUN}{runs[-1]}" if runs else f"a run has checkpoints/ in it: --model {RUN}DIR"
    if _stated(folder, "model_type"):
        return f"write --model hf:{folder}"
    best = next((file for file in files if file.name == OWN), files[0])
    return f"write --model {_architecture(folder)} --weights {best}"


def _is_run(folder: Path) -> bool:
    """A run, its ``checkpoints``, or one checkpoint."""
    if (folder / "manifest.json").is_file() or (folder / "checkpoints").is_dir():
        return True
    return any((folder / tag).is_file() for tag in _TAGS) and folder.name == "checkpoints"


def _architecture(folder: Path) -> str:
    """``timm:NAME`` where config.json names an architecture, as directories of timm do; else NAME."""
    named = _stated(folder, "architecture")
    return f"timm:{named}" if named else "NAME"


def _stated(folder: Path, key: str) -> str:
    """A word of config.json, as directories of Hugging Face have one; empty without it."""
    try:
        with open(folder / "config.json", encoding="utf-8") as file:
            word = json.loads(file.read(1 << 20)).get(key)
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return word if isinstance(word, str) and re.fullmatch(r"[\w.-]{1,100}", word) else ""


def meant_data(name: str, known: list[str]) -> str:
    """The data set that a bare path means: ``folder:DIR``, ``npz:FILE``, ``csv:FILE``, ``hf:…`` or ``wds:…``.

    A file that is missing counts by its ending: the data set then says that it is missing. A folder with
    parquet files or tar shards in it, or in its folder ``data``, is read from those.

    known: names of data sets; they come before paths.
    """
    path = os.path.expanduser(name)
    if name.partition(":")[0] in known:
        return name
    ending = os.path.splitext(path)[1].lower().removeprefix(".")
    kind = _kind_of_folder(path) if os.path.isdir(path) else _DATA_AT_A_PATH.get(ending, "")
    return f"{kind}:{name}" if kind in known else name


def _kind_of_folder(path: str) -> str:
    """hf or wds for a folder of packed files, else folder."""
    for place in (path, os.path.join(path, "data")):
        try:
            names = os.listdir(place)
        except OSError:
            continue
        for ending in _PACKED:
            if any(name.lower().endswith(f".{ending}") for name in names):
                return _DATA_AT_A_PATH[ending]
    return "folder"
