"""`robustcli guard fit`: trains what needs it, sets the thresholds, and freezes all into one artefact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from robustcli.assembly.lineage import begins_with, lineage, trained_on
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.origin import pinned
from robustcli.assembly.samples import choose
from robustcli.assembly.setting import Setting, prepare
from robustcli.assembly.sources import new_run
from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.config.spec import GUARD
from robustcli.config.written import written_out
from robustcli.core.conformal import Thresholds, conformal, fewest
from robustcli.errors import ConfigError, NumericsError, UsageError
from robustcli.evaluation.header import ids_digest
from robustcli.jobs.rerun import write_inputs
from robustcli.jobs.verb_flags import MeasureFlags
from robustcli.models.guard_file import Calibrated, GuardFacts, save_guard
from robustcli.models.guarded import GuardedModel
from robustcli.proportions import clopper_pearson
from robustcli.records.document import Document
from robustcli.reporting.cells import Cell
from robustcli.reporting.summary import fit_summary
from robustcli.reporting.tables import Table
from robustcli.runtime.seed import environment
from robustcli.runtime.signals import StopFlag
from robustcli.terminal.console import Console
from robustcli.training.fit import FitPlan, Images, answers_of, fit_defences, scores_of, to_train

VERB = "guard"
_QUANTILES = 101
_SPLIT = ("val_fraction", "split_seed", "test_fraction")  # keys that say which images are for what


def guard_fit(loaded: Loaded, console: Console, flags: MeasureFlags) -> dict[str, Any]:
    """Fit the configured defences; returns the `guard fit` document of the machine contract."""
    document = Document("guard fit")
    config = pinned(loaded.config)
    _check_request(config)
    setting = prepare(config, console, models=begins_with(config), dry_run=flags.dry_run)
    _check_apart(setting, console)
    guard = ModelSource.of(setting, flags).to_fit(console)
    fit = _Fit(setting, guard, console)
    if flags.dry_run:
        return fit.planned()
    with (
        new_run(VERB, config, flags.plugin, overwrite=flags.overwrite) as run,
        StopFlag() as stop,
    ):
        write_inputs(run, config)
        found = fit.fitted(stop.check)
        sha256 = save_guard(run.path, guard, fit.facts())
        answer = document.finish(
            run.path, {"guard": f"{GUARD}{run.path}", "model": config.model.label, "sha256": sha256, **found}
        )
        tree = config.model_dump(mode="json")
        run.write_text("summary.md", fit_summary(tree, _table(found), found["defences"], sha256))
        run.write_json("summary.json", answer)
        run.status(state="done", code=0)
    console.info(f"next step: robustcli guard eval --model {GUARD}{run.path}")
    return answer


def _check_request(config: Config) -> None:
    """Raises UsageError for a guard as the model, ConfigError without a defence."""
    if config.model.name.startswith(GUARD):
        raise UsageError(
            f"{config.model.name} is fitted already",
            hint="name the model that stands behind it, and its defences",
            code="E-MODEL",
        )
    if not config.defences:
        raise ConfigError(
            "no defence to fit", where="defences", hint="for example 'defences=[energy]', see docs/guard.md"
        )


def _check_apart(setting: Setting, console: Console) -> None:
    """Raises ConfigError where calibration images are among those that the model was trained on by its split.

    Scores of such images look cleaner than those of new ones, and more new ones than stated are rejected.
    Without a validation split nothing else can be had: that is a warning.
    """
    config = setting.config.data
    for meta in lineage(begins_with(setting.config)):
        if not trained_on([meta], config, setting.data.digest):
            continue
        if not len(setting.data.val):
            console.warn(
                "there is no validation split, and the model was trained on the calibration images: "
                "more clean images than stated may be rejected"
            )
            return
        then = meta.get("config", {}).get("data", {})
        other = {key: then[key] for key in _SPLIT if key in then and then[key] != getattr(config, key)}
        if other:
            words = " ".join(
                f"data.{key}={'null' if value is None else value}" for key, value in other.items()
            )
            raise ConfigError(
                "the calibration images would be among those that the model was trained on",
                where=f"data.{next(iter(other))}",
                hint=f"split as its training did: {words}",
            )


class _Fit:
    """One fit: which images are for what, and what was found."""

    def __init__(self, setting: Setting, guard: GuardedModel, console: Console) -> None:
        self.setting, self.guard, self.console = setting, guard, console
        fit, config = setting.config.guard.fit, setting.config
        epochs = None if fit.epochs is None else float(fit.epochs)
        self.plan = FitPlan(epochs, fit.steps, float(fit.lr), fit.batch_size, config.seed)
        self.images, self.held_out, self.source = _parts(setting)
        self.test = Images(
            setting.data.test,
            choose(setting.data.test, n=config.eval.n, first=config.eval.first, seed=config.seed),
            setting.device,
        )
        self.calibrated: Calibrated | None = None
        self.scores = torch.empty(0, len(guard.detectors))
        _check_enough(setting, guard, len(self.held_out.positions), self.source)

    def planned(self) -> dict[str, Any]:
        """The document of --dry-run, and its table."""
        steps = {one.label: self.plan.length(len(self.images.positions)) for one in to_train(self.guard)}
        plan = {
            "model": self.setting.config.model.label,
            "defences": ", ".join(one.label for one in self.guard.defences),
            "fit_images": len(self.images.positions),
            "steps": ", ".join(f"{label}: {count}" for label, count in steps.items()) or "none",
            "calibration_images": len(self.held_out.positions),
            "test_images": len(self.test.positions),
            "passes": self._passes(),
        }
        rows: list[list[Cell]] = [[name.replace("_", " "), str(value)] for name, value in plan.items()]
        self.console.table(Table("plan (dry run: nothing is written)", ["item", "value"], rows))
        return {"plan": plan, "run": None, "seconds": 0.0}

    def _passes(self) -> int:
        """Passes of the networks: images that are scored, and those that statistics are kept of."""
        observed = any(one.facts.fit == "statistics" for one in self.guard.defences)
        scored = len(self.held_out.positions) * bool(self.guard.detectors) + len(self.test.positions)
        return self.guard.passes * scored + len(self.guard.members) * len(self.images.positions) * observed

    def fitted(self, stop: Callable[[], None]) -> dict[str, Any]:
        """Fit, calibrate and look at the test images; returns the keys of the document."""
        steps = len(to_train(self.guard)) * self.plan.length(len(self.images.positions))
        with self.console.progress(steps, "training defences") as bar:
            fit_defences(
                self.guard,
                self.images,
                self.plan,
                stop=stop,
                done=lambda label, loss: bar.advance(at=label, loss=f"{loss:.4g}"),
            )
        if self.guard.detectors:
            self.scores = scores_of(self.guard, self.held_out, self._shown_at_once, stop)
            self._calibrate()
        return self._report(stop)

    @property
    def _shown_at_once(self) -> int:
        """Images in one pass; one where passes draw: a draw may be one of the whole pass."""
        return 1 if self.guard.randomised else self.plan.batch_size

    def _calibrate(self) -> None:
        found = _thresholds(self.scores, self.guard, float(self.setting.config.guard.fpr))
        device = self.guard.thresholds.device
        self.guard.thresholds, self.guard.spreads = found.thresholds.to(device), found.spreads.to(device)
        ids = self.held_out.split.ids[self.held_out.positions]
        for detector in self._detectors():
            if detector["highest"] is not None and detector["threshold"] >= detector["highest"]:
                self.console.warn(
                    f"{detector['label']} can never alarm: its threshold is the largest score that it gives; "
                    "leave it out, or raise guard.fpr"
                )
        self.calibrated = Calibrated(
            n=found.n,
            spread_n=found.spread_n,
            rank=found.rank,
            alarms=found.alarms,
            interval=list(found.interval),
            source=self.source,
            digest=f"{self.setting.data.digest} {ids_digest(ids)}",
        )

    def _detectors(self) -> list[dict[str, Any]]:
        """Label, threshold, spread of each detector, and the score that it never exceeds."""
        guard = self.guard
        columns = (guard.detectors, guard.thresholds.tolist(), guard.spreads.tolist(), guard.highest)
        return [
            {
                "label": label,
                "threshold": threshold,
                "spread": spread,
                "highest": highest if isfinite(highest) else None,
            }
            for label, threshold, spread, highest in zip(*columns, strict=True)
        ]

    def facts(self) -> GuardFacts:
        """What the artefact says beside the guard itself."""
        data, config = self.setting.data, self.setting.config
        clean = {
            label: self.scores[:, k].double().quantile(torch.linspace(0, 1, _QUANTILES).double()).tolist()
            for k, label in enumerate(self.guard.detectors)
        }
        provenance = {
            "command": "robustcli guard fit",
            "config": written_out(config.model_copy(update={"out": None}).model_dump(mode="json")),
            "data": {"name": data.name, "digest": data.digest},
            "environment": environment(),
        }
        return GuardFacts(data.classes, float(config.guard.fpr), self.calibrated, clean, provenance)

    def _report(self, stop: Callable[[], None]) -> dict[str, Any]:
        answers, labels = answers_of(self.guard, self.test, self._shown_at_once, stop)
        rejected, right = int((answers == self.guard.reject).sum()), int((answers == labels).sum())
        n = len(labels)
        test = {
            "n": n,
            "clean_rejected": rejected / n,
            "interval": list(clopper_pearson(rejected, n)),
            "clean_acc": right / n,
        }
        calibration = None if self.calibrated is None else self.calibrated.model_dump()
        found = {
            "fpr": float(self.setting.config.guard.fpr),
            "defences": [one.label for one in self.guard.defences],
            "detectors": self._detectors(),
            "calibration": calibration,
            "test": test,
        }
        self.console.table(_table(found))
        return found


def _thresholds(scores: Tensor, guard: GuardedModel, fpr: float) -> Thresholds:
    """The thresholds. Raises NumericsError naming a detector whose score is not finite."""
    wrong = [label for k, label in enumerate(guard.detectors) if not torch.isfinite(scores[:, k]).all()]
    if wrong:
        raise NumericsError(f"the score of {', '.join(wrong)} is not finite on a clean image")
    return conformal(scores, fpr, guard.highest)


def _parts(setting: Setting) -> tuple[Images, Images, str]:
    """(images to fit on, images to calibrate on, what these are); no image is among both."""
    config, data = setting.config.guard.calibration, setting.data
    generator = torch.Generator().manual_seed(setting.config.seed)
    held_out = data.val if len(data.val) else data.train
    order = torch.randperm(len(held_out), generator=generator)
    if len(data.val):
        fit, chosen, source = torch.arange(len(data.train)), order, "validation images"
    else:
        count = round(float(config.share) * len(order))
        fit, chosen, source = order[count:], order[:count], "training images that nothing was fitted on"
    chosen = chosen[: config.n or len(chosen)]
    return Images(data.train, fit, setting.device), Images(held_out, chosen, setting.device), source


def _check_enough(setting: Setting, guard: GuardedModel, n: int, source: str) -> None:
    """Raises ConfigError where so few images allow no threshold for the stated rate."""
    fpr = float(setting.config.guard.fpr)
    least = fewest(fpr, len(guard.detectors))
    if guard.detectors and n < least:
        raise ConfigError(
            f"{n} {source} are too few for a false-positive rate of {fpr:g} with "
            f"{len(guard.detectors)} detector(s): {least} are the fewest",
            where="guard.fpr",
            hint="raise it, raise data.val_fraction, or lift guard.calibration.n",
        )


def _table(found: dict[str, Any]) -> Table:
    """Threshold, spread and bound of each detector; calibration and test below."""
    rows: list[list[Cell]] = [
        [one["label"], *(_number(one[key]) for key in ("threshold", "spread", "highest"))]
        for one in found["detectors"]
    ]
    test, calibration = found["test"], found["calibration"]
    note = (
        f"Test: {_percent(test['clean_rejected'])} of {test['n']} clean images rejected "
        f"{_interval(test['interval'])}, {_percent(test['clean_acc'])} right and accepted."
    )
    if calibration is not None:
        note = (
            f"On average over such images at most {_percent(found['fpr'])} of clean images are rejected; "
            f"by this one of n = {calibration['n']}, 95 %: {_interval(calibration['interval'])}. {note}"
        )
    return Table("guard", ["detector", "threshold", "spread", "largest score"], rows, note)


def _number(value: float | None) -> str | None:
    """Four digits; None where there is no number."""
    return None if value is None else f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(ends: Sequence[float]) -> str:
    return f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
