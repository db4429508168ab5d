"""From the attacks of a configuration to calls, and to the plan of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from robustcli import registry
from robustcli.assembly.binding import bound
from robustcli.assembly.setting import Setting
from robustcli.config.bind import TORCHATTACKS
from robustcli.config.schema import Config
from robustcli.config.spec import Spec
from robustcli.config.validate import norm_mistake
from robustcli.core.geometry import start_mistake
from robustcli.errors import ConfigError
from robustcli.evaluation.library import torchattacks_call
from robustcli.evaluation.plan import AttackCall, AuditPlan, EvalPlan, Search
from robustcli.evaluation.quickest import Length
from robustcli.registry import Registry, parameters
from robustcli.runtime.precision import resolve


def eval_plan(
    setting: Setting,
    specs: Sequence[Spec],
    *,
    path: str = "attacks",
    batch_size: int | None = None,
    target: str | int | None = None,
) -> EvalPlan:
    """The plan of an evaluation under these attacks."""
    config, norm = setting.config, setting.ball.norm
    search = make_search(config, setting.device)
    return EvalPlan(
        setting.ball,
        make_attacks(specs, norm, path, search),
        config.seed,
        batch_size or config.eval.batch_size,
        target,
        search,
        audit=make_audit(specs, norm, path),
    )


def make_search(
    config: Config,
    device: torch.device,
    warn: Callable[[str], None] = lambda text: None,
    length: Length | None = None,
) -> Search:
    """The configured search: precision, memory layout and compilation of the search twin; bpda, rescale, eot.

    `auto` precision is bf16 where the hardware has it. `auto` compilation is CUDA graphs on CUDA, or what a
    race finds faster in a run of this `length`.
    """
    search, cuda = config.search, device.type == "cuda"
    return Search(
        dtype=resolve(search.precision, device, warn),
        fold_bn=search.fold_bn,
        channels_last=search.channels_last,
        compile=search.compile == "on",
        graph=cuda and search.compile in ("auto", "graph"),
        bpda=search.bpda,
        rescale=search.rescale,
        draws=search.eot,
        length=length if cuda and search.compile == "auto" else None,
    )


def make_attacks(
    specs: Sequence[Spec], norm: str, path: str = "attacks", search: Search | None = None
) -> list[AttackCall]:
    """Attack calls with distinct labels; an ensemble becomes its stages.

    Raises ConfigError for an attack that does not know the norm.
    """
    calls: list[AttackCall] = []
    for k, spec in enumerate(specs):
        calls += calls_of(spec, norm, f"{path}.{k}", search or Search())
    labels = numbered([call.label for call in calls])
    return [replace(call, label=label) for call, label in zip(calls, labels, strict=True)]


def calls_of(spec: Spec, norm: str, path: str, search: Search) -> list[AttackCall]:
    """The calls of one entry of an attack list."""
    if spec.name.startswith(TORCHATTACKS):
        return [torchattacks_call(spec.name, spec.params, norm, path)]
    if spec.name in registry.ensembles:
        fn, params = bound(registry.ensembles, spec, path)
        if what := norm_mistake("ensemble", registry.ensembles.get(spec.name), norm):
            raise ConfigError(what, where=path)
        return [_stage(stage, norm, path, search) for stage in fn(norm, **params)]
    _, params = bound(registry.attacks, spec, path)
    call, label = _checked(spec.name, params, norm, path), registry.attacks.get(spec.name).facts.label
    named = label_of(spec.name, _told(call)) if label is None else label(call.given)
    return [replace(call, label=named)]


def _told(call: AttackCall) -> Mapping[str, Any]:
    """The parameters that its label may tell: the budget of a search by labels alone counts as its steps."""
    if call.needs == "decisions" and "queries" in call.given:
        return {**call.given, "steps": call.given["queries"]}
    return call.given


def make_audit(specs: Sequence[Spec], norm: str, path: str = "attacks") -> AuditPlan | None:
    """The audit of the short lists among these attacks; None where none is needed.

    The survivors of a short list are audited, see `evaluation.audit`. With several short lists the first one
    says
    how. An ensemble without an audit runs the long list itself: with one of those among the attacks there is
    no
    audit.
    """
    audits: list[Any] = []
    for k, spec in enumerate(specs):
        if spec.name in registry.ensembles:
            _, params = bound(registry.ensembles, spec, f"{path}.{k}")
            audits.append(registry.ensembles.get(spec.name).facts.audit(norm, **params))
    if not audits or None in audits:
        return None
    audit = audits[0]

    def calls(stages: Sequence[Any]) -> list[AttackCall]:
        return [_stage(stage, norm, path) for stage in stages]

    return AuditPlan(audit.samples, lambda passes: calls(audit.short_forms(passes)), calls(audit.escalation))


def planned_passes(calls: Sequence[AttackCall], classes: int, norm: str) -> int:
    """Model passes on one sample that survives all these attacks, as their registrations state."""
    return sum(call.passes(classes, norm) for call in calls)


def probe_size(calls: Sequence[AttackCall], n: int, checks: int | None, classes: int, norm: str) -> int:
    """How many samples the diagnosis looks at: `checks`, or 8 to 64 for a tenth of the planned passes.

    A sample of the diagnosis takes about 250 passes. The attacks are planned for n samples.
    """
    if checks is not None:
        return checks
    return max(8, min(64, planned_passes(calls, classes, norm) * n // 2500))


def label_of(name: str, params: Mapping[str, Any]) -> str:
    """The name in tables: ``pgd-20``, ``pgd-20x5`` (restarts), ``mi_fgsm-10+di`` (transforms).

    ``corruption-pixelate-3`` has a severity.
    """
    if "severity" in params:
        return f"{name}-{params.get('type')}-{params['severity']}"
    steps, restarts = params.get("steps"), params.get("restarts") or 1
    label = name if steps is None else f"{name}-{steps}"
    label = "+".join((label, *(params.get("transforms") or ())))
    return f"{label}x{restarts}" if restarts > 1 else label


def numbered(names: Sequence[str]) -> list[str]:
    """["a", "b", "a"] -> ["a", "b", "a#2"]: a repeated name gets a number."""
    before = [names[:k].count(name) for k, name in enumerate(names)]
    return [f"{name}#{same + 1}" if same else name for name, same in zip(names, before, strict=True)]


def _stage(stage: Any, norm: str, path: str, search: Search | None = None) -> AttackCall:
    """The call of one stage of an ensemble, on averaged gradients where the stage asks for them."""
    call = _checked(stage.name, stage.params, norm, path)
    averaged = replace(search, draws=stage.draws) if search and stage.draws > 1 else None
    return replace(call, label=stage.label, search=averaged)


def _checked(name: str, params: Mapping[str, Any], norm: str, path: str) -> AttackCall:
    """The call of a registered attack. Raises ConfigError for a norm that it does not know."""
    entry = registry.attacks.get(name)
    if what := misfit(registry.attacks, name, params, norm):
        raise ConfigError(what, where=path)
    return AttackCall.of(entry, params)


def misfit(entries: Registry[Any, Any], name: str, params: Mapping[str, Any], norm: str) -> str:
    """Why an attack with its parameters, or an objective, does not go with a ball; "" where it does."""
    entry = entries.get(name)
    if what := norm_mistake(entries.kind, entry, norm):
        return what
    own = parameters(entry.fn).get("start")
    return start_mistake(str(params.get("start", own.default)), norm) if own else ""
