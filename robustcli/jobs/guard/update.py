"""`robustcli guard update`: reviewed evidence in, a better guard out, deployed only if the gate passes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.assembly.setting import Setting, prepare
from robustcli.assembly.sources import new_run
from robustcli.config.load import Loaded, load_config
from robustcli.config.overlay import parse_assignment
from robustcli.config.schema import Config
from robustcli.config.spec import GUARD, ModelConfig
from robustcli.errors import UsageError
from robustcli.guard.promotion import Deployment, Version, unpromoted
from robustcli.guard.store import EvidenceStore
from robustcli.guard.update import STARTED, Decision
from robustcli.jobs.guard.compare import Both, decision
from robustcli.jobs.guard.fit import guard_fit
from robustcli.jobs.guard.lessons import Lessons, lessons_of
from robustcli.jobs.rerun import CONFIG, write_inputs
from robustcli.jobs.train import train
from robustcli.jobs.verb_flags import MeasureFlags, TrainFlags
from robustcli.models.guard_file import read_guard
from robustcli.proportions import Rate
from robustcli.records.document import Document
from robustcli.reporting.cells import Cell
from robustcli.reporting.tables import Table
from robustcli.runtime.signals import StopFlag
from robustcli.store.current import CURRENT
from robustcli.store.latest import resolve_run
from robustcli.store.run import Run
from robustcli.terminal.console import Console

_VERB = "guard update"


@dataclass(frozen=True)
class UpdateFlags:
    """What the command line says.

    Args:
        store: file or URL of the evidence and its log.
        guard: the deployed guard: a directory of `guard fit`, or the link `current`.
        share: of each training batch that is evidence, in (0, 1).
        held_out: share of the reviewed images that decide and are not trained on, in (0, 1).
        level: of the one-sided tests of the gate, in (0, 1).
        plugin, overwrite, dry_run: as for the other verbs.
    """

    store: str
    guard: str
    share: float = 0.25
    held_out: float = 0.3
    level: float = 0.05
    plugin: str | None = None
    overwrite: bool = False
    dry_run: bool = False


def stored_config(guard: str) -> str:
    """The configuration that the deployed guard was fitted with, as a file.

    Raises CheckpointError without a guard, UsageError as `Deployment`.
    """
    directory = resolve_run(Path(guard.removeprefix(GUARD)))
    if directory.name == CURRENT:
        raise unpromoted(directory)
    read_guard(directory)
    return str(directory / CONFIG)


def guard_update(loaded: Loaded, console: Console, flags: UpdateFlags) -> dict[str, Any]:
    """Fine-tune, fit, compare, and deploy what passes; returns the document with its gates.

    Args:
        loaded: says how to train, and what measures. The model, and the defences where it names none, are
            those of the deployed guard.

    Raises:
        UsageError: too little reviewed evidence; GUARD is not what is deployed. CheckpointError: there is no
            such guard.
    """
    for name in ("share", "held_out", "level"):
        if not 0 < getattr(flags, name) < 1:
            hint = "for example 0.25"
            raise UsageError(
                "a share between 0 and 1 is asked for", where=f"--{name.replace('_', '-')}", hint=hint
            )
    with EvidenceStore.open(flags.store) as store:
        deployment = Deployment(store, Path(flags.guard.removeprefix(GUARD)))
        return _Update(loaded, console, flags, store, deployment).done()


def guard_rollback(store: str, guard: str, console: Console) -> dict[str, Any]:
    """Deploy the version before the deployed one again. Raises UsageError where there is none."""
    document = Document(_VERB)
    with EvidenceStore.open(store) as opened:
        deployment = Deployment(opened, Path(guard.removeprefix(GUARD)))
        before = deployment.version
        now = deployment.roll_back()
    console.result(f"{deployment.link} is {now.path} again, and was {before.path}")
    return document.finish(None, {"rolled_back": True, **_versions(deployment.link, before, now)})


class _Update:
    """One update, from the evidence to the switch."""

    def __init__(
        self,
        loaded: Loaded,
        console: Console,
        flags: UpdateFlags,
        store: EvidenceStore,
        deployment: Deployment,
    ) -> None:
        self.document = Document(_VERB)
        self.console, self.flags, self.store, self.deployment = console, flags, store, deployment
        self.config = _around(loaded, deployment.directory, flags.share)
        self.loaded = loaded
        self.setting: Setting = prepare(self.config, Console(quiet=True), dry_run=flags.dry_run)
        self.lessons: Lessons = lessons_of(store, self.setting.data, flags.held_out, console.warn)

    def done(self) -> dict[str, Any]:
        """The document of the whole update, or of its plan."""
        plan = self._plan()
        if self.flags.dry_run:
            return {"plan": plan, "run": None, "seconds": 0.0}
        references = (f"{GUARD}{self.deployment.directory}", self.flags.plugin)
        with (
            new_run("update", self.config, *references, overwrite=self.flags.overwrite) as run,
            StopFlag() as stop,
        ):
            write_inputs(run, self.config)
            self.store.append(STARTED, self._started(run))
            self._learn(run)
            stop.check()
            found = self._compare(run)
            stop.check()
            return self._concluded(run, found)

    def _plan(self) -> dict[str, Any]:
        """What is trained on and what decides; shown as a table."""
        plan = {
            "deployed": self.deployment.version.path,
            "model": self.config.model.label,
            "trained_on": len(self.lessons.train),
            "share": self.flags.share,
            "decide": len(self.lessons.decide),
            "left_aside": self.lessons.left_aside,
        }
        rows: list[list[Cell]] = [[name.replace("_", " "), str(value)] for name, value in plan.items()]
        self.console.table(Table("reviewed evidence", ["item", "value"], rows))
        return plan

    def _started(self, run: Run) -> dict[str, Any]:
        """The entry of the log. It comes before the training: what was trained on never decides again."""
        sets = {"trained": self.lessons.train_hashes, "decide": self.lessons.decide_hashes}
        asked = {"share": self.flags.share, "seed": self.config.seed, "data": self.setting.data.digest}
        return {"run": str(run.path), "guard": self.deployment.version.sha256, **sets, **asked}

    def _learn(self, run: Run) -> None:
        """Fine-tune the network, and fit the guard around it: two runs inside `run`."""
        muted = Console(json=True, quiet=self.console.quiet)
        train_to, guard_to = run.path / "train", run.path / "guard"
        self.console.info("1/3 fine-tuning on the training images and the evidence")
        flags = TrainFlags(plugin=self.flags.plugin)
        train(self._with(out=str(train_to), defences=[]), muted, flags, self.lessons.train)
        self.console.info("2/3 fitting the defences around the new network")
        model = ModelConfig(name=f"run:{train_to}")
        guard_fit(self._with(out=str(guard_to), model=model), muted, MeasureFlags(plugin=self.flags.plugin))

    def _with(self, **changes: Any) -> Loaded:
        config = self.config.model_copy(update=changes)
        return Loaded(config, self.loaded.origins, self.loaded.path)

    def _compare(self, run: Run) -> Decision:
        self.console.info("3/3 comparing the old guard with the new one, on the same images")
        both = Both(
            self.setting, self.deployment.directory, run.path / "guard", self.flags.plugin, self.console
        )
        return decision(both, self.lessons.decide, self.flags.level)

    def _concluded(self, run: Run, found: Decision) -> dict[str, Any]:
        """Log what was found, deploy what passes, write the results."""
        old = self.deployment.version
        self.store.append("gate", {"run": str(run.path), "guard": old.sha256, **found.to_json()})
        table = _table(found, self.setting)
        self.console.table(table)
        if found.passed:
            self.deployment.promote(run.path / "guard")
        content = {
            **found.to_json(),
            "promoted": found.passed,
            **_versions(self.deployment.link, old, self.deployment.version),
            "plan": {"trained_on": len(self.lessons.train), "decide": len(self.lessons.decide)},
            "gate": found.gates(),
        }
        answer = self.document.finish(run.path, content)
        run.write_text("summary.md", table.markdown() + "\n")
        run.write_json("summary.json", answer)
        run.status(state="done", code=int(not found.passed))
        self._say(found, run)
        return answer

    def _say(self, found: Decision, run: Run) -> None:
        link = self.deployment.link
        if found.passed:
            self.console.info(f"promoted: {link} is {self.deployment.version.path}; start the server anew")
            self.console.info(f"back again: robustcli guard update {self.store.where} {link} --rollback")
        else:
            self.console.info(
                f"not promoted: {self.deployment.version.path} stays; the new one is in {run.path}"
            )


def _around(loaded: Loaded, directory: Path, share: float) -> Config:
    """The configuration of the update: the model behind the deployed guard, and its defences.

    Raises UsageError for a guard whose manifest does not name a model to go on with.
    """
    manifest, _ = read_guard(directory)
    fitted = manifest.provenance.get("config")
    if not isinstance(fitted, Mapping) or "model" not in fitted:
        raise UsageError(
            "the guard does not say which model stands behind it", where=str(directory), code="E-MODEL"
        )
    config, then = loaded.config, _as_config(fitted)
    changes: dict[str, Any] = {"model": then.model}
    if not config.defences:
        changes |= {"defences": then.defences, "guard": then.guard}
    changes["data"] = config.data.model_copy(update={"extra": None, "extra_ratio": share})
    return config.model_copy(update=changes)


def _as_config(tree: Mapping[str, Any]) -> Config:
    """The sections that an update takes over from the configuration in a manifest. Raises ConfigError."""
    kept = {key: tree[key] for key in ("model", "defences", "guard") if key in tree}
    texts = [f"{key}={json.dumps(value)}" for key, value in kept.items()]
    return load_config(None, [parse_assignment(text, "guard.json") for text in texts]).config


def _versions(link: Path, old: Version, now: Version) -> dict[str, Any]:
    return {"current": str(link), "before": vars(old), "deployed": vars(now)}


def _table(found: Decision, setting: Setting) -> Table:
    """Old and new side by side; what changed, and whether that is allowed."""
    rows: list[list[Cell]] = []
    for row in found.rows:
        verdict = {True: "passed", False: "NOT PASSED"}[row.passed(found.level)]
        old, new = (Rate(int(side.sum()), row.n) for side in (row.old, row.new))
        rows.append([row.name, old, new, f"+{row.gained} -{row.lost}", f"{row.p:.2g}", row.rule, verdict])
    note = (
        f"Same images for both. p: McNemar's exact test that the new guard is worse, one-sided; below "
        f"{found.level:g} it is refused. Brackets: 95 % Wilson interval. "
        f"Data: {setting.data.name}, {setting.ball.norm} eps {setting.ball.eps:.4g}."
    )
    columns = ["images", "old", "new", "changed", "p", "rule", "gate"]
    return Table("the gate", columns, rows, note)
