"""Turns one foreign PyTorch file into safetensors, in a confined process. `weights` runs it as a script.

    python -I convert.py SOURCE '["directories of torch and safetensors"]'     in an empty working directory

Writes ``out.safetensors`` and ``report.json`` there. This is the only file of the project that may call
torch.load, always with weights_only=True. Around it stand limits on memory, CPU time and file size. The
process leaves the network where the system allows it. An audit hook ends it when anything tries to start a
program, or to open a socket or a library.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

MIB = 1 << 20
#: Between the place of a set of weights in a file and the names in it, where a file holds several sets.
PLACE = " / "
#: What lies beside weights and holds tensors under the same names: an optimizer's moments, gradients.
_BESIDE = re.compile(r"optim|sched|scaler|exp_avg|momentum|(^|_)grad(s|ients?)?($|_)", re.IGNORECASE)
_DEEPEST, _MOST_SETS = 32, 10_000
#: What checkpoints hold beside weights, as pickles name it: read as `Inert`, so no such code ever runs.
BESIDE_WEIGHTS = (
    *("argparse.Namespace", "types.SimpleNamespace", "torch.torch_version.TorchVersion"),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath"),
    *("pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *("numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "_codecs.encode"),
)
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.",
    "ctypes.",
    "os.remove",
    "os.rename",
)


class Refused(Exception):
    """The file asks for something that plain weights never need."""


class NoWeights(ValueError):
    """The file is sound, and holds something else than weights."""


class Inert:
    """Stands where a pickle names one of `BESIDE_WEIGHTS`: takes everything, keeps and does nothing."""

    def __new__(cls, *arguments: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        return

    def __setstate__(self, state: Any) -> None:
        return


def main(source: str, search: list[str]) -> str:
    """Convert; returns "" or the reason.

    The outcome goes to report.json: ok | refused | damaged | other | limit.
    """
    _leave_network()
    sys.path += search  # behind everything else: isolated mode hides a user's site-packages
    outcome, detail = "ok", ""
    try:
        with open(source, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            check_archive(file, size)
            convert(file, size, confine)
    except Refused as error:
        outcome, detail = "refused", str(error)
    except MemoryError:
        outcome, detail = "limit", "it needs far more memory than its size"
    except Exception as error:
        outcome, detail = classify(error)
    with open("report.json", "w", encoding="utf-8") as report:
        json.dump({"outcome": outcome, "detail": detail[:500]}, report)
    return detail


def convert(file: BinaryIO, size: int, confine: Callable[[int], None]) -> None:
    """Load `file`, find its sets of weights and write them all to out.safetensors.

    confine: called with `size` between the imports and the load.
    """
    import safetensors.torch
    import torch

    torch.set_num_threads(1)
    confine(size)
    with torch.serialization.safe_globals([(Inert, name) for name in BESIDE_WEIGHTS]):
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    state = unwrap(loaded)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise NoWeights(f"entry {str(name)[:100]!r} is a {type(value).__name__}, not a named tensor")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise NoWeights(f"tensor {name!r} is sparse, quantised or without data")
    claimed = sum(value.numel() * value.element_size() for value in state.values())
    if claimed > 4 * size + MIB:  # stride-0 tensors claim terabytes of one number
        raise Refused(f"its tensors claim {claimed} bytes, the file has {size}")
    contiguous = torch.contiguous_format
    copies = {name: value.detach().clone(memory_format=contiguous) for name, value in state.items()}
    safetensors.torch.save_file(copies, "out.safetensors")


def unwrap(loaded: Any) -> dict[str, Any]:
    """All tensors in a file that may be weights: a state dict, or mappings and lists around some.

    Each tensor has the place of its set in front, as in ``model / conv.weight``. Which set is meant is seen
    where the network is known. Raises NoWeights when there is none.
    """
    sets: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    if isinstance(loaded, (dict, list, tuple)):
        _collect((), loaded, sets)
    if not sets and not isinstance(loaded, dict):
        raise NoWeights(f"holds a {type(loaded).__name__}, not a state dict")
    if not sets:
        keys = ", ".join(str(key)[:40] for key in list(loaded)[:8])
        raise NoWeights(f"holds {keys or 'nothing'}, and no tensor; expected a state dict, in any nesting")
    if len(sets) > 1:
        sets = [(place, {name: t for name, t in found.items() if _is_tensor(t)}) for place, found in sets]
    return {PLACE.join((*place, name)): value for place, found in sets for name, value in found.items()}


def _collect(place: tuple[str, ...], holder: Any, sets: list[tuple[tuple[str, ...], dict[str, Any]]]) -> None:
    """Add (keys that lead to it, entries by name) of each mapping and list with a tensor to `sets`."""
    if len(place) > _DEEPEST or len(sets) > _MOST_SETS:
        raise Refused("it is nested more deeply, or in more parts, than weights are")
    pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
    entries = {str(key): value for key, value in pairs}
    if any(map(_is_tensor, entries.values())):
        sets.append((place, {key: v for key, v in entries.items() if not isinstance(v, (dict, list, tuple))}))
    for key, value in entries.items():
        if isinstance(value, (dict, list, tuple)) and not _BESIDE.search(key):
            _collect((*place, key), value, sets)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage")


def check_archive(file: BinaryIO, size: int) -> None:
    """Raises Refused for a zip that torch.save does not write: compressed, overlapping, or TorchScript."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        if any(os.path.basename(entry.filename) == "constants.pkl" for entry in entries):
            raise Refused("a TorchScript archive is a program")
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if compressed or sum(entry.file_size for entry in entries) > size:
            raise Refused("compressed or overlapping archive entries")
    file.seek(0)


def classify(error: Exception) -> tuple[str, str]:
    """(outcome, one line) of what torch.load raised.

    torch says "Weights only load failed" when the file names code.
    """
    text = str(error)
    if "eights only load failed" in text or "weights_only" in text:
        named = re.search(r"GLOBAL:? [\w.]*\w", text)
        if named:
            return "refused", f"it names code: {named[0]}"
        return "refused", "it holds more than plain tensors, or is damaged"
    if "alloc" in text and "memory" in text:
        return "limit", "it needs far more memory than its size"
    first = re.split(r"[\n:.](?:\s|$)", text.strip())[0][:200]
    if isinstance(error, NoWeights):
        return "other", text.strip()
    if isinstance(error, ValueError):
        return "damaged", first
    return "damaged", f"not readable ({type(error).__name__}: {first})"


def confine(size: int) -> None:
    """From here on: bounded memory, CPU time and file size, no core dump, no new programs.

    Each bound holds only where the system has it.
    """
    if sys.platform != "win32":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        bounds = {
            resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + 30 + size // (10 * MIB),
            resource.RLIMIT_FSIZE: 5 * size + 16 * MIB,
            resource.RLIMIT_CORE: 0,
        }
        mapped = _mapped_bytes()
        if mapped:
            bounds[resource.RLIMIT_AS] = mapped + 8 * size + 512 * MIB
        for kind, bound in bounds.items():
            hard = resource.getrlimit(kind)[1]
            if hard != resource.RLIM_INFINITY:
                bound = min(bound, hard)
            try:
                resource.setrlimit(kind, (bound, bound))
            except (ValueError, OSError):
                continue  # macOS refuses RLIMIT_AS; weights_only and the other bounds still stand
    sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(FORBIDDEN):
        os.write(2, f"forbidden: {event}\n".encode())
        os._exit(99)


def _leave_network() -> None:
    """Enter a new network namespace, which has no interface. Linux only.

    Root may do so directly; anybody else needs a new user namespace as well.
    """
    if sys.platform == "linux":
        new_net, new_user = 0x40000000, 0x10000000
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(new_net) != 0:
            libc.unshare(new_net | new_user)


def _mapped_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    reason = main(sys.argv[1], json.loads(sys.argv[2]))
    sys.exit(1 if reason else 0)
