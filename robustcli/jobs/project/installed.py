"""Which packages are installed, by what they state of themselves: none of them is imported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from robustcli.runtime.machine import answer_or_reason
from robustcli.runtime.source import PACKAGE

NAME = "robustcli"
#: What an extra is for. One that is not here is shown without a word.
PURPOSES = {
    "dev": "tests and linters",
    "tensorboard": "train.trackers: tensorboard",
    "mlflow": "train.trackers: mlflow",
    "wandb": "train.trackers: wandb",
    "timm": "models timm:NAME",
    "hf": "models hf:DIR_OR_NAME",
    "guard": "the evidence of a guard: guard run, status, review, update",
    "serve": "guard serve",
    "postgres": "evidence in PostgreSQL",
    "onnx": "ONNX files: export, certify --export, models onnx:FILE",
    "sign": "report --sign and --verify",
    "release": "make dist, audit and sbom",
    "bench": "make bench: the speed beside torchattacks",
}


@dataclass(frozen=True)
class Lack:
    """A requirement that is not met. here: the version that is installed; None for none."""

    wanted: str
    here: str | None

    def __str__(self) -> str:
        return f"{self.wanted} (here: {self.here})" if self.here else self.wanted


@dataclass(frozen=True)
class Extra:
    """An extra of ours: what it is for, what it lacks, and the command that gets it."""

    name: str
    purpose: str
    lacks: Sequence[Lack]
    command: str


def version_of(package: str) -> str | None:
    """The version of an installed package; None for none, or for one that does not tell."""
    found: str | None = answer_or_reason(lambda: metadata.version(package))[0]
    return found


def lacks(requirement: Requirement) -> list[Lack]:
    """What of a requirement is missing or of another version; extras of the other package are followed."""
    here = version_of(requirement.name)
    if here is None or not requirement.specifier.contains(here, prereleases=True):
        return [Lack(f"{requirement.name}{requirement.specifier}", here)]
    needed = [each for extra in requirement.extras for each in _needs(requirement.name, extra)]
    return [lack for each in needed for lack in lacks(each)]


def core() -> list[Lack]:
    """What robustcli itself lacks. A torchvision of another torch is a lack too."""
    wanted = [*_declared()[""], *(need for need in _needs("torchvision") if need.name == "torch")]
    return [lack for each in wanted for lack in lacks(each)]


def extras() -> list[Extra]:
    """All extras of ours, in the order in which they are declared."""
    found = [(name, wanted) for name, wanted in _declared().items() if name]
    return [
        Extra(name, PURPOSES.get(name, ""), [lack for each in wanted for lack in lacks(each)], command(name))
        for name, wanted in found
    ]


def versions() -> dict[str, str]:
    """Name -> version of each package that we name and that is installed, by name."""
    named = {each.name for wanted in _declared().values() for each in wanted}
    return {name: version for name in sorted(named, key=str.lower) if (version := version_of(name))}


def command(extra: str) -> str:
    """What installs an extra, as robustcli was installed: an editable one from the folder of its source."""
    if is_editable():
        return f'pip install -e ".[{extra}]"'
    return f'pip install "{NAME}[{extra}]"'


def is_editable() -> bool:
    """Whether pip installed robustcli as a link to its source."""
    said = answer_or_reason(
        lambda: json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "")
    )
    return bool(((said[0] or {}).get("dir_info") or {}).get("editable"))


def torch_build() -> dict[str, str | None]:
    """CUDA and ROCm that the installed torch was built for: {cuda, hip}; None for none, or not known."""
    text = answer_or_reason(lambda: (_folder("torch") / "version.py").read_text("utf-8"))[0] or ""
    found = dict(re.findall(r"^(cuda|hip)\b[^=\n]*= *'([^']+)'", text, flags=re.MULTILINE))
    return {key: found.get(key) for key in ("cuda", "hip")}


def _folder(package: str) -> Path:
    return Path(str(metadata.distribution(package).locate_file(package)))


@lru_cache(maxsize=1)
def _declared() -> Mapping[str, Sequence[Requirement]]:
    """Extra -> its requirements; "" -> those of robustcli itself.

    The source's own pyproject.toml knows better than an installation that was made from an older one.
    """
    file = PACKAGE.parent / "pyproject.toml"
    toml = answer_or_reason(lambda: import_module("tomllib"))[0]  # not in Python 3.10
    project = answer_or_reason(lambda: toml.loads(file.read_text("utf-8"))["project"])[0] or {}
    if project.get("name") != NAME:
        return _installed()
    named = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(text) for text in texts] for extra, texts in named.items()}


def _installed() -> dict[str, list[Requirement]]:
    """The same of the installed package."""
    about = answer_or_reason(lambda: metadata.metadata(NAME).get_all("Provides-Extra"))[0] or []
    return {extra: list(_needs(NAME, extra)) for extra in ("", *about)}


def _needs(package: str, extra: str = "") -> Iterator[Requirement]:
    """What an installed package asks for here; with an extra: what that asks for beyond."""
    for text in answer_or_reason(lambda: metadata.requires(package))[0] or ():
        try:
            each = Requirement(text)
        except InvalidRequirement:  # of a package from before the rules
            continue
        plain = each.marker is None or each.marker.evaluate({"extra": ""})
        if plain != bool(extra) and (plain or each.marker is None or each.marker.evaluate({"extra": extra})):
            yield each
