"""`eval --sweep distance`: how far the samples are from the nearest error, as minimal-norm attacks find it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from robustcli.assembly.attacks import eval_plan
from robustcli.assembly.rows import hashes_of, ids_digest
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting
from robustcli.errors import UsageError
from robustcli.evaluation.nearest import Distances, closest_errors
from robustcli.evaluation.plan import AttackCall
from robustcli.reporting.distance_curve import distance_curve, distance_quantile, distance_table
from robustcli.store.atomic import JsonLines
from robustcli.store.run import Run
from robustcli.terminal.console import Console

_SHARES = (0.25, 0.5, 0.75)


def minimal_calls(calls: Sequence[AttackCall], target: Any = None) -> list[AttackCall]:
    """The minimal-norm attacks of a list. Raises UsageError when there is none, or for a target."""
    if target is not None:
        raise UsageError(
            "--sweep distance is measured untargeted", where="eval.target", hint="set it to null"
        )
    found = [call for call in calls if call.kind == "minimal"]
    if not found:
        raise UsageError(
            "--sweep distance: none of the attacks is a minimal-norm attack",
            where="eval.sweep",
            hint="for example --attack fmn",
        )
    return found


def run_distances(
    setting: Setting, model: nn.Module, console: Console, stop: Callable[[], None], run: Run
) -> list[dict[str, Any]]:
    """Measure, write distances.jsonl and plots/distances.png, show a table; one row per attack with the quartiles of its distances."""
    config, (split, positions) = setting.config, samples(setting)
    plan = eval_plan(setting, config.attacks)
    plan = replace(plan, attacks=minimal_calls(plan.attacks, config.eval.target))
    with console.progress(
        len(positions), f"distances by {', '.join(call.label for call in plan.attacks)}"
    ) as bar:
        found = closest_errors(
            model, plan, split, positions, setting.device, stop=stop, say=console.warn, done=bar.advance
        )
    _write(run, setting, found)
    curves = {label: values.tolist() for label, values in found.values.items()}
    norm = setting.ball.norm
    distance_curve(
        run.path / "plots" / "distances.png",
        curves,
        title=f"{setting.data.name}: accuracy against eps",
        norm=norm,
    )
    console.table(
        distance_table(curves, norm=norm, title=f"distance to the nearest error: {setting.data.name}")
    )
    common: dict[str, Any] = {
        "schema_version": 1,
        "kind": "distance",
        "key": "distance",
        "data": setting.data.name,
        "split": config.eval.split,
    }
    common |= {"model": config.model.name, "norm": norm, "seed": config.seed, "n": len(found.ids)}
    common["hashes"] = {**hashes_of(setting, model), "ids": ids_digest(found.ids)}
    return [
        {
            **common,
            "attack": call.name,
            "label": call.label,
            "params": dict(call.params),
            **_facts(found.values[call.label]),
        }
        for call in plan.attacks
    ]


def _facts(values: Tensor) -> dict[str, Any]:
    """Counts and quartiles; None where no radius breaks so many."""
    quartiles = [distance_quantile(values.tolist(), share) for share in _SHARES]
    broken = int(values.isfinite().sum())
    return {
        "clean_correct": int((values > 0).sum()),
        "broken": broken,
        "quartiles": [q if math.isfinite(q) else None for q in quartiles],
    }


def _write(run: Run, setting: Setting, found: Distances) -> None:
    """distances.jsonl: per sample its id, its class and its distance under each attack, null = never broken."""
    with JsonLines(run.path / "distances.jsonl") as lines:
        for k, (sample, label) in enumerate(zip(found.ids.tolist(), found.labels.tolist(), strict=True)):
            values = {name: float(of[k]) if of[k].isfinite() else None for name, of in found.values.items()}
            lines.write({"id": sample, "label": setting.data.classes[label], "distance": values})
