"""`robustcli env`: what is here, what is missing and how to get it; quick, and without a secret."""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from robustcli.jobs.project import env as job
from robustcli.jobs.project import installed
from robustcli.runtime.source import code_hash


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace what robustcli declares: extra -> requirements."""

    def declare(**texts: list[str]) -> None:
        found = {name.removeprefix("core"): [Requirement(text) for text in of] for name, of in texts.items()}
        monkeypatch.setattr(installed, "_declared", lambda: {"": [], **found})

    return declare


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a package that consists of what it states of itself."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(name: str, version: str, *lines: str) -> None:
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        stated = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""]
        (folder / "METADATA").write_text("\n".join(stated))

    return install


def test_it_says_what_is_here(cli: Any) -> None:
    answer = cli("env", "--json")
    found = answer.document
    assert answer.code == 0 and found["ok"] and found["verb"] == "env" and found["run"] is None
    assert (
        found["robustcli"]["code"] == code_hash() and found["python"]["version"] == platform.python_version()
    )
    for name in ("torch", "numpy", "safetensors"):
        assert found["packages"][name] == metadata.version(name)
    assert found["torch"]["version"] == metadata.version("torch")
    assert found["cpu"]["usable"] >= 1 and found["memory"]["total"] > found["memory"]["free"] > 0
    assert found["missing"] == [] and found["extras"]["dev"]["present"]
    assert set(installed.PURPOSES) <= set(found["extras"]), "a purpose of an extra that is gone"


def test_the_text_holds_the_same_and_is_narrow(cli: Any) -> None:
    found, text = cli("env", "--json").document, cli("env").out
    assert all(len(line) <= 100 for line in text.splitlines()), text
    one_line = re.sub(r"\s+", " ", text)
    for name, version in found["packages"].items():
        assert f"{name} {version}" in one_line
    for name, extra in found["extras"].items():
        assert (f"- {name} " not in text) == extra["present"]
        assert extra["present"] or f"\n{' ' * 14}{extra['command']}\n" in text, "to be copied as a whole"


def test_torch_is_not_imported() -> None:
    """So it answers where torch is broken, and at once."""
    code = (
        "import sys; from robustcli.cli.main import run; run(['env']);"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'torchvision', 'scipy', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_no_secret_and_no_name_of_a_place(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = ("ROBUSTCLI_TOKEN", "ROBUSTCLI_MODEL__NAME", "MINE", "HOME", "USER", "LOGNAME")
    for name in (*ours, "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "https_proxy"):
        monkeypatch.setenv(name, f"hidden-{name}")
    for module, name in ((platform, "node"), (socket, "gethostname"), (getpass, "getuser")):
        monkeypatch.setattr(module, name, lambda: "hidden-name")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for said in (cli("env").out, cli("env", "--json").out):
        assert "hidden" not in said and str(tmp_path) not in said and sys.prefix not in said
        assert "WANDB_API_KEY" in said and "MINE" not in said
    found = cli("env", "--json").document["variables"]
    assert found["OMP_NUM_THREADS"] == "1" and found["WANDB_API_KEY"] is None


def test_what_is_missing_has_a_command(declared: Any, distribution: Any, cli: Any) -> None:
    """A package that is not there, one that is too old, and one without a part that the extra asks for."""
    distribution(
        "driver-x", "3.2", "Provides-Extra: fast", 'Requires-Dist: driver-x-fast==3.2; extra == "fast"'
    )
    declared(
        a=["no-such-package>=1"], b=["numpy>=99", "driver-x>=3"], c=["driver-x[fast]>=3"], d=["driver-x"]
    )
    found = cli("env", "--json").document["extras"]
    assert found["a"]["missing"] == ["no-such-package>=1"]
    assert found["b"]["missing"] == [f"numpy>=99 (here: {metadata.version('numpy')})"]
    assert found["c"]["missing"] == ["driver-x-fast==3.2"] and found["d"]["present"]
    assert re.fullmatch(r'pip install .*\[c\]"', found["c"]["command"])
    distribution("driver-x-fast", "3.2")
    assert cli("env", "--json").document["extras"]["c"]["present"]


@pytest.mark.parametrize(
    ("said", "command"),
    [
        ('{"url": "file:///x", "dir_info": {"editable": true}}', 'pip install -e ".[guard]"'),
        ('{"url": "file:///x", "dir_info": {}}', 'pip install "robustcli[guard]"'),
        (None, 'pip install "robustcli[guard]"'),
    ],
)
def test_the_command_is_that_of_the_installation(
    said: str | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return said

    monkeypatch.setattr(metadata, "distribution", lambda name: Found())
    assert installed.command("guard") == command


def test_a_torchvision_of_another_torch_is_said(declared: Any, distribution: Any, cli: Any) -> None:
    declared(core=["torch>=2.9", "torchvision>=0.24"])
    distribution("torchvision", "0.25.0", "Requires-Dist: torch==2.10.0", "Requires-Dist: gone; extra == 'x'")
    found = cli("env", "--json").document
    assert found["missing"] == [f"torch==2.10.0 (here: {metadata.version('torch')})"]
    assert found["problems"] == [
        "robustcli lacks something: pip install --upgrade robustcli torch torchvision"
    ]
    assert "problem       robustcli lacks something" in cli("env").out


SMI = "NVIDIA H100 80GB HBM3, 81559, 570.1\\nNVIDIA H100 80GB HBM3, [N/A], 570.1\\n"


def test_gpus_are_those_of_the_driver(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{SMI}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(installed, "torch_build", lambda: {"cuda": None, "hip": None})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = cli("env", "--json").document
    gpu = {"name": "NVIDIA H100 80GB HBM3", "driver": "570.1"}
    assert found["gpus"] == [{**gpu, "memory": 81559 * 2**20}, {**gpu, "memory": None}]
    assert [line.partition(":")[0] for line in found["problems"]] == [
        "an NVIDIA driver is here, and this torch has no CUDA",
        "CUDA_VISIBLE_DEVICES hides all GPUs",
    ]
    assert "NVIDIA H100 80GB HBM3, 80 GiB, driver 570.1; NVIDIA H100 80GB HBM3, driver 570.1" in re.sub(
        r"\s+", " ", cli("env").out
    )
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert cli("env", "--json").document["gpus"] == []
    monkeypatch.setattr(job, "driver_version", lambda: "570.1")
    assert "lists no GPU" in cli("env", "--json").document["problems"][1]


def test_the_build_of_torch_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert installed.torch_build() == {"cuda": torch.version.cuda, "hip": torch.version.hip}
    monkeypatch.setattr(installed, "_folder", lambda package: tmp_path)
    assert installed.torch_build() == {"cuda": None, "hip": None}


def test_json_is_one_document(cli: Any) -> None:
    answer = cli("env", "--json")
    assert json.loads(answer.out)["schema_version"] == 1 and answer.err == ""
