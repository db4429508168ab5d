"""`eval --sweep KEY=VALUES`: accuracy against the radius, the steps or the restarts, on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from robustcli.assembly.attacks import eval_plan
from robustcli.assembly.ball import beyond_pixels
from robustcli.assembly.ranges import Sweep
from robustcli.assembly.setting import Setting
from robustcli.config.sections import wrong_radius
from robustcli.errors import UsageError
from robustcli.evaluation.pulse import Beat
from robustcli.jobs.distances import minimal_calls, run_distances
from robustcli.jobs.sweep_rows import sweep_rows, swept_calls
from robustcli.proportions import sign_test
from robustcli.records.alarm import Alarm
from robustcli.records.sweep import SweepRow
from robustcli.reporting.pictures.files import save_pictures
from robustcli.reporting.pictures.sweep import sweep_picture, sweep_title
from robustcli.reporting.sweep_table import sweep_table
from robustcli.runtime.team import Team
from robustcli.store.atomic import JsonLines
from robustcli.store.run import Run
from robustcli.terminal.console import Console

_NONE_LEFT = 0.01  # accuracy that counts as zero
_CHANCE = 0.025
_ROOTS = {"linf": 0.0, "l2": 0.5, "l1": 1.0}  # norm -> 1/p


def check_sweep(sweep: Sweep, setting: Setting) -> None:
    """Raises UsageError for a radius that the images cannot have, or when no attack has the parameter."""
    if sweep.key == "eps" and setting.ball.norm == "l0" and (what := _no_pixels(sweep, setting)):
        raise UsageError(f"--sweep {what}", where="eval.sweep", hint="eps=1,2,5,10, or eps=0..8:9")
    if sweep.key == "eps" and setting.ball.norm == "linf" and sweep.values[-1] > 1:
        last = sweep.values[-1]
        raise UsageError(
            f"--sweep eps: {last:g} is not on the [0,1] scale; did you mean {last:g}/255?", where="eval.sweep"
        )
    calls = eval_plan(setting, setting.config.attacks).attacks
    if sweep.key == "distance":
        minimal_calls(calls, setting.config.eval.target)
    else:
        swept_calls(calls, sweep.key)


def _no_pixels(sweep: Sweep, setting: Setting) -> str:
    """The first radius that is a fraction of a pixel, or more pixels than the images have; "" for none."""
    wrong = [wrong_radius("eps", value, "l0") for value in sweep.values]
    beyond = beyond_pixels(sweep.values[-1], setting.data.shape)
    return next(filter(None, [*wrong, beyond]), "")


def help_sweep(
    setting: Setting, model: nn.Module, stop: Callable[[], None], sweep: Sweep, team: Team
) -> None:
    """The part of a rank that is not the first: it measures shards of each value, and keeps no row."""
    if sweep.key != "distance":
        for _ in sweep_rows(setting, model, sweep, stop, team=team):
            pass


def run_sweep(
    setting: Setting,
    model: nn.Module,
    console: Console,
    stop: Callable[[], None],
    sweep: Sweep,
    run: Run,
    team: Team,
) -> tuple[list[dict[str, Any]], list[Alarm]]:
    """(the rows of all values as JSON objects, the alarms that they raise).

    Writes sweep.jsonl and plots/sweep_KEY.png and shows a table.
    A sweep over eps attacks only the samples that still stand: a point that was found at a smaller radius is
    valid at a larger one. Its accuracy therefore never rises. A sweep over steps or restarts shows whether
    accuracy reaches a plateau, and measures every value anew. For distance see `jobs.distances`.
    """
    check_sweep(sweep, setting)
    if sweep.key == "distance":
        return [row.to_json() for row in run_distances(setting, model, console, stop, run)], []
    rows: list[SweepRow] = []
    with (
        console.progress(len(sweep.values), f"sweep over {sweep.key}") as bar,
        JsonLines(run.path / "sweep.jsonl") as lines,
    ):
        lines.truncate(0)

        def beat(beat: Beat) -> None:
            value = f"{sweep.key} {sweep.values[len(rows)]:.4g}"
            bar.within(0.0, None, at=f"{value}: {beat.words}", standing=f"{beat.standing}/{beat.rows}")

        for row in sweep_rows(setting, model, sweep, stop, console.warn, beat, team):
            rows.append(row)
            lines.write(row.to_json())
            bar.advance(robust=f"{_accuracy(row):.1%}")
    _show(setting, sweep, rows, run, console)
    return [row.to_json() for row in rows], sweep_alarms(sweep, rows, grey_radius(setting))


def grey_radius(setting: Setting) -> float:
    """0.5 * d^(1/p): within this distance every image of d pixel values can be made uniformly grey.

    l0: all pixels. Fewer suffice where some are grey already.

    A model that is right on many images at this radius was attacked too weakly.
    """
    if setting.ball.norm == "l0":
        return float(math.prod(setting.data.shape[1:]))
    return 0.5 * float(math.prod(setting.data.shape) ** _ROOTS[setting.ball.norm])


def sweep_alarms(sweep: Sweep, rows: Sequence[SweepRow], grey: float) -> list[Alarm]:
    """Alarms from the shape of the curve.

    `large-eps-survivors`: more than 1 % of the samples stand at a radius >= `grey`, where every image can be
    made grey.
    `not-converged`: the last doubling of steps or restarts broke more samples than chance allows. The test is
    the exact sign test on the same samples, one-sided, at 2.5 %.

    Source: Carlini et al., On Evaluating Adversarial Robustness, 2019, arXiv:1902.06705, section 5.
    """
    if sweep.key == "eps":
        return _large_eps_survivors(rows[-1], grey)
    return _not_converged(rows[-1])


def _large_eps_survivors(last: SweepRow, grey: float) -> list[Alarm]:
    accuracy, total = _accuracy(last), last.total
    if last.value < grey or accuracy <= _NONE_LEFT:
        return []
    stand = f"{accuracy:.1%} of {total.n} samples stand at {total.norm} eps {last.value:g}"
    evidence = f"{stand}, where every image can be made uniformly grey"
    remedy = "the attack fails, not the radius: add apgd, more steps or a gradient-free attack"
    return [Alarm("large-eps-survivors", "suspect", evidence, remedy)]


def _not_converged(last: SweepRow) -> list[Alarm]:
    since = last.since_half
    if since is None or sign_test(since.fell, since.recovered) > _CHANCE:
        return []
    going = f"going from {since.value:g} to {last.value:g} {last.key}"
    evidence = f"{going} broke {since.fell} more samples and lost {since.recovered}"
    remedy = f"give the attacks more {last.key} until accuracy stays"
    return [Alarm("not-converged", "suspect", evidence, remedy)]


def _show(setting: Setting, sweep: Sweep, rows: Sequence[SweepRow], run: Run, console: Console) -> None:
    """Draw the picture and show the table; for eps say how far a sweep should go that reaches accuracy 0."""
    save_pictures([sweep_picture(rows)], run.path / "plots")
    console.table(sweep_table(sweep.key, [row.to_json() for row in rows], f"sweep: {sweep_title(rows)}"))
    grey, accuracy = grey_radius(setting), _accuracy(rows[-1])
    if sweep.key == "eps" and accuracy > _NONE_LEFT and sweep.values[-1] < grey:
        console.info(
            f"{accuracy:.1%} still stand at the largest radius;"
            f" a sweep up to {grey:g} shows whether accuracy falls to 0"
        )


def _accuracy(row: SweepRow) -> float:
    """Share of all samples that are right under all attacks, in [0, 1]."""
    return row.total.correct / row.total.n
