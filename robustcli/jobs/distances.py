"""`eval --sweep distance`: the distance from each sample to the nearest error of minimal-norm attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from robustcli.assembly.attacks import eval_plan
from robustcli.assembly.rows import hashes_of, short_ids_digest
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting
from robustcli.errors import UsageError
from robustcli.evaluation.nearest import Distances, closest_errors, milestones
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.records.distance import DistanceRow, SampleDistance
from robustcli.reporting.distances import distance_quantile, distance_table
from robustcli.reporting.pictures.distances import distances_picture
from robustcli.reporting.pictures.files import save_pictures
from robustcli.reporting.pictures.queries import queries_picture
from robustcli.store.atomic import JsonLines
from robustcli.store.run import Run
from robustcli.terminal.console import Console

_SHARES = (0.25, 0.5, 0.75)


def minimal_calls(calls: Sequence[AttackCall], target: str | int | None = None) -> list[AttackCall]:
    """The minimal-norm attacks of a list. Raises UsageError when there is none, or when a target is set."""
    if target is not None:
        raise UsageError(
            "--sweep distance is measured untargeted", where="eval.target", hint="set it to null"
        )
    minimal = [call for call in calls if call.kind == "minimal"]
    if not minimal:
        raise UsageError(
            "--sweep distance: none of the attacks is a minimal-norm attack",
            where="eval.sweep",
            hint="for example --attack fmn",
        )
    return minimal


def run_distances(
    setting: Setting, model: nn.Module, console: Console, stop: Callable[[], None], run: Run
) -> list[DistanceRow]:
    """One row per attack; writes distances.jsonl and plots/distances.png and shows a table.

    Attacks with a budget of queries have plots/distance_queries.png, too."""
    config = setting.config
    plan = eval_plan(setting, config.attacks)
    plan = replace(plan, attacks=minimal_calls(plan.attacks, config.eval.target))
    distances = _measure(setting, model, plan, console, stop)
    _write(run, setting, distances)
    common = _common(setting, model, distances)
    rows = [
        DistanceRow(
            **common,
            attack=call.name,
            label=call.label,
            params=dict(call.params),
            **_facts(distances.values[call.label]),
            after=_after(call, distances),
        )
        for call in plan.attacks
    ]
    _show(run, setting, distances, rows, console)
    return rows


def _after(call: AttackCall, distances: Distances) -> list[list[float | None]]:
    """[[queries, median distance], ...] of an attack with a budget of queries."""
    found = distances.after.get(call.label)
    if found is None:
        return []
    medians = [_finite(distance_quantile(column.tolist(), 0.5)) for column in found.T]
    return [list(pair) for pair in zip(milestones(call), medians, strict=True)]


def _measure(
    setting: Setting, model: nn.Module, plan: EvalPlan, console: Console, stop: Callable[[], None]
) -> Distances:
    split, positions = samples(setting)
    title = f"distances by {', '.join(call.label for call in plan.attacks)}"
    with console.progress(len(positions), title) as bar:
        return closest_errors(
            model, plan, split, positions, setting.device, stop=stop, say=console.warn, done=bar.advance
        )


def _write(run: Run, setting: Setting, distances: Distances) -> None:
    """distances.jsonl: one line per sample."""
    with JsonLines(run.path / "distances.jsonl") as lines:
        for k, (sample, label) in enumerate(
            zip(distances.ids.tolist(), distances.labels.tolist(), strict=True)
        ):
            far = {name: _finite(float(values[k])) for name, values in distances.values.items()}
            lines.write(SampleDistance(sample, setting.data.classes[label], far).to_json())


def _show(
    run: Run, setting: Setting, distances: Distances, rows: Sequence[DistanceRow], console: Console
) -> None:
    """The pictures and the table."""
    curves = {label: values.tolist() for label, values in distances.values.items()}
    name, norm = setting.data.name, setting.ball.norm
    pictures = [distances_picture(curves, data=name, norm=norm)]
    if asked := [row for row in rows if row.after]:
        pictures.append(queries_picture(asked))
    save_pictures(pictures, run.path / "plots")
    console.table(distance_table(curves, norm=norm, title=f"distance to the nearest error: {name}"))


def _common(setting: Setting, model: nn.Module, distances: Distances) -> dict[str, Any]:
    """The fields that the rows of all attacks share."""
    config = setting.config
    return {
        "data": setting.data.name,
        "split": config.eval.split,
        "model": config.model.label,
        "norm": setting.ball.norm,
        "seed": config.seed,
        "n": len(distances.ids),
        "hashes": {**hashes_of(setting, model), "ids": short_ids_digest(distances.ids)},
    }


def _facts(values: Tensor) -> dict[str, Any]:
    """Counts and quartiles of the distances, float64 [n], that one attack found."""
    ordered = values.tolist()
    return {
        "clean_correct": int((values > 0).sum()),
        "broken": int(values.isfinite().sum()),
        "quartiles": [_finite(distance_quantile(ordered, share)) for share in _SHARES],
    }


def _finite(distance: float) -> float | None:
    """The distance; None for inf, which JSON cannot hold."""
    return distance if math.isfinite(distance) else None
