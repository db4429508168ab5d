"""`certify --dry-run`: time, and memory of a batch, before any of it is spent. Nothing is written."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from robustcli.assembly.certifying import Method
from robustcli.assembly.cost import activation_bytes, plan_ball, plan_head, show_plan
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting
from robustcli.assembly.speed import processes_of, shared_seconds
from robustcli.evaluation.draws import spent
from robustcli.evaluation.plan import EvalPlan
from robustcli.jobs.certify.method import radii
from robustcli.jobs.certify.plan import shard_size
from robustcli.models.flops import flops
from robustcli.reporting.cells import format_eps
from robustcli.terminal.console import Console

_PROBE = 2  # samples that a method of unknown cost is timed on
_BATCH = 256


def certification_plan(
    setting: Setting,
    model: nn.Module,
    method: Method,
    plan: EvalPlan,
    n: int,
    console: Console,
    *,
    processes: int = 1,
) -> dict[str, Any]:
    """Images, work and time of proof and attacks, and the memory of a batch.

    Passes are an upper bound: samples that fall, or are given up, leave early. So is the time of smoothing;
    that of bounds is what a few images took.

    processes: that share the samples; memory is that of each.
    """
    config, asked, size_of_shard = setting.config, radii(setting), shard_size(setting, method, n)
    batch = min(config.eval.batch_size or _BATCH, size_of_shard, n)
    forward = shared_seconds(setting, model, min(batch, 32), torch.float32, processes)
    passes = _attack_passes(setting, plan, method) * len(asked)
    proof = forward * method.draws if method.draws else _timed(setting, method) / processes
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    names = ", ".join(call.label for call in plan.attacks)
    return show_plan(
        console,
        {
            **plan_head(setting, model, flops(model, setting.data.shape)),
            "data": f"{setting.data.name} {config.eval.split}",
            "image_size": setting.data.image_size,
            "n": n,
            "ball": plan_ball(setting),
            "radii": ", ".join(format_eps(radius, setting.ball.norm) for radius in asked),
            "method": method.certifier.name,
            "attacks": names,
            "batch_size": batch,
            "passes_per_image": passes + method.draws,
            "memory_bytes": 2 * size
            + max(method.certifier.forecast(batch), activation_bytes(model, setting, batch)),
            "seconds": (proof + passes * forward) * n,
            **processes_of(setting, processes, n, size_of_shard),
            "device": str(setting.device),
        },
        bounded=bool(method.draws),
    )


def _attack_passes(setting: Setting, plan: EvalPlan, method: Method) -> int:
    """Model passes of the attacks at one radius on a sample that survives, and of the looks of the judge."""
    classes, norm, sampled = setting.classes, setting.ball.norm, method.sampled
    searched = sum(spent(plan.attacks, classes, norm, randomised=sampled, draws=plan.search.draws))
    return searched + (1 + len(plan.attacks)) * (plan.judge_draws if method.sampled else 1)


def _timed(setting: Setting, method: Method) -> float:
    """Seconds of proof for one sample, measured on a few."""
    split, positions = samples(setting)
    x, y, ids = next(iter(split.stream([positions[:_PROBE]], setting.device)))
    began = time.perf_counter()
    method.certifier(x, y, ids)
    return (time.perf_counter() - began) / len(x)
