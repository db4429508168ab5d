"""`robustcli env`: versions, machine and what is missing, to be pasted; no secret of the user is in it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from robustcli import __version__
from robustcli.jobs.project import installed
from robustcli.jobs.project.installed import Extra, Lack
from robustcli.records.document import Document
from robustcli.runtime.machine import answer_or_reason, cores, cpu_name, driver_version, system_text
from robustcli.runtime.source import code_hash
from robustcli.terminal.console import Console

_WIDTH = 100  # columns of the text
_INDENT = " " * 14
_GIB = 2**30
#: Variables whose values say how fast or where something runs, and nothing of the user.
_SHOWN = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "WANDB_MODE"),
    *("PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED"),
)
#: Of others only the name is said: what they hold may be a secret.
_NAMED = re.compile(r"ROBUSTCLI_\w+|MLFLOW_\w+|WANDB_\w+|PGPASSWORD|HTTPS?_PROXY", re.IGNORECASE)
_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")


def env(console: Console) -> dict[str, Any]:
    """Describe this environment; returns the document. torch is not imported: its files are read.

    Names of folders, of the user and of the host are left out, and values of variables that may be secret.
    """
    document = Document("env")
    content = {
        "robustcli": _ours(),
        "python": _python(),
        "platform": answer_or_reason(platform.platform)[0],
        "cpu": {"name": cpu_name(), "cores": os.cpu_count(), "usable": cores()},
        "memory": _memory(),
        "gpus": _gpus(),
        "driver": driver_version(),
        "torch": {"version": installed.version_of("torch"), **installed.torch_build()},
        "packages": installed.versions(),
        "variables": _variables(os.environ),
    }
    lacking, extras = installed.core(), installed.extras()
    content |= {
        "missing": [str(lack) for lack in lacking],
        "extras": {extra.name: _extra(extra) for extra in extras},
        "problems": list(_problems(content, lacking)),
    }
    for line in _lines(content, extras):
        console.result(line)
    return document.finish(None, content)


# ---- what is here ------------------------------------------------------------------------------------------


def _ours() -> dict[str, Any]:
    return {"version": __version__, "code": code_hash(), "editable": installed.is_editable()}


def _python() -> dict[str, Any]:
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "virtual_environment": sys.prefix != sys.base_prefix,
    }


def _memory() -> dict[str, int | None]:
    """Bytes: of the machine, free, and the limit of the container around this process."""
    page = answer_or_reason(lambda: os.sysconf("SC_PAGE_SIZE"))[0] or 0
    limit = system_text("/sys/fs/cgroup/memory.max").strip()
    return {
        "total": answer_or_reason(lambda: os.sysconf("SC_PHYS_PAGES") * page)[0],
        "free": answer_or_reason(lambda: os.sysconf("SC_AVPHYS_PAGES") * page)[0],
        "limit": int(limit) if limit.isdigit() else None,
    }


def _gpus() -> list[dict[str, Any]]:
    """What the driver's own tool lists: name, memory in bytes, driver. [] without the tool, or an answer."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return [{"name": "Apple GPU", "memory": None, "driver": None}]
    if shutil.which(_SMI[0]) is None:
        return []
    asked = answer_or_reason(
        lambda: subprocess.run(_SMI, capture_output=True, text=True, timeout=20, check=True).stdout
    )
    rows = [[cell.strip() for cell in line.split(",")] for line in (asked[0] or "").splitlines()]
    return [
        {"name": name, "memory": int(mib) * 2**20 if mib.isdigit() else None, "driver": driver}
        for name, mib, driver in (row for row in rows if len(row) == 3)
    ]


def _variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Name -> value; None for a variable that is set and whose value stays here."""
    shown = {name: environ[name] for name in _SHOWN if name in environ}
    named = {name: None for name in sorted(environ) if _NAMED.fullmatch(name) and name not in shown}
    return {**shown, **named}


def _extra(extra: Extra) -> dict[str, Any]:
    missing = [str(lack) for lack in extra.lacks]
    return {"present": not missing, "for": extra.purpose, "missing": missing, "command": extra.command}


def _problems(content: Mapping[str, Any], lacking: Sequence[Lack]) -> Iterator[str]:
    """Sentences: what is wrong, and what mends it."""
    if lacking:
        yield "robustcli lacks something: pip install --upgrade robustcli torch torchvision"
    build, gpus = content["torch"], content["gpus"]
    nvidia = bool(content["driver"]) or any(gpu["driver"] for gpu in gpus)
    if nvidia and build["version"] and not (build["cuda"] or build["hip"]):
        yield "an NVIDIA driver is here, and this torch has no CUDA: see https://pytorch.org/get-started"
    if nvidia and not gpus:
        yield "an NVIDIA driver is here, and nvidia-smi lists no GPU: see robustcli check-gpu"
    if nvidia and content["variables"].get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield "CUDA_VISIBLE_DEVICES hides all GPUs"


# ---- as text -----------------------------------------------------------------------------------------------


def _lines(content: Mapping[str, Any], extras: Sequence[Extra]) -> Iterator[str]:
    """The description as lines of at most some 100 characters, the same on a terminal and in a file."""
    ours, python, cpu = content["robustcli"], content["python"], content["cpu"]
    kind = "editable" if ours["editable"] else "installed"
    place = "in a virtual environment" if python["virtual_environment"] else "of the system"
    yield _line("robustcli", f"{ours['version']}, {kind}, code {ours['code'][:16]}")
    yield _line("python", f"{python['version']} {python['implementation']}, {place}")
    yield _line("system", str(content["platform"]))
    yield _line("cpu", f"{cpu['name']}, {cpu['usable']} of {cpu['cores']} cores usable")
    yield _line("memory", _memory_text(content["memory"]))
    yield _line("gpu", "; ".join(map(_gpu_text, content["gpus"])) or "none that the system tells of")
    yield _line("torch", _torch_text(content["torch"]))
    yield _line("packages", ", ".join(f"{name} {version}" for name, version in content["packages"].items()))
    yield _line("variables", ", ".join(_variable_texts(content["variables"])) or "none that matter here")
    yield _line("missing", ", ".join(content["missing"]) or "nothing that robustcli itself needs")
    yield from _extra_lines(extras, ours["editable"])
    for problem in content["problems"]:
        yield _line("problem", problem)


def _extra_lines(extras: Sequence[Extra], editable: bool) -> Iterator[str]:
    """The extras that are here; then what each other one needs, and below it the command that gets it."""
    yield _line("extras", ", ".join(extra.name for extra in extras if not extra.lacks) or "none")
    absent = [extra for extra in extras if extra.lacks]
    if absent:
        yield "more extras" + ("   to be had in the folder of the source:" if editable else "   to be had:")
    for extra in absent:
        purpose = f" ({extra.purpose})" if extra.purpose else ""
        yield _line(f"- {extra.name}", f"needs {', '.join(map(str, extra.lacks))}{purpose}")
        yield _INDENT + extra.command


def _line(name: str, text: str) -> str:
    """`name  text`, wrapped under its own beginning."""
    width = _WIDTH - len(_INDENT)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return f"{name:<{len(_INDENT)}}" + f"\n{_INDENT}".join(lines)


def _memory_text(memory: Mapping[str, int | None]) -> str:
    said = [f"{value / _GIB:.1f} GiB {key}" for key, value in memory.items() if value]
    return ", ".join(said) or "not known"


def _gpu_text(gpu: Mapping[str, Any]) -> str:
    memory = f", {gpu['memory'] / _GIB:.0f} GiB" if gpu["memory"] else ""
    driver = f", driver {gpu['driver']}" if gpu["driver"] else ""
    return f"{gpu['name']}{memory}{driver}"


def _torch_text(torch: Mapping[str, str | None]) -> str:
    if torch["version"] is None:
        return "not installed"
    built = [f"{name} {torch[key]}" for name, key in (("CUDA", "cuda"), ("ROCm", "hip")) if torch[key]]
    return f"{torch['version']}, built {'for ' + ' and '.join(built) if built else 'for the CPU'}"


def _variable_texts(variables: Mapping[str, str | None]) -> Iterable[str]:
    return [f"{name} (set)" if value is None else f"{name}={value}" for name, value in variables.items()]
