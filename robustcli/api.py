"""The Python API beside the CLI: `load_model`, `attack`, `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.config.bind import bind_spec
from robustcli.config.schema import Spec
from robustcli.core.geometry import Ball, Norm
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.data.check import check_labels, check_range
from robustcli.data.split import MemorySplit
from robustcli.errors import ConfigError, DataError
from robustcli.evaluation.alarms import Alarm
from robustcli.evaluation.robust import AttackCall, EvalPlan, RobustEvaluation, Search
from robustcli.jobs.compose import label_of
from robustcli.models import load_model
from robustcli.runtime.device import pick_device
from robustcli.runtime.precision import resolve

__all__ = ["Verdict", "attack", "evaluate", "load_model"]


@dataclass(frozen=True)
class Verdict:
    """Result of `evaluate` over n samples.

    clean_acc, robust_acc: shares of all n, in [0, 1]. attack_success: share of the initially correct that was broken.
    survivors: bool [n]. stages: {attack name: bool [n] still right after it and all before it}.
    reliability: ok, suspect or invalid; alarms: why. passes_per_sample: {attack name: model passes per sample}.
    """

    n: int
    clean_acc: float
    robust_acc: float
    attack_success: float
    survivors: Tensor
    stages: dict[str, Tensor]
    reliability: str
    alarms: list[Alarm]
    passes_per_sample: dict[str, float]


def _call(name: str, norm: str, params: dict[str, Any]) -> AttackCall:
    try:
        entry = bind_spec(registry.attacks.discover(), Spec(name=name, **params), "attack")
    except ConfigError as error:
        raise ValueError("; ".join(error.problems) or str(error)) from None
    facts = registry.attacks.get(name).facts
    if norm not in facts["norms"]:
        raise ValueError(f"attack {name!r} works for {', '.join(facts['norms'])}, not {norm}")
    return AttackCall(label_of(name, entry.params), name, entry.fn, entry.params)


def _checked(model: nn.Module, x: Tensor, y: Tensor, device: str) -> tuple[nn.Module, Tensor, Tensor, torch.device]:
    """Model and data on the device, after the checks that a loader does."""
    place = pick_device(device)
    if x.dim() < 2 or len(x) != len(y):
        raise DataError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}", hint="x [n, C, H, W] float in [0, 1], y [n] int64")
    if not x.is_floating_point():
        raise DataError(f"x is {str(x.dtype).removeprefix('torch.')}", where="x", hint="x.float() / 255", code="E-RANGE")
    check_range(x, where="x", dark=len(x) > 16)
    model = model.to(place)
    if len(x):
        with frozen(model), torch.no_grad():
            classes = model(x[:1].to(place)).shape[1]
        check_labels(y, classes, where="y")
    return model, x.detach(), y.detach(), place


def _search(precision: str, device: torch.device) -> Search:
    """fp32 is the model itself; bf16 and auto (where native) search on a folded twin and confirm in fp32."""
    dtype = resolve(precision, device)
    return Search(dtype, fold_bn=dtype is not torch.float32, channels_last=dtype is not torch.float32)


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    attack: str | Sequence[str] = "pgd",
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 256,
    search: Literal["auto", "fp32", "bf16"] = "auto",
    target: str | int | None = None,
    **params: Any,
) -> Verdict:
    """Clean and robust accuracy; each success is confirmed by the model in fp32 and measured in float64.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K]; put normalisation inside. Moved to the device, held in eval mode.
        x: float [n, C, H, W] in [0, 1]; y: int64 [n].
        eps: radius in pixel units of [0, 1] (8/255, never 8); norm: linf, l2 or l1.
        attack: a name or several, run in order on the samples still standing; `params` (steps=20 …) go to a single one.
        seed: of all draws, keyed by the place in x. target: None, "random", "least-likely" or a class.
        search: precision of the search; verdicts are fp32 always.

    Raises:
        ValueError: unknown attack or parameter, bad eps. DataError: x outside [0, 1], labels out of range.
    """
    names = [attack] if isinstance(attack, str) else list(attack)
    if params and len(names) > 1:
        raise ValueError("parameters go with a single attack; use a config for several")
    model, x, y, place = _checked(model, x, y, device)
    calls = [_call(name, norm, params) for name in names]
    plan = EvalPlan(Ball(norm, eps), calls, seed, batch_size, target, _search(search, place))
    split = MemorySplit(x.cpu().float(), y.cpu(), tuple(map(str, range(int(y.max()) + 1 if len(y) else 1))))
    result = RobustEvaluation(model, plan).run(split, torch.arange(len(x)), place)
    return Verdict(
        result.n,
        result.clean_acc,
        result.robust_acc,
        result.attack_success,
        result.survivors,
        result.stages,
        result.reliability,
        result.alarms,
        result.passes_per_sample,
    )


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    name: str = "pgd",
    eps: float,
    norm: Norm = "linf",
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 256,
    search: Literal["auto", "fp32", "bf16"] = "fp32",
    stop: Callable[[], None] | None = None,
    **params: Any,
) -> Tensor:
    """x_adv [n, C, H, W] inside the ball around x: per sample the worst point met, all samples attacked (also misclassified ones).

    Arguments as for `evaluate`; `params` (steps=20, step_size=2/255 …) go to the attack. The result lies on x's device in float32.
    No success is claimed: re-predict, or call `evaluate`.

    Raises:
        ValueError: unknown attack or parameter, bad eps. DataError: x outside [0, 1], labels out of range.
    """
    home = x.device
    model, x, y, place = _checked(model, x, y, device)
    call, ball = _call(name, norm, params), Ball(norm, eps)
    settings = _search(search, place)
    found = []
    with frozen(model):
        twin = settings.twin(model, x[:batch_size].to(place).float()) if len(x) else model
        for rows in torch.arange(len(x)).split(batch_size):
            part = x[rows].to(place).float()
            rng = RowRandom(seed, "start", rows.to(place))
            oracle = Oracle(twin, part, Criterion(y[rows].to(place)), rng=rng, keep="best", stop=stop)
            found.append(call.fn(oracle, part, ball, **call.params).to(home))
    return torch.cat(found) if found else x.clone()
