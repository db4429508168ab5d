"""The training recipes: what their comments and docs/recipes.md promise is what they run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustcli import registry
from robustcli.assembly.cost import passes_per_image
from robustcli.assembly.setting import prepare
from robustcli.config.bind import Registries
from robustcli.config.load import Loaded, load_config
from robustcli.config.number import parse_number
from robustcli.config.overlay import parse_assignment
from robustcli.config.shipped import shipped_configs
from robustcli.config.threats import stated_ball
from robustcli.data.sets.fake import images
from robustcli.jobs.train import train
from robustcli.jobs.verb_flags import TrainFlags
from robustcli.reporting.pictures import training
from robustcli.store.retention import resolve_checkpoint
from robustcli.store.snapshot import load_checkpoint
from robustcli.terminal.console import Console

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECIPES = {
    name: path.read_text(encoding="utf-8")
    for name, path in shipped_configs().items()
    if name.startswith("train/")
}
ON_DIGITS = {name for name in RECIPES if "digits" in name or "finetune" in name or name == "train/mnist"}
ON_CPUS = {name for name in RECIPES if name.startswith("train/cifar10") and name.endswith("_cpu")}
MEASURED = (ON_DIGITS - {"train/mnist"}) | ON_CPUS  # of these only numbers of our own are known
SMOOTHED = {name for name, text in RECIPES.items() if re.search(r"objective: .*sigma:", text)}
FROM_A_RUN = {name for name, text in RECIPES.items() if "run:runs/natural" in text}
TINY = (
    "threads=1",
    "device=cpu",
    "train.steps=3",
    "train.batch_size=16",
    "train.val_n=16",
    "train.val_attack.steps=1",
)
SMALL_MODEL = "model={name: small_cnn, widths: [4], strides: [2]}"
PARTS = {
    **{
        "natural": {"natural"},
        "madry": {"adversarial"},
        "trades": {"natural", "robust"},
        "mart": {"boosted", "robust"},
    },
    "nuat": {"natural", "nuclear"},
    "liet": {"adversarial", "divergence"},
    "ibp": {"natural", "bounds"},
    "gaussian": {"noisy"},
    "smoothadv": {"adversarial"},
    "consistency": {"noisy", "consistency", "entropy"},
    "denoise": {"stability"},
}


@pytest.fixture(scope="module")
def real() -> Registries:
    return Registries.discover()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: Registries) -> Iterator[Callable[..., Path]]:
    """tiny(name, "key=value", …): the run of a recipe for 3 steps on stand-in data, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "training_curves", lambda *given, **options: None)
    np.savez(
        "generated.npz",
        x=images(60, 8, 0, 3),
        y=np.arange(60) % 10,
        classes=np.array([f"pattern-{k}" for k in range(10)]),
    )
    threads, rng = torch.get_num_threads(), torch.get_rng_state()

    def run(name: str, *settings: str) -> Path:
        if name in FROM_A_RUN and not Path("runs/natural").exists():
            run("train/digits_natural", "out=runs/natural")
        loaded = stand_in(name, real, *TINY, *settings)
        document = train(loaded, Console(quiet=True), TrainFlags())
        assert (document["steps"], document["ended"]) == (3, "budget")
        return Path(document["run"])

    yield run
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)


def stand_in(name: str, registries: Registries, *settings: str) -> Loaded:
    """A recipe on data that is always there, and on a small model where its own is large."""
    data = (
        ()
        if name in ON_DIGITS - {"train/mnist"}
        else ("data.name=digits",)
        if name == "train/mnist"
        else ("data.name=fake", "data.size=8")
    )
    model = () if name in FROM_A_RUN else (SMALL_MODEL,)
    return load_config(
        name,
        [parse_assignment(text, "test") for text in (*data, *model, *settings)],
        environ={},
        registries=registries,
    )


def live(run: Path) -> dict[str, Tensor]:
    """The trained weights at the end, not their average."""
    groups = load_checkpoint(resolve_checkpoint(run / "checkpoints", "last")).groups
    return dict(groups.get("live", groups["model"]))


def cost(text: str) -> int:
    found = re.findall(r"^# Cost: (\d+) passes an image and epoch", text, flags=re.MULTILINE)
    assert len(found) == 1, "one line says what it costs"
    return int(found[0])


def test_the_recipes_are_there() -> None:
    cifar = {
        f"cifar10_{word}"
        for word in (
            "fast",
            "standard",
            "strong",
            "nuat",
            "free",
            "gradalign",
            "mart",
            "cutmix",
            "generated",
            "l2",
            "cpu",
        )
    }
    assert {
        f"train/{word}"
        for word in {*cifar, "mnist", "cifar100", "gtsrb", "imagenet", "finetune", "folder", "digits"}
    } <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_comments_say_what_to_expect_and_whence(name: str, real: Registries) -> None:
    config = load_config(name, environ={}, registries=real).config
    text = "\n".join(line for line in RECIPES[name].splitlines() if line.startswith("# "))
    attack = "PGD-40" if config.union else "PGD-20"
    reached = {"certified", "ACR"} if name in SMOOTHED else {"clean", attack}
    wanted = {*reached, "easured here"} | (set() if name in MEASURED else {"ublished", "AutoAttack"})
    assert not [word for word in wanted if word not in text]
    assert all(ball.eps is not None for ball in config.balls), "a recipe names its radius"
    if config.objective.name != "natural":
        assert config.train.val_attack.params["steps"] >= 10, (
            "one-step validation would choose collapsed networks"
        )
    if config.data.cutmix is not None:
        assert {spec.name for spec in config.train.hooks} & {"ema", "swa"}


@pytest.mark.parametrize("name", RECIPES)
def test_cost_is_what_a_step_costs(name: str, real: Registries, tmp_path: Path) -> None:
    assert passes_per_image(
        prepare(stand_in(name, real, "data.extra=null").config, Console(quiet=True), union=True)
    ) == cost(RECIPES[name])


def test_the_page_has_every_recipe_with_its_cost(real: Registries) -> None:
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    lines = [
        [cell.strip("` ") for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.startswith("| `train/")
    ]
    rows = {cells[0]: [cell.replace(",", "") for cell in cells[3:6]] for cells in lines}
    assert len(rows) == len(lines)
    for name, text in RECIPES.items():
        train = load_config(name, environ={}, registries=real).config.train
        epochs = (
            []
            if train.epochs is None
            else [
                str(train.epochs).removesuffix(".0"),
                str(cost(text)),
                f"{float(train.epochs) * cost(text):.0f}",
            ]
        )
        assert rows.pop(name) == (epochs or ["", str(cost(text)), ""]), name
    assert not rows, "recipes that are not shipped"


def test_the_pages_name_every_method(real: Registries) -> None:
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    for found in (
        registry.objectives,
        registry.regularizers,
        registry.steps,
        registry.hooks,
        registry.optimizers,
        registry.schedules,
    ):
        missing = [name for name in found.names() if f"`{name}`" not in page]
        assert not missing, f"docs/training.md lacks {missing}"


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(name: str, tiny: Callable[..., Path], real: Registries) -> None:
    config = stand_in(name, real).config
    run = tiny(name)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 3 and math.isfinite(row["loss"]) and row["passes_per_sample"] == cost(RECIPES[name])
    assert set(row["parts"]) == PARTS[config.objective.name] | {spec.name for spec in config.regularizers}
    stated = registry.objectives.get(config.objective.name).facts
    plain = stated.inner is None and not stated.bounds
    assert (row["robust_acc"] is None) == plain
    wanted = stated_ball(config.model_dump(mode="json")["ball"])
    assert (row["norm"], row["eps"]) == (wanted["norm"], parse_number(wanted["eps"]))
    groups = load_checkpoint(resolve_checkpoint(run / "checkpoints", "last")).groups
    averages = {spec.name for spec in config.train.hooks} & {"ema", "swa"}
    assert ("live" in groups) == bool(averages)
    if averages:
        assert any(not torch.equal(groups["live"][key], value) for key, value in groups["model"].items())
    assert ("delta" in groups.get("step", {})) == (config.train.step.name == "free")
    assert any(float(slot.abs().max()) > 0 for slot in groups["optimizer"].values() if slot.dim())


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("train/cifar10_strong", "train.hooks=[{name: ema, decay: 0.9995}]"),
        ("train/cifar10_l2", "train.hooks=[]"),
        ("train/cifar10_gradalign", "regularizers=[]"),
        ("train/cifar10_cutmix", "data.cutmix=null"),
        ("train/cifar10_generated", "data.extra=null"),
        ("train/cifar10_free", "train.step.replays=7"),
        ("train/cifar10_fast", "adversary.clip=true"),
        ("train/cifar10_nuat", "adversary.start=uniform"),
        ("train/cifar10_liet", "adversary.renew=1"),
        ("train/mnist", "train.curriculum.eps_start=1"),
        ("train/digits_ibp", "train.curriculum.eps_shape=linear"),
    ],
)
def test_what_makes_a_recipe_takes_part(name: str, without: str, tiny: Callable[..., Path]) -> None:
    whole, again, less = (live(tiny(name, *settings)) for settings in ((), (), (without,)))
    assert all(torch.equal(whole[key], again[key]) for key in whole), "a run repeats to the bit"
    assert any(not torch.equal(whole[key], less[key]) for key in whole), f"{without} changes nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(RECIPES) - FROM_A_RUN))
def test_dry_run_with_the_own_network(
    name: str, real: Registries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On images of 32 pixels; published weights are left out, so that nothing is downloaded."""
    monkeypatch.chdir(tmp_path)
    config = load_config(name, environ={}, registries=real).config
    settings = [
        "data.name=fake",
        "data.size=32",
        "data.extra=null",
        f"model.name={config.model.name.partition('@')[0]}",
    ]
    loaded = load_config(
        name, [parse_assignment(text, "test") for text in settings], environ={}, registries=real
    )
    plan: dict[str, Any] = train(loaded, Console(quiet=True), TrainFlags(dry_run=True))["plan"]
    assert (
        plan["passes_per_image"] == cost(RECIPES[name]) and plan["parameters"] > 0 and plan["total_tflop"] > 0
    )
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
