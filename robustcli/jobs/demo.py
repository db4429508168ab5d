"""`robustcli demo`: what adversarial training buys, on real images that need no download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from robustcli.assembly.attacks import eval_plan, make_search
from robustcli.assembly.cost import training_plan
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.rows import eval_document, rows_of
from robustcli.assembly.samples import choose
from robustcli.assembly.setting import Setting, prepare
from robustcli.config.load import Loaded, load_config
from robustcli.config.overlay import parse_assignment
from robustcli.core.geometry import Ball
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.pulse import Beat
from robustcli.evaluation.result import BatchOutcome, Evaluation
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.jobs.attack import attack
from robustcli.jobs.train import train
from robustcli.jobs.verb_flags import DemoFlags, MeasureFlags, TrainFlags
from robustcli.models.source import load_model
from robustcli.proportions import Rate
from robustcli.records.document import Document
from robustcli.records.eval import EvalRow
from robustcli.reporting.cells import Cell, format_eps
from robustcli.reporting.pictures.demo import curves_picture
from robustcli.reporting.pictures.files import save_pictures
from robustcli.reporting.tables import Table
from robustcli.runtime.signals import StopFlag
from robustcli.store.run import Run
from robustcli.store.rundir import open_run
from robustcli.terminal.console import Console

_CONFIG = "train/digits"
_EPS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
_CURVE_IMAGES = 200  # at each eps, at most
_ATTACKED = (64, 8)  # images under attack for the gallery: full, smoke
_TINY = (
    "train.epochs=null",
    "train.steps=20",
    "train.batch_size=32",
    "train.val_n=32",
    "eval.n=48",
    "attacks.0.steps=4",
    "adversary.steps=3",
)
#: Name of a model -> what its configuration says beside that of the demo.
_MODELS: Mapping[str, Sequence[str]] = {"natural": ("objective=natural",), "robust": ()}


def demo(console: Console, flags: DemoFlags) -> dict[str, Any]:
    """Train a natural and a robust model on `digits`, attack both with PGD-20; returns the document."""
    document = Document("demo")
    base = [*flags.settings, *(_TINY if flags.smoke else ())]
    first = _load([*base, "name=robust"])
    if flags.dry_run:
        setting = prepare(first.config, console)
        return training_plan(
            setting, ModelSource.of(setting, MeasureFlags()).to_measure(Console(quiet=True)), console
        )
    with (
        open_run("demo", "digits", out=flags.out, overwrite=flags.overwrite) as run,
        StopFlag() as stop,  # of the time between the phases, each of which has its own
    ):
        settings = _train(run, base, console)
        stop.check()
        results = {name: _measure(run, name, setting, console) for name, setting in settings.items()}
        stop.check()
        rows = {name: rows_of(settings[name], model, result) for name, (model, result) in results.items()}
        documents = {name: eval_document(result, rows[name]) for name, (_, result) in results.items()}
        curves = _curves(run, settings, console, flags.smoke)
        stop.check()
        _attack(run, base, console, flags.smoke)
        stop.check()
        table = _table(rows, _threat(settings["robust"], documents["robust"]["n"]))
        console.table(table)
        answer = document.finish(run.path, {"models": documents})
        run.write_text("summary.md", table.markdown() + "\n")
        run.write_json("summary.json", {**answer, "curves": curves})
        _next_steps(run, console)
        run.status(state="done", code=0)
    return answer


def _load(settings: Sequence[str]) -> Loaded:
    return load_config(_CONFIG, [parse_assignment(text, "robustcli demo") for text in settings])


def _muted(console: Console) -> Console:
    """A console that shows progress bars, and no tables or documents of the inner steps."""
    return Console(json=True, quiet=console.quiet)


def _train(run: Run, base: Sequence[str], console: Console) -> dict[str, Setting]:
    """Train both models, each in a run of its own below `run`; returns their settings."""
    settings: dict[str, Setting] = {}
    for number, (name, more) in enumerate(_MODELS.items(), 1):
        console.info(f"{number}/4 training the {name} model")
        loaded = _load([*base, *more, f"name={name}", f"out={run.path / name}"])
        train(loaded, _muted(console), TrainFlags())
        settings[name] = prepare(loaded.config, Console(quiet=True))
    return settings


def _model(run: Run, name: str, setting: Setting) -> nn.Module:
    return load_model(f"run:{run.path / name}").to(setting.device)


def _measure(run: Run, name: str, setting: Setting, console: Console) -> tuple[nn.Module, Evaluation]:
    """PGD-20 on the whole test split."""
    model, config, split = _model(run, name, setting), setting.config, setting.data.test
    plan = eval_plan(setting, config.attacks)
    positions = choose(split, n=config.eval.n, first=None, seed=config.seed)
    title = f"3/4 {plan.attacks[0].label} on the {name} model"
    with StopFlag() as stop, console.progress(len(positions), title) as bar:

        def advance(outcome: BatchOutcome) -> None:
            bar.advance(len(outcome.y))

        def beat(beat: Beat) -> None:
            bar.within(beat.share * beat.rows, None, at=beat.words)

        evaluation = RobustEvaluation(model, plan, stop=stop.check, say=console.warn, beat=beat)
        return model, evaluation.run(split, positions, setting.device, on_batch=advance)


def _curves(
    run: Run, settings: Mapping[str, Setting], console: Console, smoke: bool
) -> dict[str, list[list[float]]]:
    """Accuracy against eps under the attack of the demo: name of the model -> [eps, accuracy, low, high].

    low and high are the exact interval at 95 %. Draws them.
    """
    rates: dict[str, list[tuple[float, Rate]]] = {name: [] for name in settings}
    eps_list = _EPS[:: 3 if smoke else 1]
    with console.progress(len(settings) * len(eps_list), "3/4 accuracy against eps") as bar:
        for name, setting in settings.items():
            model = _model(run, name, setting)
            for eps in eps_list:
                rates[name].append((eps, _rate(model, setting, eps)))
                bar.advance()
    curves = {
        name: [[eps, rate.value, *rate.exact] for eps, rate in of_model] for name, of_model in rates.items()
    }
    robust = settings["robust"]
    attack = eval_plan(robust, robust.config.attacks).attacks[0].label
    picture = curves_picture(curves, robust.data.name, attack, robust.ball.norm)
    save_pictures([picture], run.path / "plots")
    return curves


def _rate(model: nn.Module, setting: Setting, eps: float) -> Rate:
    """Share of images that are right under the attack of the demo at this eps."""
    config, split = setting.config, setting.data.test
    n = min(_CURVE_IMAGES, config.eval.n or _CURVE_IMAGES)
    positions = choose(split, n=n, first=None, seed=config.seed)
    calls = eval_plan(setting, config.attacks).attacks
    search = make_search(config, setting.device)
    plan = EvalPlan(Ball(setting.ball.norm, eps), calls, config.seed, search=search)
    result = RobustEvaluation(model, plan).run(split, positions, setting.device)
    return Rate(int(result.survivors.sum()), result.n)


def _attack(run: Run, base: Sequence[str], console: Console, smoke: bool) -> None:
    """Write the images that break the natural model, in a run of their own below `run`."""
    console.info("4/4 writing the images that break the natural model")
    settings = (
        f"out={run.path / 'attack'}",
        f"model.name=run:{run.path / 'natural'}",
        f"eval.n={_ATTACKED[smoke]}",
    )
    attack(_load([*base, *settings]), _muted(console), MeasureFlags())


def _threat(setting: Setting, n: int) -> str:
    """Title of the table: data set, ball and number of images."""
    ball = setting.ball
    return f"{setting.data.name}, {ball.norm} eps {format_eps(ball.eps, ball.norm)}, {n} test images"


def _table(models: Mapping[str, Sequence[EvalRow]], title: str) -> Table:
    """One line per model, from its records: clean, one attack, the worst case."""
    body: list[list[Cell]] = [
        [name, rows[-1].clean, rows[-1].robust, rows[-1].success] for name, rows in models.items()
    ]
    attack = next(row.title for rows in models.values() for row in rows if row.kind == "attack")
    note = (
        "Clean and robust accuracy: of all samples."
        " Attack success: of the samples that are right without an attack. Brackets: 95 % Wilson interval."
    )
    columns = ["model", "clean accuracy", f"robust accuracy ({attack})", "attack success"]
    return Table(title, columns, body, note)


def _next_steps(run: Run, console: Console) -> None:
    """Show on stderr which pictures to look at and which commands to try."""
    plots, images = run.path / "plots", run.path / "attack"
    lines = (
        f"pictures: {plots / 'accuracy_against_eps.png'} and {images / 'plots' / 'gallery.png'}",
        "next steps:",
        f"  robustcli eval --model run:{run.path / 'robust'} --steps 100",
        f"  robustcli attack --model run:{run.path / 'robust'} --n 32",
        "  robustcli config cp train/digits my.yaml && robustcli train my.yaml",
        "  robustcli train train/folder --data folder:PATH   (your own images, one folder per class)",
    )
    for line in lines:
        console.info(line)
