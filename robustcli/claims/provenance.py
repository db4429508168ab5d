"""Where a claim comes from: the model, what it was trained on, its hashes, the papers, the command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.claims.attackers import papers_of
from robustcli.errors import RobustCliError
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.origin import command_of
from robustcli.reporting.summary import sources
from robustcli.store.latest import resolve_run
from robustcli.store.manifest import Manifest, read

#: How a reference to a run begins.
FROM_RUNS = ("run:", "guard:")
_LONGEST = 16  # runs that were made one from the other


@dataclass(frozen=True)
class Provenance:
    """What is known of the model of a run.

    Args:
        dossier: the run that claims.
        lineage: the runs that its weights come from, the nearest first; only those that still lie there.
    """

    dossier: Dossier
    lineage: Sequence[Dossier]

    @classmethod
    def of(cls, dossier: Dossier) -> Provenance:
        """The provenance of a run; a run of its lineage that cannot be read is left out."""
        return cls(dossier, list(_lineage(dossier)))

    @property
    def name(self) -> str:
        """The name that its configuration gives it, else that of its directory."""
        return str(self.config.get("name") or self.dossier.name)

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the run; of the robust model inside a `demo`."""
        part = self.dossier.parts.get("robust")
        if self.dossier.config or part is None:
            return self.dossier.config
        return part.config

    @property
    def model(self) -> str:
        """The reference or the architecture."""
        return str(section(self.config, "model").get("name", ""))

    @property
    def training(self) -> Dossier | None:
        """The run that trained the weights; None where it is not known."""
        own = self.dossier.parts.get("robust", self.dossier)
        runs = [own, *self.lineage]
        return next((run for run in runs if run.verb == "train"), None)

    @property
    def hashes(self) -> dict[str, str]:
        """Name -> SHA-256, of what the numbers belong to: model, data, code, ids, and what a row adds."""
        found: dict[str, str] = {}
        for run in (self.dossier, *self.dossier.parts.values()):
            for row in run.rows:
                found = {**dict(getattr(row, "hashes", {})), **found}
        guard = self.dossier.document.get("sha256")
        if isinstance(guard, str) and guard:
            found["guard"] = guard
        if self.dossier.environment.get("code"):
            found.setdefault("code", str(self.dossier.environment["code"]))
        return {name: found[name] for name in sorted(found) if found[name]}

    @property
    def weights(self) -> dict[str, str]:
        """Path below the training run -> SHA-256 of each file of weights of its best checkpoint."""
        training = self.training
        if training is None:
            return {}
        folder = training.path / "checkpoints" / Path(str(training.document.get("checkpoint", ""))).name
        manifest = _manifest(folder)
        if manifest is None:
            return {}
        return {
            f"checkpoints/{folder.name}/{name}": sha256
            for name, (sha256, _) in manifest.files.items()
            if not name.startswith("optimizer")
        }

    @property
    def papers(self) -> dict[str, str]:
        """Method -> what to cite."""
        papers = {**papers_of(self.dossier), **sources(self.config, ("model", "defences"))}
        if self.training is not None:
            papers |= sources(self.training.config, ("objective", "adversary", "model"))
        return papers

    @property
    def command(self) -> str:
        """The command that runs it again."""
        return command_of(self.dossier)


def section(tree: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The mapping at these keys; empty where there is none. A method written as a bare name is its `name`."""
    value: Any = tree
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return {"name": value}
    return value if isinstance(value, Mapping) else {}


def _lineage(dossier: Dossier) -> Iterator[Dossier]:
    seen: set[Path] = set()
    run: Dossier | None = dossier
    while run is not None and len(seen) < _LONGEST:
        run = _origin(run)
        if run is None or run.path.resolve() in seen:
            return
        seen.add(run.path.resolve())
        yield run


def _origin(run: Dossier) -> Dossier | None:
    """The run that the weights of this one come from; None where none is named, or it is not readable."""
    model = section(run.config, "model")
    for reference in (model.get("weights"), model.get("name")):
        if isinstance(reference, str) and reference.startswith(FROM_RUNS):
            return run_of(reference)
    return None


def run_of(reference: str) -> Dossier | None:
    """The run that ``run:`` or ``guard:`` names, also by one of its checkpoints; None for anything else."""
    for prefix in FROM_RUNS:
        if reference.startswith(prefix):
            return _run_at(Path(reference.removeprefix(prefix)))
    return None


def _run_at(path: Path) -> Dossier | None:
    """The run at a path, or the one that the checkpoint at this path belongs to."""
    try:
        path = resolve_run(path)
        for place in (path, *list(path.parents)[:2]):
            if (place / "run.json").is_file():
                return Dossier.read(place)
    except (RobustCliError, OSError):
        return None
    return None


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read(folder)
    except (RobustCliError, OSError):
        return None
