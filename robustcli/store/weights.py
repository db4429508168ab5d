"""Bare weight files from outside.

Safetensors and npz are read here. Formats that can run code are refused, or converted by `convert` in a
confined process.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

import numpy
import safetensors
import torch
from torch import Tensor

from robustcli.errors import CheckpointError, PolicyError, RobustCliError
from robustcli.regular import read_regular
from robustcli.store import tensorfile
from robustcli.store.disk import explained
from robustcli.store.names import Kind, is_average, place_of

CODE_FORMATS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar")
SAFE_TORCH = (2, 10)  # weights_only before it could be broken out of: CVE-2025-32434, CVE-2026-24747
MAX_BYTES = 1 << 37
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_SAVE = "save model.state_dict(), alone or under a name"
_KIND = "drop --weights-kind (model.weights_kind)"
_CONVERT = Path(__file__).with_name("convert.py")


def read_weights(
    path: Path,
    *,
    allow_pickle: bool = False,
    kind: Kind = "auto",
) -> dict[str, Tensor]:
    """{name: tensor on the CPU} of one file, by its suffix.

    Prefixes that DataParallel and torch.compile add to names are removed.

    Args:
        path: .safetensors, .npz, or with `allow_pickle` .pt .pth .ckpt .bin .pkl .tar (a state dict, or
            mappings and lists that hold some, in any nesting).
        allow_pickle: convert such a file in a confined process of its own; needs torch >= 2.10.
        kind: which weights are meant where raw ones and their average are there. Of a file with several sets
            all are read, each tensor with the place of its set in front (`names.PLACE`): only who knows the
            network can choose, see `names.find`.

    Raises CheckpointError (exit 4): missing, damaged, no weights; PolicyError (exit 9): may run code, or
    tried to.
    """
    _refuse_address(path)
    path, suffix = Path(os.path.realpath(path)), path.suffix.lower()
    if os.path.isdir(path):
        _refuse_directory(path)
    if not os.path.exists(path):
        raise CheckpointError("no such file", where=str(path), code="E-CKPT-MISSING")
    if suffix == ".safetensors":
        tensors = tensorfile.decode(read_regular(path, MAX_BYTES), {}, str(path))
    elif suffix == ".npz":
        tensors = _read_npz(path)
    elif suffix in CODE_FORMATS:
        tensors = _read_foreign(path, allow_pickle, kind)
    else:
        _bad(f"unknown weight format {suffix!r}", path, "use .safetensors or .npz")
    if not tensors:
        _bad("holds no tensor", path)
    return without_prefixes(tensors)


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without a wrapper's prefix, where every name has it."""
    for _ in range(4):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None or not tensors:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def torch_version() -> tuple[int, int]:
    """(major, minor) of the running PyTorch; (0, 0) when it does not tell."""
    version = re.match(r"(\d+)\.(\d+)", str(torch.__version__))
    if version is None:
        return 0, 0
    return int(version[1]), int(version[2])


def _refuse_address(path: Path) -> None:
    if re.match(r"https?:/", str(path)):
        raise PolicyError(
            "weights are not loaded from the network",
            where=str(path),
            hint="download the file and check its hash",
        )


def _refuse_directory(path: Path) -> NoReturn:
    if (path / ".metadata").exists():
        raise PolicyError(
            "a torch.distributed checkpoint may run code when it is loaded",
            where=str(path),
            hint="save the state dict as .safetensors",
        )
    _bad("is a directory", path, "name a weight file in it, or a run as --model run:PATH")


def _read_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of numbers; every header is compared with the size of its entry before an array is made."""
    data = read_regular(path, MAX_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            bomb = sum(entry.file_size for entry in entries) > 100 * len(data) + (64 << 20)
            if bomb or len({entry.filename for entry in entries}) != len(entries):
                _bad("compressed more than 100 times, or a name is repeated", path)
            return {entry.filename.removesuffix(".npy"): _read_npy(archive, entry, path) for entry in entries}
    except RobustCliError:
        raise
    except Exception as error:  # zipfile, zlib, ast and numpy raise a dozen kinds for damaged input
        raise CheckpointError(
            f"not a readable npz file ({error})",
            where=str(path),
            hint="the file is damaged",
            code="E-CKPT-FORMAT",
        ) from error


def _read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Tensor:
    if not entry.filename.endswith(".npy"):
        _bad(f"entry {entry.filename!r} is not an array", path)
    with archive.open(entry) as file:
        version = numpy.lib.format.read_magic(file)
        readers = {
            (1, 0): numpy.lib.format.read_array_header_1_0,
            (2, 0): numpy.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            _bad(f"array {entry.filename!r} has format version {version}", path)
        shape, _, dtype = readers[version](file)
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            _bad(f"array {entry.filename!r} holds {dtype}, not numbers", path)
        if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
            _bad(
                f"array {entry.filename!r} of shape {shape} does not fit into its {entry.file_size} bytes",
                path,
            )
    with archive.open(entry) as file:
        array = numpy.lib.format.read_array(file, allow_pickle=False)
    return torch.from_numpy(numpy.array(array, dtype=dtype.newbyteorder("="), order="C"))


def _read_foreign(path: Path, allowed: bool, kind: Kind) -> dict[str, Tensor]:
    version = torch_version()
    if not path.is_file():
        _bad("not a regular file", path)
    if not allowed:
        raise PolicyError(
            f"a {path.suffix} file may run code when it is loaded",
            where=str(path),
            hint="convert it to .safetensors where it comes from, or accept it with --allow-pickle-weights",
            code="E-PICKLE",
        )
    if version < SAFE_TORCH:
        raise PolicyError(
            f"torch {version[0]}.{version[1]} cannot load a {path.suffix} file safely "
            "(CVE-2025-32434, CVE-2026-24747)",
            where=str(path),
            hint="update to torch >= 2.10, or convert the file to .safetensors",
            code="E-PICKLE",
        )
    with explained(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="robustcli-") as folder:
        outcome, detail = _convert(path, Path(folder))
        if outcome == "ok":
            data = read_regular(Path(folder) / "out.safetensors", MAX_BYTES)
            return _alone(tensorfile.decode(data, {}, str(path)), kind, path)
    if outcome == "damaged":
        _bad(detail, path)
    if outcome == "other":
        _bad(detail, path, _SAVE)
    raise PolicyError(
        f"refused: {detail}",
        where=str(path),
        hint="only tensors and plain values are accepted: save model.state_dict(), or ask for .safetensors",
        code="E-PICKLE",
    )


def _alone(tensors: dict[str, Tensor], kind: Kind, path: Path) -> dict[str, Tensor]:
    """The tensors without a place where the file holds one set of weights; else as they are.

    Numbers beside weights, such as a best accuracy, are no set: weights hold a matrix.
    """
    places = {place_of(name) for name, tensor in tensors.items() if tensor.ndim > 1}
    places = places or {place_of(name) for name in tensors}
    tensors = {name: tensor for name, tensor in tensors.items() if place_of(name) in places}
    averages = [place for place in places if is_average(place)]
    if kind == "raw" and len(averages) == len(places):
        _bad("holds averaged weights only, and raw ones are asked for", path, _KIND)
    if kind == "averaged" and not any(map(is_average, tensors)):
        _bad("holds no averaged weights, and these are asked for", path, _KIND)
    if len(places) > 1:
        return tensors
    return {name.removeprefix(place_of(name)): tensor for name, tensor in tensors.items()}


def _convert(path: Path, folder: Path) -> tuple[str, str]:
    """(outcome, detail) of the confined process; `folder` is its working directory."""
    try:
        status = _run_converter(path, folder)
    except subprocess.TimeoutExpired:
        return "limit", "it did not load in time"
    try:
        report = json.loads((folder / "report.json").read_text("utf-8"))
        return str(report["outcome"]), str(report["detail"])
    except (OSError, ValueError, KeyError):
        detail = f"its conversion ended with status {status}"
        last_line = (folder / "stderr").read_text("utf-8", "replace").strip().rpartition("\n")[2][:200]
        if last_line:
            detail += f" ({last_line})"
        return "limit", detail


def _run_converter(path: Path, folder: Path) -> int:
    """The exit status of the confined process. Raises subprocess.TimeoutExpired."""
    libraries = sorted({str(Path(module.__file__ or "").parents[1]) for module in (torch, safetensors)})
    environment = {key: os.environ[key] for key in ("LD_LIBRARY_PATH", "SYSTEMROOT") if key in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C.UTF-8"}
    with open(folder / "stderr", "wb") as stderr:
        return subprocess.run(
            [sys.executable, "-I", "-B", str(_CONVERT), str(path), json.dumps(libraries)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            timeout=120 + path.stat().st_size / 5e6,
            check=False,
        ).returncode


def _bad(what: str, path: Path, hint: str = "the file is damaged or not what its name says") -> NoReturn:
    raise CheckpointError(what, where=str(path), hint=hint, code="E-CKPT-FORMAT")
