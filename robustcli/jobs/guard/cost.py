"""`robustcli guard eval --dry-run`: what each part costs at most."""

from __future__ import annotations

from typing import Any

import torch

from robustcli.assembly.attacks import planned_passes
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting
from robustcli.assembly.speed import seconds_per_forward
from robustcli.evaluation.draws import EOT_DRAWS
from robustcli.evaluation.guarded.calls import adaptive_labels_and_passes
from robustcli.evaluation.guarded.evaluation import DRAWS
from robustcli.evaluation.guarded.sanity import PROBED
from robustcli.evaluation.plan import EvalPlan
from robustcli.models.guarded import GuardedModel
from robustcli.reporting.cells import Cell, format_eps
from robustcli.reporting.tables import Table
from robustcli.terminal.console import Console

_PER_PROBE = 350  # passes of the diagnosis on a sample that stands


def guard_plan(setting: Setting, guard: GuardedModel, plan: EvalPlan, console: Console) -> dict[str, Any]:
    """Passes an image, images and seconds of each part: upper bounds, since what falls leaves early.

    Passes are those of networks: an answer of the guard may take several.
    """
    n, norm, classes = len(samples(setting)[1]), setting.ball.norm, setting.classes
    batch = min(plan.batch_size or 256, n, 32)
    times = [seconds_per_forward(setting, net, batch, torch.float32) for net in (guard.members[0], guard)]
    search = planned_passes(plan.attacks, classes, norm)
    judged = 1 + len(plan.attacks)
    calls, passes = adaptive_labels_and_passes(guard, plan, classes)
    draws, votes = (EOT_DRAWS, DRAWS) if guard.randomised else (1, 1)
    adaptive = draws * passes + votes * (1 + len(calls))
    probes, bare = min(plan.checks, n), (times[0], 1)
    guarded, both = (times[1], guard.passes), (sum(times), 1 + guard.passes)
    parts = {
        "bare": (search + judged, n, bare),
        "bare, at eps / 2": (search + judged, n, bare),
        "oblivious points": (search + judged, n, bare),
        "oblivious, judged": (2 * votes + 2, n, guarded),
        "adaptive": (adaptive, n, guarded),
        "diagnosis, both models": (_PER_PROBE, probes, both),
        "sanity tests": (2 * adaptive, min(PROBED, n), guarded),
    }
    costs = {
        name: {"passes_per_image": answers * passes, "n": images, "seconds": answers * images * seconds}
        for name, (answers, images, (seconds, passes)) in parts.items()
    }
    total = sum(cost["seconds"] for cost in costs.values())
    _show(costs, total, calls, setting, console)
    ball = f"{norm} {format_eps(setting.ball.eps, norm)}"
    content = {"parts": costs, "adaptive_attacks": calls, "ball": ball, "seconds": total, "n": n}
    return {"plan": content, "run": None, "seconds": 0.0}


def _show(
    costs: dict[str, dict[str, Any]], total: float, calls: list[str], setting: Setting, console: Console
) -> None:
    lines: list[list[Cell]] = [
        [name, cost["n"], cost["passes_per_image"], round(cost["seconds"], 1)] for name, cost in costs.items()
    ]
    lines.append(["all", None, None, round(total, 1)])
    note = f"At most, on {setting.device}: what falls leaves early. Adaptive attacks: {', '.join(calls)}."
    columns = ["part", "images", "passes an image", "seconds"]
    console.table(Table("plan (dry run: nothing is written)", columns, lines, note))
