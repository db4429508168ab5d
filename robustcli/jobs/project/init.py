"""`robustcli init`: a commented configuration and a CI workflow for a project of the user's."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli import registry
from robustcli.config.load import Loaded
from robustcli.config.number import format_number, resolve_plain
from robustcli.config.spec import names_code
from robustcli.errors import UsageError
from robustcli.foreign import PLUGIN
from robustcli.jobs.project import texts
from robustcli.jobs.project.found import Found, find_data
from robustcli.records.document import Document
from robustcli.store.atomic import write_atomic
from robustcli.store.disk import explained
from robustcli.terminal.console import Console

CONFIG, GITHUB, GITLAB = "robustness.yaml", ".github/workflows/robustness.yml", ".gitlab/robustness.yml"
_RADII = {"linf": "8/255", "l2": "0.5", "l1": "12", "l0": "10"}  # where the data set has no usual one
_LARGE_RADIUS = "4/255"  # linf, for images of 128 pixels and more
_EMBEDDED = "digits"


@dataclass(frozen=True)
class InitFlags:
    """Flags of `init`.

    Args:
        folder: of the project.
        data, eps: as the user wrote them; None where nothing was said.
        plugin: FILE.py:factory.
        gitlab: whether a file for GitLab is written, too.
        overwrite: whether files that are there are replaced.
    """

    folder: Path
    data: str | None = None
    eps: str | None = None
    plugin: str | None = None
    gitlab: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class _Project:
    """What the files are filled with; all as YAML has it. trained: whether the model has weights already."""

    data: str
    size: int | None
    found: str
    model: str
    trained: bool
    norm: str
    eps: str
    plugin: str | None
    small: bool


def init(loaded: Loaded, console: Console, flags: InitFlags) -> dict[str, Any]:
    """Write the files; returns the `init` document. loaded: the defaults with what the user said.

    Raises UsageError for files that are there already, ResourceError where the disk refuses.
    """
    document = Document("init")
    folder = flags.folder
    names = [CONFIG, GITHUB, *([GITLAB] if flags.gitlab else [])]
    _check_free(folder, names, flags.overwrite)
    found, reasons = (None, []) if flags.data or not folder.is_dir() else find_data(folder)
    project = _project(loaded, flags, found)
    written = {CONFIG: _config(project), GITHUB: _github(project), GITLAB: _gitlab(project)}
    for name in names:
        with explained(folder):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, written[name].encode())
    notes = [*reasons, *_outside(project), *_notes(folder)]
    console.info(f"data: {project.found}")
    for note in notes:
        console.warn(note)
    _next_steps(project, folder, console)
    for name in names:
        console.result(str(folder / name))
    described = None if found is None else {"images": found.counts, "classes": list(found.classes)}
    return document.finish(
        None,
        {
            "files": [str(folder / name) for name in names],
            "data": project.data,
            "found": described,
            "model": project.model,
            "norm": project.norm,
            "eps": project.eps,
            "notes": notes,
        },
    )


def _check_free(folder: Path, names: list[str], overwrite: bool) -> None:
    """Raises UsageError where a file would be lost."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("it is a file", where=str(folder), hint="name the directory of the project")
    there = [name for name in names if os.path.lexists(folder / name)]
    if there and not overwrite:
        raise UsageError(
            f"{' and '.join(there)} {'is' if len(there) == 1 else 'are'} there already",
            where=str(folder),
            hint="add --overwrite, or name another directory",
        )


def _project(loaded: Loaded, flags: InitFlags, found: Found | None) -> _Project:
    config = loaded.config
    data, size, told = config.data.name, config.data.size, "as you named them."
    if found is not None:
        data, size, told = f"folder:{found.place}", found.size, f"found in {found.place}: {found.told}."
    elif flags.data is None:
        data, told = _EMBEDDED, "none were found here; digits are embedded, to try everything. Put yours in."
    small, large = data == _EMBEDDED or (found is not None and _side(found) <= 16), (size or 0) >= 128
    said = loaded.origins.get("model.name") != "default"
    model = config.model.name
    if not said:
        model = "small_cnn" if small else "preact_resnet18"
    spec = config.model
    code = flags.plugin is not None or names_code(model) or model.startswith(PLUGIN)
    return _Project(
        data=_within(data, flags.folder) if flags.data else data,
        size=size,
        found=told,
        model=_within(model, flags.folder) if spec.is_reference and not code else model,
        trained=spec.is_reference and not code,
        norm=config.balls[0].norm,
        eps=flags.eps or _usual_radius(data, config.balls[0].norm, large),
        plugin=None if flags.plugin is None else _within(flags.plugin, flags.folder),
        small=small or (found is not None and sum(found.counts.values()) < 2000),
    )


def _side(found: Found) -> int:
    """Side of the images, pixels."""
    return found.size or int(found.sizes.rpartition("x")[2])


def _usual_radius(data: str, norm: str, large: bool) -> str:
    kind = data.partition(":")[0]
    presets = registry.datasets.get(kind).facts.presets if kind in registry.datasets else {}
    if norm in presets:
        return str(format_number(presets[norm]))
    return _LARGE_RADIUS if large and norm == "linf" else _RADII[norm]


def _within(reference: str, folder: Path) -> str:
    """KIND:PATH or FILE.py:NAME as it is written inside the folder, where the path lies in it."""
    kind, colon, rest = reference.partition(":")
    is_code = kind.endswith(".py")
    path = Path(os.path.abspath(os.path.expanduser(kind if is_code else rest)))
    home = Path(os.path.abspath(folder))
    if not colon or not path.exists():
        return reference
    shown = path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
    return f"{shown}:{rest}" if is_code else f"{kind}:{shown}"


def _config(project: _Project) -> str:
    size = f"\n  size: {project.size}  # pixels; images are resized and cropped" if project.size else ""
    network = ": built in, torchvision:NAME@WEIGHTS, or yours by --plugin FILE.py:FACTORY."
    if project.plugin is not None:
        network = f" is yours: {project.plugin}. A configuration never runs code, so commands name the file."
    elif project.trained:
        network = " is trained already: training goes on from there, and the gate measures it."
    plugin = "" if project.plugin is None else f" --plugin {shlex.quote(project.plugin)}"
    return texts.filled(
        texts.CONFIG,
        plugin=plugin,
        gated=plugin if project.trained else f" --model run:runs/train/latest{plugin}",
        found=project.found,
        size=size,
        data=_scalar(project.data),
        network=network,
        model=_scalar(project.model),
        norm=project.norm,
        eps=project.eps,
        batch="32" if project.small else "128",
        rate="0.05" if project.small or project.plugin or project.trained else "0.1",
    )


def _commands(project: _Project) -> tuple[list[str], list[str]]:
    """What the jobs smoke and gate run."""
    plugin = "" if project.plugin is None else f" --plugin {shlex.quote(project.plugin)}"
    size = f" data.size={project.size}" if project.size else ""
    smoke = [
        f"robustcli config validate {CONFIG}",
        f"robustcli data check {shlex.quote(project.data)}{size}",
        f"robustcli train {CONFIG}{plugin} --smoke --out runs/smoke",
    ]
    gate = [f"robustcli gate {CONFIG}{plugin} --out runs/gate --junit gate.xml"]
    if not project.trained:
        train = f"robustcli train {CONFIG}{plugin} --out runs/robustness"
        gate = [train, gate[0].replace(CONFIG, f"{CONFIG} --model run:runs/robustness")]
    return smoke, gate


def _github(project: _Project) -> str:
    when = "" if project.trained else texts.GITHUB_MANUAL
    return _workflow(texts.filled(texts.GITHUB, setup=texts.GITHUB_SETUP), texts.GITHUB_STEP, when, project)


def _gitlab(project: _Project) -> str:
    when = "" if project.trained else texts.GITLAB_MANUAL
    return _workflow(texts.GITLAB, texts.GITLAB_STEP, when, project)


def _workflow(text: str, step: str, when: str, project: _Project) -> str:
    smoke, gate = (
        "".join(texts.filled(step, command=command) for command in commands).rstrip("\n")
        for commands in _commands(project)
    )
    return texts.filled(text, smoke=smoke, gate=gate, when=when)


def _scalar(text: str) -> str:
    """A text as YAML that reads back as the same text."""
    if re.fullmatch(r"[\w./:@+~-]+", text) and isinstance(resolve_plain(text), str):
        return text
    quoted = text.replace("'", "''")
    return f"'{quoted}'"


def _outside(project: _Project) -> list[str]:
    """Which files of the project lie elsewhere, where a workflow has nothing."""
    kept = [project.plugin or "", project.data, project.model if project.trained else ""]
    paths = {
        name: name.rpartition(":")[0] if name == project.plugin else name.partition(":")[2] for name in kept
    }
    return [
        f"{name} lies outside of the project, where its workflow does not find it: copy it in, and name that"
        for name, path in paths.items()
        if os.path.isabs(path)
    ]


def _notes(folder: Path) -> list[str]:
    """What the user must know of the place of the workflow."""
    home = Path(os.path.abspath(folder))
    above = [parent for parent in home.parents if (parent / ".git").exists()]
    if (home / ".git").exists() or not above:
        return []
    return [
        f"the repository begins at {above[0]}, where GitHub looks for {GITHUB}: move it there, and set "
        f"working-directory: {home.relative_to(above[0]).as_posix()} in its jobs"
    ]


def _next_steps(project: _Project, folder: Path, console: Console) -> None:
    smoke, _ = _commands(project)
    place = "" if folder == Path(".") else f"cd {shlex.quote(str(folder))}; "
    console.info("next steps:")
    console.info(f"  {place}{smoke[1]}   (are the images what you think?)")
    console.info(f"  {place}{smoke[2].replace(' --out runs/smoke', '')}   (does it run? some seconds)")
