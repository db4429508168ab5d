"""What `make dist sbom audit` makes of this source: packages that install, and what they are made of."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import robustcli

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
#: Without what a `make test` around this process says to the `make` that is asked here.
OUTER = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "VENV")
HERE = {name: value for name, value in os.environ.items() if name not in OUTER}
HERE |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def needs(*packages: str) -> None:
    """Skip where a package of the extra `release` is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: make setup, or pip install 'robustcli[release]'")


def commands(target: str) -> list[list[str]]:
    """What `make TARGET` runs once .venv is there, with the Python of this process in place of its own."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    # -o: .venv counts as up to date, whether it is or not.
    asked = ["make", "--no-print-directory", "-n", "-o", ".venv/.ready", target]
    said = subprocess.run(asked, cwd=ROOT, env=HERE, capture_output=True, text=True, timeout=30, check=True)
    lines = [shlex.split(line) for line in said.stdout.splitlines()]
    bins = {".venv/bin/python": [sys.executable], ".venv/bin/pip-audit": [sys.executable, "-m", "pip_audit"]}
    return [[word for part in line for word in bins.get(part, [part])] for line in lines]


def ran(words: list[str], where: Path, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words, cwd=where, env={**HERE, **env}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
    return done


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist of this source, and the wheel that was built from that sdist."""
    needs("build", "hatchling")
    (build,) = [words for words in commands("dist") if "build" in words]
    folder = tmp_path_factory.mktemp("dist")
    ran([*build, "--outdir", str(folder)], ROOT)
    return folder


def files_of(place: str) -> set[str]:
    """The files of a folder of the source, by their path in it."""
    found = [path.relative_to(ROOT / place) for path in (ROOT / place).rglob("*") if path.is_file()]
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_all_files_and_no_others(packages: Path) -> None:
    """Sources, pages and templates of the package, the shipped configurations, and what describes them."""
    (wheel,) = packages.glob("*.whl")
    assert wheel.name == f"robustcli-{robustcli.__version__}-py3-none-any.whl"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    described = {name for name in held if ".dist-info/" in name}
    ours = {f"robustcli/{name}" for name in files_of("robustcli")}
    shipped = {f"robustcli/configs/{name}" for name in files_of("configs")}
    assert held - described == ours | shipped
    assert any(name.endswith("/licenses/LICENSE") for name in described)


def test_the_sdist_holds_what_builds_and_tests_it(packages: Path) -> None:
    (sdist,) = packages.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "Makefile", "Dockerfile"} <= held
    assert {".ci/run", ".github/workflows/tests.yml", "deploy/compose.yaml", "tests/test_house.py"} <= held
    assert not {name for name in held if name.startswith((".venv", "runs", "build/", "dist/"))}


def test_the_installed_wheel_runs(packages: Path, tmp_path: Path) -> None:
    """From a folder that has nothing of the source: the script, and the shipped configurations."""
    (wheel,) = packages.glob("*.whl")
    there = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    ran([*pip, "--target", str(there), str(wheel)], tmp_path)
    (script,) = (there / "bin").iterdir()
    version = ran([str(script), "--version"], tmp_path, PYTHONPATH=str(there))
    assert version.stdout == f"robustcli {robustcli.__version__}\n"
    code = "import robustcli, sys, robustcli.cli.main as m; print(robustcli.__file__); m.run(sys.argv[1:])"
    listed = ran([sys.executable, "-c", code, "config", "ls", "--json"], tmp_path, PYTHONPATH=str(there))
    where, _, document = listed.stdout.partition("\n")
    assert Path(where).is_relative_to(there)
    described = ran([str(script), "env", "--json"], tmp_path, PYTHONPATH=str(there)).stdout
    lists = PYPROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert set(json.loads(described)["extras"]) == set(re.findall(r"^(\w+) = \[", lists, flags=re.MULTILINE))
    names = {config["name"] for config in json.loads(document)["configs"]}
    assert names == {name.removesuffix(".yaml") for name in files_of("configs") if name.endswith(".yaml")}


def test_the_parts_of_the_environment_are_listed(tmp_path: Path) -> None:
    """`make sbom` without its validation, which takes 20 s: we are the root, and every version is there."""
    needs("cyclonedx_py")
    (words,) = [words for words in commands("sbom") if "cyclonedx_py" in words]
    words[words.index("dist/sbom.cdx.json")] = str(tmp_path / "sbom.json")
    ran([*words, "--no-validate"], ROOT)
    bom = json.loads((tmp_path / "sbom.json").read_text())
    assert bom["bomFormat"] == "CycloneDX" and bom["metadata"]["component"]["name"] == "robustcli"
    listed = {part["name"].lower().replace("_", "-"): part["version"] for part in bom["components"]}
    for name in ("torch", "torchvision", "numpy", "safetensors", "pydantic"):
        assert listed[name] == metadata.version(name)


def test_the_audit_reads_all_constraints() -> None:
    """`make audit` up to where it would ask PyPI."""
    needs("pip_audit")
    (words,) = commands("audit")
    said = ran([*words, "--dry-run"], ROOT).stderr
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"would have audited {len([line for line in lines if '==' in line])} packages" in re.sub(
        r"\s+", " ", said
    )
