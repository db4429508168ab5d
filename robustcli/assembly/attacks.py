"""From a validated configuration to the objects that do the work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.config.bind import TORCHATTACKS, bind_spec
from robustcli.config.number import parse_number
from robustcli.config.schema import Config
from robustcli.config.spec import Spec, is_reference
from robustcli.core.geometry import Ball
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data
from robustcli.data.sampling import stratified
from robustcli.data.split import Split
from robustcli.errors import ConfigError, DataError, UsageError
from robustcli.evaluation.library import torchattacks_call
from robustcli.evaluation.plan import AttackCall, AuditPlan, EvalPlan, Search
from robustcli.models.build import build_model
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import NormalisedModel
from robustcli.models.source import load_model
from robustcli.reporting.cells import format_eps
from robustcli.runtime.device import pick_device, threads
from robustcli.runtime.precision import allow_tf32, resolve
from robustcli.runtime.seed import seed_all
from robustcli.terminal.console import Console


@dataclass(frozen=True)
class Setting:
    """Device, data and threat of one run."""

    config: Config
    device: torch.device
    data: DataBundle
    ball: Ball


def prepare(config: Config, console: Console) -> Setting:
    """Seed, threads, device, data, ball: what every verb needs before it builds a model."""
    device = pick_device(config.device)
    threads(config.threads)
    allow_tf32(False)
    seed_all(config.seed, config.deterministic)
    if config.data.storage == "cached":
        console.info("storage: cached; what is not in the cache is decoded first, which may take long")
    data = load_data(config.data, allow_download=config.data.download)
    for note in data.notes:
        console.info(note)
    setting = Setting(config, device, data, make_ball(config, data, console))
    for path, spec in {
        "adversary": config.adversary,
        **{f"attacks.{k}": spec for k, spec in enumerate(config.attacks)},
    }.items():
        size = spec.params.get("step_size")
        if size is not None and parse_number(size) > 2 * setting.ball.eps:
            console.warn(
                f"{path}.step_size {size} is more than twice eps {setting.ball.eps:.4g}: every step crosses the whole ball"
            )
    return setting


def make_ball(config: Config, data: DataBundle, console: Console) -> Ball:
    """The configured ball; without an eps the data set's preset, which is printed."""
    norm, eps = config.ball.norm, config.ball.eps
    if eps is None:
        eps = data.presets.get(norm)
        if eps is None:
            raise ConfigError(
                f"no epsilon preset for data {data.name!r} under {norm}",
                where="ball.eps",
                hint="set ball.eps (8/255 is usual for 32x32 photographs, 4/255 for 224x224, both linf)",
            )
        console.info(f"ball: {norm}, eps {format_eps(eps, norm)}, the preset of {data.name}")
    return Ball(norm, float(eps))


def bound(
    kind: registry.Registry[Any, Any], spec: Spec, path: str
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The registered function of a spec and its coerced parameters. Raises ConfigError."""
    found = bind_spec(kind, spec, path)
    return found.fn, dict(found.params)


def label_of(name: str, params: Mapping[str, Any]) -> str:
    """``pgd-20``, ``pgd-20x5`` (restarts) or ``corruption-pixelate-3`` (severity): how tables call an attack."""
    if "severity" in params:
        return f"{name}-{params.get('type')}-{params['severity']}"
    steps, restarts = params.get("steps"), params.get("restarts", 1)
    return (
        name
        + (f"-{steps}" if steps is not None else "")
        + (f"x{restarts}" if restarts and restarts > 1 else "")
    )


def make_attacks(
    specs: Sequence[Spec], norm: str, path: str = "attacks", search: Search | None = None
) -> list[AttackCall]:
    """Attack calls with distinct labels; an ensemble becomes its stages. Raises ConfigError for an attack that does not know the norm."""
    calls: list[AttackCall] = []
    for k, spec in enumerate(specs):
        for call in calls_of(spec, norm, f"{path}.{k}", search or Search()):
            calls.append(call)
    return [
        replace(call, label=label)
        for call, label in zip(calls, numbered([call.label for call in calls]), strict=True)
    ]


def make_audit(specs: Sequence[Spec], norm: str, path: str = "attacks") -> AuditPlan | None:
    """How the survivors of these attacks are looked at once more: as the first ensemble says that needs it, unless the long list runs anyway."""
    found: list[Any] = []
    for k, spec in enumerate(specs):
        if spec.name in registry.ensembles:
            _, params = bound(registry.ensembles, spec, f"{path}.{k}")
            found.append(registry.ensembles.get(spec.name).facts.audit(norm, **params))
    if not found or None in found:
        return None
    audit = found[0]

    def calls(stages: Sequence[Any]) -> list[AttackCall]:
        return [_checked(stage.name, stage.params, norm, path, stage.label, None) for stage in stages]

    return AuditPlan(audit.samples, lambda passes: calls(audit.short_forms(passes)), calls(audit.escalation))


def numbered(names: Sequence[str]) -> list[str]:
    """a, b, a -> a, b, a#2: names that are told apart."""
    before = [names[:k].count(name) for k, name in enumerate(names)]
    return [f"{name}#{same + 1}" if same else name for name, same in zip(names, before, strict=True)]


def calls_of(spec: Spec, norm: str, path: str, search: Search) -> list[AttackCall]:
    """The calls of one entry of an attack list."""
    if spec.name.startswith(TORCHATTACKS):
        return [torchattacks_call(spec.name, spec.params, norm, path)]
    if spec.name in registry.ensembles:
        fn, params = bound(registry.ensembles, spec, path)
        return [
            _checked(
                s.name, s.params, norm, path, s.label, replace(search, draws=s.draws) if s.draws > 1 else None
            )
            for s in fn(norm, **params)
        ]
    _, params = bound(registry.attacks, spec, path)
    call = _checked(spec.name, params, norm, path, spec.name, None)
    return [replace(call, label=label_of(spec.name, call.given))]


def _checked(
    name: str, params: Mapping[str, Any], norm: str, path: str, label: str, search: Search | None
) -> AttackCall:
    entry = registry.attacks.get(name)
    norms = entry.facts.norms
    if norm not in norms:
        raise ConfigError(f"attack {name!r} works for {', '.join(norms)}, not {norm}", where=path)
    return AttackCall.of(entry, params, label=label, search=search)


def make_search(
    config: Config, device: torch.device, warn: Callable[[str], None] = lambda text: None
) -> Search:
    """Precision and layout of the search twin; `auto` is bf16 where the hardware has it."""
    search = config.search
    dtype = resolve(search.precision, device, warn)
    compiled = search.compile == "on" or (search.compile == "auto" and device.type == "cuda")
    return Search(
        dtype, search.fold_bn, search.channels_last, compiled, search.bpda, search.rescale, search.eot
    )


def eval_plan(
    setting: Setting,
    specs: Sequence[Spec],
    *,
    path: str = "attacks",
    batch_size: int | None = None,
    target: str | int | None = None,
) -> EvalPlan:
    """The plan of an evaluation under these attacks."""
    config = setting.config
    search = make_search(config, setting.device)
    attacks, audit = (
        make_attacks(specs, setting.ball.norm, path, search),
        make_audit(specs, setting.ball.norm, path),
    )
    return EvalPlan(
        setting.ball, attacks, config.seed, batch_size or config.eval.batch_size, target, search, audit=audit
    )


def planned_passes(calls: Sequence[AttackCall], classes: int, norm: str) -> int:
    """Model passes that these attacks spend on one sample that never falls, as their registrations state."""
    return sum(call.passes(classes, norm) for call in calls)


def probe_size(calls: Sequence[AttackCall], n: int, checks: int | None, classes: int, norm: str) -> int:
    """Samples of the diagnosis (about 250 passes each): `checks`, or a tenth of the planned work, from 8 to 64."""
    if checks is not None:
        return checks
    return max(8, min(64, planned_passes(calls, classes, norm) * n // 2500))


def choose(split: Split, *, n: int | None, first: int | None, seed: int) -> Tensor:
    """Positions to measure: a seeded stratified sample of n, the first `first`, or all."""
    if n is not None and first is not None:
        raise UsageError(
            "--n and --first exclude each other", hint="--n samples by class, --first keeps the stored order"
        )
    if not len(split):
        raise DataError("the chosen split is empty", hint="choose another eval.split")
    if first is not None:
        return torch.arange(min(first, len(split)))
    return stratified(split.labels, min(n or len(split), len(split)), seed)


def split_of(data: DataBundle, name: str) -> Split:
    """train, val or test. Raises DataError when it is empty."""
    split: Split = getattr(data, name)
    if not len(split):
        raise DataError(
            f"the {name} split of {data.name} is empty",
            hint="set data.val_fraction > 0" if name == "val" else "",
        )
    return split


def samples(setting: Setting) -> tuple[Split, Tensor]:
    """The split that is measured, and the positions in it that the configuration chooses."""
    config = setting.config.eval
    split = split_of(setting.data, config.split)
    return split, choose(split, n=config.n, first=config.first, seed=setting.config.seed)


def fresh_model(setting: Setting) -> NormalisedModel:
    """A new model for the data, initialised from the seed, in channels-last when asked."""
    config, data = setting.config, setting.data
    info = ModelInfo(
        num_classes=len(data.classes),
        channels=data.shape[0],
        size=data.shape[1],
        mean=data.mean,
        std=data.std,
    )
    return build_model(config.model.name, config.model.params, info, seed=config.seed)


def model_from(
    setting: Setting, *, plugin: str | None, allow_pickle: bool, num_classes: int | None
) -> nn.Module:
    """The configured model with its weights, for the configured data; `num_classes` None means: as the weights say."""
    spec, data = setting.config.model, setting.data
    return load_model(
        spec.name,
        params=spec.params,
        weights=spec.weights,
        plugin=plugin,
        num_classes=num_classes,
        channels=data.shape[0],
        size=data.shape[1],
        mean=data.mean,
        std=data.std,
        normalize=spec.normalize,
        allow_pickle=allow_pickle,
        download=setting.config.data.download,
        seed=setting.config.seed,
    )


def model_to_train(setting: Setting, *, plugin: str | None, allow_pickle: bool) -> nn.Module:
    """The configured model on its device, for the classes of the data: new, or from weights (fine-tuning)."""
    spec = setting.config.model
    if plugin is None and not is_reference(spec.name) and spec.weights is None:
        model: nn.Module = fresh_model(setting)
    else:
        model = model_from(
            setting, plugin=plugin, allow_pickle=allow_pickle, num_classes=len(setting.data.classes)
        )
    return move(model, setting.device, setting.config.train.channels_last)


def call_with(fn: Callable[..., Any], params: Mapping[str, Any]) -> Callable[..., Any]:
    """`fn` with its parameters bound."""
    return functools.partial(fn, **params)


def move(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The model on the device; 4-d weights in channels-last when asked."""
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if channels_last else model
