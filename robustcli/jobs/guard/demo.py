"""`robustcli demo guard`: a deployed model is attacked, notices, is reviewed, and learns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustcli.assembly.attacks import eval_plan
from robustcli.assembly.samples import choose
from robustcli.assembly.setting import Setting, prepare
from robustcli.config.load import Loaded, load_config
from robustcli.config.overlay import parse_assignment
from robustcli.guard.evidence import png_of
from robustcli.guard.store import EvidenceStore, Observation, Review
from robustcli.jobs.guard.demo_numbers import Numbers, attacked, numbers_of
from robustcli.jobs.guard.fit import guard_fit
from robustcli.jobs.guard.model import Opening
from robustcli.jobs.guard.run import guard_run
from robustcli.jobs.guard.status import guard_status
from robustcli.jobs.guard.update import UpdateFlags, guard_update
from robustcli.jobs.train import train
from robustcli.jobs.verb_flags import DemoFlags, MeasureFlags, TrainFlags
from robustcli.models.source import load_model
from robustcli.records.document import Document
from robustcli.reporting.cells import Cell
from robustcli.reporting.pictures.files import save_pictures
from robustcli.reporting.pictures.guard_story import before_and_after, scores_in_time
from robustcli.reporting.tables import Table
from robustcli.runtime.signals import StopFlag
from robustcli.store.atomic import write_new
from robustcli.store.run import Run
from robustcli.store.rundir import open_run
from robustcli.terminal.console import Console

_BY = "demo: the labels are known"
_GATE_IMAGES = 200  # test images that measure; the others are the stream
_STREAM_IMAGES = (None, 60)  # of the others, at most: full, smoke
_CONFIGS = {"train": "train/digits_natural", "fit": "guard/digits", "update": "guard/update_digits"}
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "train": ("train.epochs=20",),
    "fit": ("defences=[energy]",),
    "update": (),
}
_TINY: Mapping[str, tuple[str, ...]] = {
    "train": ("train.epochs=null", "train.steps=80", "train.val_n=32", "model.widths=[16, 32, 32]"),
    "update": ("train.epochs=null", "train.steps=6", "train.val_n=32", "adversary.steps=2"),
}
_TINY_EVAL = ("eval.n=24", "eval.checks=0", "attacks=[{name: pgd, steps: 4}]")


@dataclass(frozen=True)
class _Stream:
    """Images that the deployed guard sees, float [n, C, H, W] in [0, 1], with what they are."""

    clean: Tensor
    attack: Tensor
    labels: Tensor

    def reviews(self) -> dict[str, Review]:
        """Hash of each image -> what a reviewer would find."""
        found: dict[str, Review] = {}
        for images, kind in ((self.clean, "clean"), (self.attack, "adversarial")):
            for image, label in zip(images, self.labels.tolist(), strict=True):
                name = hashlib.sha256(png_of(image)).hexdigest()
                found.setdefault(name, Review(kind, label))  # type: ignore[arg-type]
        return found


def demo_guard(console: Console, flags: DemoFlags) -> dict[str, Any]:
    """Train, guard, stream, alarm, review, update; returns the document, with numbers before and after."""
    document = Document("demo")
    if flags.dry_run:
        return _planned(flags, console)
    with (
        open_run("demo", "guard", out=flags.out, overwrite=flags.overwrite) as run,
        StopFlag() as stop,  # of the time between the phases, each of which has its own
    ):
        story = _Story(run, flags, console)
        story.deploy()
        stop.check()
        before = story.numbers(run.path / "guard", "before")
        windows = story.see()
        stop.check()
        alarms = story.review()
        update = story.update()
        stop.check()
        after = story.numbers(run.path / "update" / "guard", "after")
        table = _table(story.setting, before, after, promoted=update["promoted"])
        console.table(table)
        picture = before_and_after({"before": before.rates, "after": after.rates})
        save_pictures([picture], run.path / "plots")
        found = {"before": before.to_json(), "after": after.to_json(), "windows": windows, "alarms": alarms}
        answer = document.finish(run.path, {**found, "promoted": update["promoted"]})
        run.write_text("summary.md", table.markdown() + "\n")
        run.write_json("summary.json", {**answer, "update": update})
        _next_steps(run, console)
        run.status(state="done", code=0)
    return answer


class _Story:
    """The phases of the demo, all below one run."""

    def __init__(self, run: Run, flags: DemoFlags, console: Console) -> None:
        self.run, self.flags, self.console = run, flags, console
        self.muted = Console(json=True, quiet=True)
        self.store, self.guard = str(run.path / "evidence.db"), str(run.path / "guard")
        self.setting: Setting = prepare(_load("update", flags).config, self.muted)

    def deploy(self) -> None:
        """A network that was trained without attacks, and a detector around it."""
        self.console.info("1/6 training a network without attacks")
        natural = self.run.path / "natural"
        train(_load("train", self.flags, f"out={natural}"), self.muted, TrainFlags())
        self.console.info("2/6 a guard around it: a detector alarms where the logits are small (energy)")
        named = (f"out={self.guard}", f"model=run:{natural}")
        guard_fit(_load("fit", self.flags, *named), self.muted, MeasureFlags())

    def numbers(self, guard: Path, when: str) -> Numbers:
        """Bare, oblivious and adaptive, on images that are no part of the stream."""
        self.console.info(f"measuring {when} the update: bare, oblivious, adaptive")
        return numbers_of(self.setting, load_model(f"guard:{guard}"), self.muted)

    def see(self) -> dict[str, Any]:
        """Clean images come, then attacks; what the rules say of each window."""
        self.console.info("3/6 a stream of clean images, then of attacks on the network")
        self.stream = self._stream()
        said = {}
        for name in ("clean", "attack"):
            images: Tensor = getattr(self.stream, name)
            folder = self.run.path / "images" / name
            folder.mkdir(parents=True)
            for k, image in enumerate(images):
                write_new(folder / f"{k:04d}.png", png_of(image))
            guard_run(
                Opening(self.guard, str(self.setting.device), self.store), [str(folder)], 64, self.muted
            )
            state = guard_status(self.store, self.muted, guard=None, window=str(len(images)), fail_on=None)
            said[name] = {key: state[key] for key in ("state", "reasons", "alarms", "observations")}
            self.console.info(f"   {name}: {state['state']}: {'; '.join(state['reasons'])}")
        self._draw()
        return said

    def review(self) -> dict[str, int]:
        """Label all alarms by their known labels, as a person would; returns how many were of which kind."""
        self.console.info("4/6 review: the demo knows the labels; a person would look at the images")
        known, found = self.stream.reviews(), {"adversarial": 0, "clean": 0}
        with EvidenceStore.open(self.store) as store:
            for each in store.evidence(reviewed=False):
                store.review(each.hash, known[each.hash], _BY)
                found[known[each.hash].kind] += 1
        return found

    def update(self) -> dict[str, Any]:
        """Learn from the alarms; the gate decides."""
        self.console.info(
            "5/6 update: fine-tune on the reviewed alarms, fit anew, compare, promote or refuse"
        )
        loaded = _load("update", self.flags, f"out={self.run.path / 'update'}")
        found = guard_update(loaded, self.muted, UpdateFlags(self.store, self.guard))
        verdict = {True: "promoted", False: "refused"}[found["promoted"]]
        self.console.info(f"   {verdict}")
        self.console.info("6/6 the numbers")
        return found

    def _stream(self) -> _Stream:
        """The test images that measure nothing, clean and under the demo's attack on the bare network."""
        setting, split = self.setting, self.setting.data.test
        measuring = choose(split, n=setting.config.eval.n, first=None, seed=setting.config.seed)
        rest = torch.ones(len(split), dtype=torch.bool)
        rest[measuring] = False
        coming = rest.nonzero()[: _STREAM_IMAGES[self.flags.smoke], 0]
        network = load_model(f"run:{self.run.path / 'natural'}", device=setting.device)
        found = attacked(setting, network, split, coming, self.muted)
        return _Stream(found.x, found.x_adv, found.y)

    def _draw(self) -> None:
        with EvidenceStore.open(self.store) as store:
            seen: list[Observation] = store.observations()
        model = load_model(f"guard:{self.guard}")
        label, threshold = model.detectors[0], float(model.thresholds[0])  # type: ignore[index]
        scores = [each.scores[str(label)] or 0.0 for each in seen]
        picture = scores_in_time(scores, len(self.stream.clean), threshold, str(label))
        save_pictures([picture], self.run.path / "plots")


def _load(phase: str, flags: DemoFlags, *more: str) -> Loaded:
    """The shipped configuration of a phase, with what the demo says beside it."""
    chosen = [*_SETTINGS[phase], f"eval.n={_GATE_IMAGES}"]
    if flags.smoke:
        chosen += [*_TINY.get(phase, ()), *_TINY_EVAL]
    texts = [*chosen, *flags.settings, *more]
    return load_config(_CONFIGS[phase], [parse_assignment(text, "robustcli demo") for text in texts])


def _planned(flags: DemoFlags, console: Console) -> dict[str, Any]:
    plan = {phase: " ".join((name, *_SETTINGS[phase])) for phase, name in _CONFIGS.items()}
    rows: list[list[Cell]] = [[phase, text] for phase, text in plan.items()]
    console.table(Table("plan (dry run: nothing is written)", ["phase", "configuration"], rows))
    return {"plan": plan, "run": None, "seconds": 0.0}


def _table(setting: Setting, before: Numbers, after: Numbers, *, promoted: bool) -> Table:
    """One line per guard. The columns under attack stand together: none is worth anything alone."""
    second = {True: "after the update", False: "after the update (refused)"}[promoted]
    rows: list[list[Cell]] = [[name, *one.cells()] for name, one in (("before", before), (second, after))]
    names = [call.label for call in eval_plan(setting, setting.config.attacks[:1]).attacks]
    searches = ", ".join(before.searches)
    note = (
        f"Bare: the network without its guard under {names[0]}. Oblivious: points made on that network, "
        f"shown to the guard. Adaptive: the worst of {searches}, which know the guard; this number counts, "
        "and the last column says whether it can be believed. Brackets: 95 % Wilson interval."
    )
    title = f"{setting.data.name}, {setting.ball.norm} eps {setting.ball.eps:g}, {before.n} test images"
    under_attack = ["bare", "oblivious", "adaptive", "reliability"]
    columns = ["guard", "clean, right and accepted", "clean rejected", *under_attack]
    return Table(title, columns, rows, note)


def _next_steps(run: Run, console: Console) -> None:
    store, current = run.path / "evidence.db", run.path / "current"
    lines = (
        f"pictures: {run.path / 'plots' / 'scores.png'} and {run.path / 'plots' / 'guard.png'}",
        "next steps:",
        f"  robustcli guard log {store} --verify",
        f"  robustcli guard review {store} --list",
        f"  robustcli guard update {store} {current} --rollback",
        f"  robustcli guard serve {current}",
    )
    for line in lines:
        console.info(line)
