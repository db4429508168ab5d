"""What a certification measures: the attacks beside it, and the header of its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustcli.assembly.attacks import eval_plan, probe_size
from robustcli.assembly.certifying import Method
from robustcli.assembly.setting import Setting
from robustcli.core.geometry import Ball
from robustcli.errors import UsageError
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.shards import part
from robustcli.evaluation.sizing import shard_size as size_by_number

_SAMPLED = 16  # samples per shard


@dataclass(frozen=True)
class CertifyPlan:
    """All that a row depends on beside model, data and code: what the header of shards compares."""

    method: str
    parameters: Mapping[str, Mapping[str, Any]]
    limits: Mapping[str, Any]
    ball: Ball
    radii: Sequence[float]
    attacked: EvalPlan
    seed: int


def shard_size(setting: Setting, method: Method, n: int) -> int:
    """Samples per shard, of n samples: few where a sample takes long, as under smoothing.

    There the noise of the attacks begins anew in each shard, so the size does not follow n.
    """
    usual = _SAMPLED if method.sampled else size_by_number(n)
    return setting.config.certify.shard_size or usual


def attack_plan(setting: Setting, method: Method, n: int) -> EvalPlan:
    """The attacks on n samples that are certified.

    Raises UsageError for an attack that leaves the ball, and for a target.
    """
    config = setting.config
    plan = eval_plan(setting, config.attacks, target=config.eval.target)
    if apart := [call.label for call in plan.attacks if not call.bounded]:
        raise UsageError(
            f"a certificate is about the ball, and {', '.join(apart)} leaves it",
            where="attacks",
            hint="choose another --attack",
        )
    if config.eval.target is not None:
        raise UsageError(
            "a certificate is about all other classes, and eval.target is one",
            where="eval.target",
            hint="set it to null",
        )
    checks = config.eval.checks
    if method.sampled:
        checks = 0  # its checks are about a fixed function; a smoothed one draws
    else:
        checks = probe_size(plan.attacks, n, checks, setting.classes, setting.ball.norm)
    return replace(plan, checks=checks, escalate=config.eval.escalate, audit=None)


def numbers_of(share: tuple[int, int] | None, shards: int) -> list[int] | None:
    """The shards of part (i, n); None = all. Raises UsageError where there is none."""
    if share is None:
        return None
    numbers = part(shards, *share)
    if not numbers:
        raise UsageError(
            f"--shard {share[0]}/{share[1]}: there are only {shards} shards",
            hint="lower certify.shard_size, or use fewer parts",
        )
    return numbers
