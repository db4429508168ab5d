"""The files around the code: packaging, constraints, make, CI."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import robustcli

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

# Extras that `make` installs.
PINNED = (
    "dev",
    "tensorboard",
    "mlflow",
    "wandb",
    "guard",
    "postgres",
    "serve",
    "onnx",
    "sign",
    "release",
    "docs",
)
OPTIONAL = (*PINNED, "timm", "bench")


def requirements(name: str) -> list[str]:
    """A list of strings in pyproject.toml (tomllib is not in Python 3.10)."""
    match = re.search(rf"^{re.escape(name)} = \[(.*?)\]$", PYPROJECT, flags=re.MULTILINE | re.DOTALL)
    assert match is not None, name
    return re.findall(r'"([^"]+)"', match.group(1))


def test_dependencies_have_lower_bounds_only() -> None:
    found = requirements("dependencies")
    assert {"torch>=2.9", "torchvision>=0.24", "pydantic>=2.8"} <= set(found) and len(found) == 15
    for line in found + [line for name in OPTIONAL for line in requirements(name)]:
        assert re.fullmatch(r"[A-Za-z0-9-]+(\[[a-z]+\])?>=[0-9.]+", line), line


def test_constraints_are_names_and_versions_and_cover_what_we_need() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    pinned = {
        name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)
    }
    assert len(pinned) == len(lines) and "robustcli" not in pinned
    for line in [*requirements("dependencies"), *[line for name in PINNED for line in requirements(name)]]:
        name, least = line.split(">=")
        version = pinned[name.partition("[")[0].lower()]
        assert [int(part) for part in re.findall(r"\d+", version)[:2]] >= [
            int(part) for part in least.split(".")[:2]
        ], line


def test_the_version_has_one_home() -> None:
    assert (
        'path = "robustcli/__init__.py"' in PYPROJECT and "version =" not in PYPROJECT.split("[tool.hatch")[0]
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", robustcli.__version__)
    assert f"## [{robustcli.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_wheel_carries_the_configs() -> None:
    assert re.search(r'force-include\]\nconfigs = "robustcli/configs"', PYPROJECT) and list(
        (ROOT / "configs").rglob("*.yaml")
    )


def test_make_builds_nothing_by_hand() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in (
        "setup",
        "demo",
        "test",
        "test-slow",
        "docs",
        "lint",
        "bench",
        "dist",
        "audit",
        "sbom",
        "clean",
    ):
        assert re.search(rf"^{target}:.*## ", text, flags=re.MULTILINE), target
    assert "-n $(N)" in text and "OMP_NUM_THREADS=1" in text and "--durations=15" in text


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_ci_fails_loudly_when_the_suite_does(tmp_path: Path) -> None:
    """With a make that fails, .ci/run fails; with one that succeeds, it runs the suite, then the linters."""
    (tmp_path / "make").write_text('#!/bin/sh\necho "made $1"\nexit ${FAKE_EXIT:-0}\n')
    (tmp_path / "make").chmod(0o755)
    for code, expected in (("0", 0), ("5", 1)):
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "FAKE_EXIT": code}
        done = subprocess.run(
            ["bash", str(ROOT / ".ci" / "run")],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == expected
        assert done.stdout.splitlines()[:2] == (
            ["made test", "made lint"] if expected == 0 else ["made test"]
        )
        assert ("failed" in done.stderr) == (expected == 1)


def workflow_texts() -> dict[str, str]:
    """Workflows, and what else holds steps for CI: for a user to include, or to be written for one."""
    places = (".github", "deploy", "robustcli")
    files = [path for place in places for path in (ROOT / place).rglob("*") if path.is_file()]
    texts = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in files
        if {".yml", ".yaml", ".py"} & set(path.suffixes)
    }
    return {name: text for name, text in texts.items() if re.search(r"^ *- uses:", text, re.MULTILINE)}


def test_every_action_is_pinned_by_the_hash_of_a_commit() -> None:
    """And all places take the same commit of an action. `uses: ./PATH` is of the own repository."""
    hashes: dict[str, set[str]] = {}
    for name, text in workflow_texts().items():
        for use in re.findall(r"^[ -]*uses: *(?!\./)(.*)$", text, flags=re.MULTILINE):
            pin = re.fullmatch(r"([\w-]+/[\w/-]+)@([0-9a-f]{40} # v\d+\.\d+\.\d+)", use)
            assert pin is not None, f"{name}: {use}: needs the hash of a commit, and its tag behind it"
            hashes.setdefault(pin[1], set()).add(pin[2])
    assert "actions/checkout" in hashes and all(len(found) == 1 for found in hashes.values()), hashes


def test_workflows_ask_for_little() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / ".github").rglob("*.yml")}
    assert set(pages) >= {"tests.yml", "smoke.yml", "supply.yml"}
    assert all("permissions:\n  contents: read\n" in text for text in pages.values())
    assert "--fail-under robust_acc=0.45" in pages["smoke.yml"]
    assert '["3.10", "3.11", "3.12"]' in pages["tests.yml"]
    assert {f"make {target}" for target in ("dist", "sbom", "audit")} <= set(
        re.findall(r"run: (make \w+)", pages["supply.yml"])
    )


def test_license_and_image() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (
        "Apache License" in text
        and "END OF TERMS AND CONDITIONS" in text
        and "The robustcli authors" in text
        and "[yyyy]" not in text
    )
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert (
        image.startswith("# Not built yet")
        and "FROM pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime" in image
        and re.search(r"^USER [^r0]", image, flags=re.MULTILINE)
    )
