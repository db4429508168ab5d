"""What every verb needs before it builds a model: seed, threads, device, data and ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from robustcli.assembly.ball import make_ball
from robustcli.assembly.lineage import Meta, class_order, lineage, trained_on
from robustcli.config.number import parse_number
from robustcli.config.schema import Config
from robustcli.config.sections import DataConfig
from robustcli.config.spec import Spec
from robustcli.config.threats import union_norm
from robustcli.core.geometry import Ball
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data
from robustcli.data.layout.words import shortened
from robustcli.data.sampling import stored_by_class
from robustcli.data.split import PARTS, Split
from robustcli.errors import UsageError
from robustcli.runtime.device import pick_device, threads
from robustcli.runtime.precision import allow_tf32
from robustcli.runtime.seed import seed_all
from robustcli.terminal.console import Console


@dataclass(frozen=True)
class Setting:
    """Device, data and threat of one run.

    `union` has the balls of a configuration with several, and is empty otherwise; `ball` is then the first
    one.
    """

    config: Config
    device: torch.device
    data: DataBundle
    ball: Ball
    union: tuple[Ball, ...] = ()

    @property
    def parts(self) -> list[Setting]:
        """The settings of the single balls: itself, or one for each ball of a union."""
        if not self.config.union:
            return [self]
        pairs = zip(self.config.balls, self.union, strict=True)
        return [
            replace(self, config=self.config.model_copy(update={"ball": ball_config}), ball=ball)
            for ball_config, ball in pairs
        ]

    @property
    def classes(self) -> int:
        """Number of classes of the data."""
        return len(self.data.classes)


def ball_of(setting: Setting) -> dict[str, Any]:
    """The fields `norm` and `eps` of a record. A union is named by its balls, and has no radius: eps is 0."""
    if setting.config.union:
        return {"norm": union_norm({ball.norm: ball.eps for ball in setting.union}), "eps": 0.0}
    return {"norm": setting.ball.norm, "eps": setting.ball.eps}


def prepare(
    config: Config,
    console: Console,
    *,
    parts: Sequence[str] = PARTS,
    models: Sequence[str | None] = (),
    measures: bool = False,
    dry_run: bool = False,
    union: bool = False,
) -> Setting:
    """The setting that a configuration asks for; seeds this process and sets its threads.

    Args:
        config: the configuration.
        console: told what was chosen, and what looks wrong.
        parts: the splits that are needed: train, val, test. No other is read.
        models: references of the models and weights at work. The classes come in the order of a run of ours.
        measures: whether ready models are measured. All images of the user's own data without a test split
            are then the test, unless one of `models` was trained on them.
        dry_run: nothing may be written, also no cache.
        union: whether the verb takes several balls, or needs none.

    Raises UsageError for several balls where one is needed.
    """
    if config.union and not union:
        norms = " or ".join(f"--norm {ball.norm}" for ball in config.balls)
        raise UsageError(
            f"this verb works in one ball, and the configuration has {len(config.balls)}",
            where="ball",
            hint=f"choose one: {norms}; `train`, `eval` and `export` take all of them",
        )
    device = pick_device(config.device)
    threads(config.threads)
    allow_tf32(False)
    seed_all(config.seed, config.deterministic)
    chosen = config.data
    if chosen.storage == "cached" and dry_run:
        chosen = chosen.model_copy(update={"storage": "stream"})
    elif chosen.storage == "cached":
        console.info("storage: cached; what is not in the cache is decoded first, which may take long")
    data = _data(chosen, lineage(models), measures)
    data.need(parts)
    for note in data.notes:
        console.info(note)
    for warning in data.warnings:
        console.warn(warning)
    balls = tuple(make_ball(ball, data, console) for ball in config.balls)
    setting = Setting(config, device, data, balls[0], balls if config.union else ())
    _warn_of_long_steps(setting, console)
    if config.search.compile == "graph" and device.type != "cuda":
        console.warn(f"search.compile: graph needs CUDA; on {device} the search runs as it is")
    if measures:
        _warn_of_first(setting, console)
    return setting


def prepare_to_measure(
    config: Config, console: Console, models: Sequence[str | None], *, dry_run: bool, union: bool = False
) -> Setting:
    """The setting of a verb that measures ready models on one split; arguments as for `prepare`."""
    split = (config.eval.split,)
    return prepare(config, console, parts=split, models=models, measures=True, dry_run=dry_run, union=union)


def _data(config: DataConfig, metas: list[Meta], measures: bool) -> DataBundle:
    """The data; the names of their classes in the order in which a run of ours has them."""

    def whole(digest: str) -> bool:
        return measures and not trained_on(metas, config, digest)

    data = load_data(config, parts=(), whole=whole)
    order = class_order(metas)
    lacking = set(order) - set(data.classes)
    if config.classes is not None or order == data.classes or (lacking and not measures):
        return data
    if not order or set(data.classes) - set(order):
        return data
    data = load_data(config.model_copy(update={"classes": list(order)}), parts=(), whole=whole)
    data.notes.append(f"classes in the order of the run: {shortened(order)}")
    return data


def _warn_of_first(setting: Setting, console: Console) -> None:
    """Warn where the first images are of a few classes alone."""
    config = setting.config.eval
    split: Split = getattr(setting.data, config.split)
    if config.first is None or config.first >= len(split) or not stored_by_class(split.labels):
        return
    held = len(split.labels[: config.first].unique())
    console.warn(
        f"--first {config.first}: the images are stored class by class, and these are of {held} of "
        f"{setting.classes} classes; --n {config.first} takes every class by its share"
    )


def _warn_of_long_steps(setting: Setting, console: Console) -> None:
    """Warn of a step size above 2 eps: such a step crosses the whole ball."""
    config, eps = setting.config, setting.ball.eps
    specs: dict[str, Spec] = {"adversary": config.adversary}
    specs |= {f"attacks.{k}": spec for k, spec in enumerate(config.attacks)}
    for path, spec in specs.items():
        size = spec.params.get("step_size")
        if size is not None and parse_number(size) > 2 * eps:
            console.warn(
                f"{path}.step_size {size} is more than twice eps {eps:.4g}: every step crosses the whole ball"
            )
