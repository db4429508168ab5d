"""`robustcli demo`: what adversarial training buys, on real images that need no download."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from robustcli.assembly.compose import Setting, choose, eval_plan, make_search, prepare
from robustcli.assembly.cost import training_plan
from robustcli.assembly.rows import eval_document, rows_of
from robustcli.assembly.subjects import model_of
from robustcli.config.load import Loaded, load_config
from robustcli.config.overlay import parse_assignment
from robustcli.core.geometry import Ball
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.result import BatchOutcome, Evaluation
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.jobs.attack import attack
from robustcli.jobs.evaluate import EvalFlags
from robustcli.jobs.train import TrainFlags, train
from robustcli.models.source import load_model
from robustcli.proportions import Rate
from robustcli.records.rows import EvalRow
from robustcli.reporting.cells import Cell, format_eps
from robustcli.reporting.plots import eps_curve
from robustcli.reporting.tables import Table
from robustcli.runtime.signals import StopFlag
from robustcli.store.run import Run
from robustcli.store.rundir import open_run
from robustcli.terminal.console import Console

_CONFIG = "train/digits"
_EPS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
_TINY = (
    "train.epochs=null",
    "train.steps=20",
    "train.batch_size=32",
    "train.val_n=32",
    "eval.n=48",
    "attacks.0.steps=4",
    "adversary.steps=3",
)


def demo(
    console: Console,
    *,
    settings: Sequence[str] = (),
    out: str | None = None,
    overwrite: bool = False,
    smoke: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train a natural and a robust model on `digits`, attack both with PGD-20, compare; returns the document."""
    began = time.perf_counter()
    base = [*settings, *(_TINY if smoke else ())]
    first = _load([*base, "name=robust"])
    if dry_run:
        setting = prepare(first.config, console)
        return training_plan(setting, model_of(setting, Console(quiet=True), EvalFlags()), console)
    with open_run("demo", "digits", out=out, overwrite=overwrite) as run:
        models: dict[str, Setting] = {}
        for name, more in (("natural", ["objective=natural"]), ("robust", [])):
            console.info(f"{'1' if name == 'natural' else '2'}/4 training the {name} model")
            loaded = _load([*base, *more, f"name={name}", f"out={run.path / name}"])
            train(loaded, _muted(console), TrainFlags())
            models[name] = prepare(loaded.config, Console(quiet=True))
        results = {name: _measure(run, name, setting, console) for name, setting in models.items()}
        rows = {name: rows_of(models[name], model, result) for name, (model, result) in results.items()}
        documents = {name: eval_document(results[name][1], rows[name]) for name in models}
        curves = _curves(run, models, console, smoke)
        console.info("4/4 writing the images that break the natural model")
        shown = _load(
            [
                *base,
                f"out={run.path / 'attack'}",
                f"model.name=run:{run.path / 'natural'}",
                "eval.n=64" if not smoke else "eval.n=8",
            ]
        )
        attack(shown, _muted(console), EvalFlags())
        setting = models["robust"]
        radius = format_eps(setting.ball.eps, setting.ball.norm)
        table = _table(
            rows,
            f"{setting.data.name}, {setting.ball.norm} eps {radius}, {documents['robust']['n']} test images",
        )
        console.table(table)
        summary = {
            "schema_version": 1,
            "ok": True,
            "verb": "demo",
            "run": str(run.path),
            "seconds": round(time.perf_counter() - began, 3),
            "models": documents,
        }
        run.write_text("summary.md", table.markdown() + "\n")
        run.write_json("summary.json", {**summary, "curves": curves})
        _next_steps(run, console)
        run.status(state="done", code=0)
    return {key: value for key, value in summary.items() if key not in ("schema_version", "ok", "verb")}


def _load(settings: Sequence[str]) -> Loaded:
    return load_config(_CONFIG, [parse_assignment(text, "robustcli demo") for text in settings])


def _muted(console: Console) -> Console:
    """Progress bars stay, tables and documents of the inner steps do not."""
    return Console(json=True, quiet=console.quiet)


def _measure(run: Run, name: str, setting: Setting, console: Console) -> tuple[nn.Module, Evaluation]:
    """PGD-20 on the whole test split."""
    model = load_model(f"run:{run.path / name}").to(setting.device)
    plan = eval_plan(setting, setting.config.attacks)
    positions = choose(setting.data.test, n=setting.config.eval.n, first=None, seed=setting.config.seed)
    with (
        StopFlag() as stop,
        console.progress(len(positions), f"3/4 {plan.attacks[0].label} on the {name} model") as bar,
    ):

        def tick(outcome: BatchOutcome) -> None:
            bar.advance(len(outcome.y))

        result = RobustEvaluation(model, plan, stop=stop.check, say=console.warn).run(
            setting.data.test, positions, setting.device, on_batch=tick
        )
    return model, result


def _curves(
    run: Run, models: dict[str, Setting], console: Console, smoke: bool
) -> dict[str, list[list[float]]]:
    """Accuracy against eps under PGD for both models: [eps, accuracy, low, high] with exact intervals, and the picture with Wilson's."""
    curves: dict[str, list[list[float]]] = {}
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    eps_list = _EPS[:: 3 if smoke else 1]
    with console.progress(len(models) * len(eps_list), "3/4 accuracy against eps") as bar:
        for name, setting in models.items():
            model = load_model(f"run:{run.path / name}").to(setting.device)
            positions = choose(
                setting.data.test,
                n=min(200, setting.config.eval.n or 200),
                first=None,
                seed=setting.config.seed,
            )
            calls = eval_plan(setting, setting.config.attacks).attacks
            curves[name], points[name] = [], []
            for eps in eps_list:
                plan = EvalPlan(
                    Ball(setting.ball.norm, eps),
                    calls,
                    setting.config.seed,
                    search=make_search(setting.config, setting.device),
                )
                result = RobustEvaluation(model, plan).run(setting.data.test, positions, setting.device)
                rate = Rate(int(result.survivors.sum()), result.n)
                curves[name].append([eps, rate.value, *rate.exact])
                points[name].append((eps, rate.value, *rate.display))
                bar.advance()
    title = f"{models['robust'].data.name}: accuracy under {next(iter(calls)).label}"
    eps_curve(
        run.path / "plots" / "accuracy_against_eps.png", points, title=title, norm=models["robust"].ball.norm
    )
    return curves


def _table(models: Mapping[str, Sequence[EvalRow]], title: str) -> Table:
    """One line per model, from its records: clean, one attack, the worst case."""
    body: list[list[Cell]] = [
        [name, rows[-1].clean, rows[-1].robust, rows[-1].success] for name, rows in models.items()
    ]
    attack = next(row.title for rows in models.values() for row in rows if row.kind == "attack")
    note = "Clean and robust accuracy: of all samples. Attack success: of the samples that are right without an attack. Brackets: 95 % Wilson interval."
    return Table(
        title, ["model", "clean accuracy", f"robust accuracy ({attack})", "attack success"], body, note
    )


def _next_steps(run: Run, console: Console) -> None:
    """What to look at and what to try, on stderr."""
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
