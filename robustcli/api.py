"""The Python API beside the CLI: `load_model`, `attack`, `evaluate`, `certify`, `benchmark`, `assert_robust`.

Threads may call these functions at once, with models of their own or with one in common: a model is held
still as long as any of them works on it, no process-wide setting stays changed, and no signal handler is
installed.

The file is long, and so are `evaluate`, `certify`, `benchmark` and `attack`, because
their docstrings are the reference that a caller reads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustcli.assembly.attacks import make_attacks, make_audit, probe_size
from robustcli.assembly.ball import beyond_pixels
from robustcli.assembly.certifying import SMOOTHING, Subject, Watch, check_model, method_of
from robustcli.assembly.samples import choose, split_of
from robustcli.certificates.smoothing import Smoothing
from robustcli.config.sections import DataConfig
from robustcli.config.spec import Spec
from robustcli.config.threats import threat_name
from robustcli.core.copies import duplicate
from robustcli.core.geometry import Ball, Norm
from robustcli.core.modes import frozen
from robustcli.core.random import RowRandom
from robustcli.core.untouched import as_before
from robustcli.data.check import check_labels, check_range
from robustcli.data.datasets import load_data
from robustcli.data.sampling import stored_by_class
from robustcli.data.split import MemorySplit, Split
from robustcli.errors import ConfigError, DataError, UnreliableError
from robustcli.evaluation.bound import Audit
from robustcli.evaluation.certificates.attacked import Attacked
from robustcli.evaluation.certificates.certifier import radii_of
from robustcli.evaluation.certificates.deterministic import Effort
from robustcli.evaluation.certificates.measured import Certification
from robustcli.evaluation.outside import callable_call
from robustcli.evaluation.plan import AttackCall, AuditPlan, EvalPlan, Search
from robustcli.evaluation.ready import ready
from robustcli.evaluation.result import Evaluation
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.evaluation.union import united
from robustcli.evaluation.worst import WorstPoints
from robustcli.foreign import staying
from robustcli.models.blackbox import LabelFunction, check_served, labels_only
from robustcli.models.contract.adapted import adapted
from robustcli.models.source import load_model
from robustcli.records.alarm import Alarm
from robustcli.records.certified import WRONG, Certificates
from robustcli.runtime.device import pick_device
from robustcli.runtime.precision import resolve

__all__ = [
    "Certificates",
    "Verdict",
    "assert_robust",
    "attack",
    "benchmark",
    "certify",
    "evaluate",
    "labels_only",
    "load_model",
]

#: An attack: a registered name, `autoattack`, `torchattacks:NAME`, or any callable atk(x, y) -> x_adv.
Attack = str | Callable[[Tensor, Tensor], Tensor]
#: A network, or a function of pixels that answers with labels alone.
Model = nn.Module | Callable[[Tensor], Any]
_THREATS: dict[str, tuple[Norm, float]] = {"linf": ("linf", 8 / 255), "l2": ("l2", 0.5), "l1": ("l1", 12.0)}


T = TypeVar("T", Tensor, nn.Module)


@dataclass(frozen=True)
class Verdict:
    """Result of `evaluate` over n samples.

    clean_acc, robust_acc: shares of all n, in [0, 1]. attack_success: share of the initially correct that was
    broken.
    survivors: bool [n]. stages: {attack name: bool [n] still right after it and all before it}.
    reliability: ok, suspect or invalid; alarms: why. passes_per_sample: {attack name: model passes per
    sample}.
    at_chance: one sentence where clean or robust accuracy is not surely above what one answer for all samples
    reaches; else "".
    audit: of version "rapid": how many survivors met short forms of what it leaves out, how many fell, and
    what that bounds; else None.
    threats: of a union of balls: {"linf:8/255": the verdict in it}; the rest is then of all balls together.
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
    audit: Audit | None = None
    at_chance: str = ""
    threats: Mapping[str, Verdict] = field(default_factory=dict)

    @classmethod
    def of(cls, result: Evaluation) -> Verdict:
        """From an evaluation."""
        numbers = (
            result.n,
            result.clean_acc,
            result.robust_acc,
            result.attack_success,
            result.survivors,
            result.stages,
        )
        found = (result.reliability, result.alarms, result.passes_per_sample, result.audit)
        threats = {name: cls.of(part) for name, part in result.parts.items()}
        return cls(*numbers, *found, result.at_chance, threats)


def _listed(attacks: Attack | Sequence[Attack]) -> list[Attack]:
    """One attack, or several, as a list."""
    return [attacks] if isinstance(attacks, str) or callable(attacks) else list(attacks)


def _calls(
    attacks: Attack | Sequence[Attack], norm: str, search: Search, params: dict[str, Any]
) -> list[AttackCall]:
    """Attack calls for names, ensembles and callables. Raises ValueError for what cannot be bound."""
    names = _listed(attacks)
    if params and (len(names) > 1 or not isinstance(names[0], str)):
        raise ValueError("parameters go with a single attack by name; use a config for several")
    calls: list[AttackCall] = []
    try:
        for name in names:
            if isinstance(name, str):
                calls += make_attacks([Spec(name=name, **params)], norm, "attack", search)
            else:
                calls.append(callable_call(name, getattr(name, "__name__", type(name).__name__)))
    except ConfigError as error:
        raise ValueError("; ".join(error.problems) or str(error)) from None
    return calls


def _audit(attacks: Attack | Sequence[Attack], norm: str, params: dict[str, Any]) -> AuditPlan | None:
    """How what these attacks leave standing is looked at once more."""
    return make_audit([Spec(name=name, **params) for name in _listed(attacks) if isinstance(name, str)], norm)


def _checked(
    model: Model, x: Tensor, y: Tensor, device: str
) -> tuple[nn.Module, Tensor, Tensor, torch.device]:
    """Classifier and data on the device, x in float32, after the checks that a loader does."""
    model, x, y, place = _placed(model, x, y, device)
    if len(x):
        model, classes = adapted(model, x[:1].to(place))
        check_labels(y, classes, where="y")
    return model, x, y, place


def _placed(
    model: Model, x: Tensor, y: Tensor, device: str
) -> tuple[nn.Module, Tensor, Tensor, torch.device]:
    """As `_checked`, without a look at what the model answers."""
    place = pick_device(device)
    model = _boxed(model, y)
    _check_kinds(model, x, y)
    check_range(x, where="x", dark=len(x) > 16)
    x, y = _usable(x).detach().float(), _usable(y).detach().long()
    return _usable(model).to(place), x, y, place


def _boxed(model: Model, y: Tensor) -> nn.Module:
    """A plain function as a black box of as many classes as y names; anything else as it is."""
    if isinstance(model, nn.Module) or not callable(model) or not isinstance(y, Tensor) or not y.numel():
        return cast(nn.Module, model)  # what is no module is refused by `_check_kinds`
    return LabelFunction(model, max(2, int(y.max()) + 1))


def _check_kinds(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Raises TypeError, DataError for what cannot be a model, images or labels."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}, not an nn.Module: its weights could not be held still; "
            "hand over the network itself, or an nn.Module whose forward calls it"
        )
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise TypeError(
            f"x and y are tensors, got {type(x).__name__} and {type(y).__name__}; "
            "torch.from_numpy converts arrays"
        )
    if x.dim() != 4 or len(x) != len(y):
        raise DataError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}",
            hint="x [n, C, H, W] float in [0, 1], y [n] int64",
        )
    if not x.is_floating_point():
        raise DataError(
            f"x is {str(x.dtype).removeprefix('torch.')}", where="x", hint="x.float() / 255", code="E-RANGE"
        )
    if y.is_floating_point() or y.dtype is torch.bool:
        raise DataError(
            f"y is {str(y.dtype).removeprefix('torch.')}",
            where="y",
            hint="class numbers, int64",
            code="E-LABEL",
        )


def _usable(thing: T) -> T:
    """A tensor or module as it is; a copy where it was made in inference mode, which no gradient can pass."""
    if isinstance(thing, Tensor):
        return thing.clone() if thing.is_inference() else thing
    tensors = (*thing.parameters(), *thing.buffers())
    inference = any(not is_lazy(tensor) and tensor.is_inference() for tensor in tensors)
    return duplicate(thing) if inference else thing


def _balls(norm: Norm, eps: float | Mapping[Norm, float], x: Tensor) -> list[Ball]:
    """The threats: one, or those of a union. Raises ValueError as `_ball`, and for a union of one ball."""
    if not isinstance(eps, Mapping):
        return [_ball(norm, eps, x)]
    if len(eps) < 2:
        raise ValueError(f"a union has two balls at least, got {dict(eps)}; write eps=8/255, norm='linf'")
    return [_ball(name, radius, x) for name, radius in eps.items()]


def _check_union(plans: Mapping[str, EvalPlan]) -> None:
    """Raises ValueError for an attack that does not go with several balls."""
    if len(plans) < 2:
        return
    for call in next(iter(plans.values())).attacks:
        if call.params.get("step_size") is not None or not call.bounded:
            why = (
                "has no ball"
                if not call.bounded
                else "has a step size, and several balls have none in common"
            )
            raise ValueError(f"{call.label} {why}")


def _ball(norm: Norm, eps: float, x: Tensor) -> Ball:
    """The threat to x [n, C, H, W]. Raises ValueError for a radius that no image needs, and for a union."""
    if isinstance(eps, Mapping):
        raise ValueError("several balls go with evaluate() and assert_robust() alone; give one eps and norm")
    if norm == "l0" and (what := beyond_pixels(eps, x.shape[1:])):
        raise ValueError(what)
    if norm == "linf" and eps > 1:
        raise ValueError(f"eps={eps} on the [0,1] scale; did you mean {eps:g}/255?")
    return Ball(norm, eps)


def _search(precision: str, device: torch.device) -> Search:
    """fp32 is the model itself; bf16 and auto (where native) search on a folded twin and confirm in fp32."""
    dtype = resolve(precision, device)
    low = dtype is not torch.float32
    return Search(dtype, fold_bn=low, channels_last=low, graph=low and device.type == "cuda")


@staying()
@torch.inference_mode(mode=False)
def evaluate(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Mapping[Norm, float],
    norm: Norm = "linf",
    attack: Attack | Sequence[Attack] = "pgd",
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    search: Literal["auto", "fp32", "bf16"] = "auto",
    target: str | int | None = None,
    checks: int | None = None,
    stop: Callable[[], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    **params: Any,
) -> Verdict:
    """Clean and robust accuracy; each success is confirmed by the model in fp32 and measured in float64.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K]; put normalisation inside. A plain function is a
            black box: pixels -> B class numbers in 0..max(y), see `labels_only`. A module is moved to the
            device, held in eval mode; what its forward writes into it is taken back. One logit an image,
            `{"logits": ...}`, an output with `.logits`, and weights in half or double precision are taken;
            docs/networks.md has the list.
        x: float [n, C, H, W] in [0, 1]; y: int64 [n].
        eps: radius in pixel units of [0, 1] (8/255, never 8); norm: linf, l2, l1 or l0, whose eps counts
            pixels. A union of balls is {"linf": 8/255, "l2": 0.5}: a sample stands when it stands in each;
            `threats` has the verdict in each.
        attack: a name, "autoattack" (with version="standard", "plus", "rand" or "rapid", and audit=64 for
            rapid), "torchattacks:NAME", any callable atk(x, y) -> x_adv, or several, run in order on the
            samples still standing; `params` (steps=20 …) go to a single one.
        seed: of all draws, keyed by the place in x. target: None, "random", "least-likely" or a class.
        search: precision of the search; verdicts are fp32 always.
        checks: samples on which the model is diagnosed first (masked gradients, randomness …); None = by
            cost, 0 = none.
        stop: called before every model pass; raises to interrupt. say: told one line at a time.

    Raises:
        ValueError: unknown attack or parameter, bad eps. DataError: x outside [0, 1], labels out of range.
        ConfigError (E-MODEL): the model cannot take x, or its answer is not logits; it shows how to wrap it.
    """
    _check_least("batch_size", batch_size)
    model, x, y, place = _checked(model, x, y, device)
    settings = _search(search, place)
    classes = tuple(map(str, range(int(y.max()) + 1 if len(y) else 1)))
    plans: dict[str, EvalPlan] = {}
    for ball in _balls(norm, eps, x):
        calls = _calls(attack, ball.norm, settings, params)
        check_served(model, calls, ball.norm, target=target)
        plans[threat_name(ball.norm, ball.eps)] = EvalPlan(
            ball,
            calls,
            seed,
            batch_size,
            target,
            settings,
            probe_size(calls, len(x), checks, len(classes), ball.norm),
            audit=_audit(attack, ball.norm, params),
        )
    _check_union(plans)
    split, positions = MemorySplit(x.cpu().float(), y.cpu(), classes), torch.arange(len(x))
    with as_before(model):
        results = {
            name: RobustEvaluation(model, plan, stop=stop, say=say).run(split, positions, place)
            for name, plan in plans.items()
        }
    return Verdict.of(united(results) if isinstance(eps, Mapping) else next(iter(results.values())))


@staying()
@torch.inference_mode(mode=False)
def certify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    method: str | None = None,
    radii: Sequence[float] | None = None,
    attack: Attack | Sequence[Attack] = "pgd",
    sigma: float | None = None,
    n: int = 100_000,
    n0: int = 100,
    alpha: float = 0.001,
    alpha_steps: int = 20,
    budget: float | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    stop: Callable[[], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    **params: Any,
) -> Certificates:
    """What is proven at each radius, beside what attacks break of the same samples.

    Args:
        model, x, y, eps, norm, seed, device, batch_size, stop, say: as for `evaluate`.
        method: ibp, crown-ibp, crown, alpha-crown, cascade or smoothing. None: smoothing where sigma is
            given; else cascade where every operation has bounds; else smoothing under l2.
        radii: in pixel units of [0, 1], eps is added; None = quarters of eps.
        attack, params: as for `evaluate`, inside the ball; of smoothing, on the smoothed classifier.
        sigma, n, n0, alpha: of smoothing; Gaussian noise under l2, uniform under l1; sigma None = 0.25.
        alpha_steps, budget: steps of alpha-crown, and seconds per image of the proof.

    Raises:
        UnreliableError (E-INVERSION): a sample is certified, and broken all the same.
        UsageError: E-BOUNDS for an operation without bounds, E-MODEL for a model that draws or rejects.
        Others as `evaluate`.
    """
    _check_least("batch_size", batch_size)
    model, x, y, place = _checked(model, x, y, device)
    if not len(x):
        raise DataError("no image to certify", where="x", code="E-EMPTY")
    ball = _ball(norm, eps, x)
    asked, settings = radii_of(ball, radii), _search("auto", place)
    watch = Watch(stop or (lambda: None), say=say)
    effort = Effort(alpha_steps=alpha_steps, budget=budget, batch_size=batch_size, seed=seed)
    noise = "uniform" if norm == "l1" else "gaussian"
    plan = Smoothing(sigma=0.25 if sigma is None else sigma, n0=n0, n=n, alpha=alpha, noise=noise, seed=seed)
    with as_before(model):
        check_model(model, ball, x[:8].to(place))
        with torch.no_grad(), frozen(model):
            classes = model(x[:1].to(place)).shape[1]
        shape = (x.shape[1], x.shape[2], x.shape[3])
        subject = Subject(model, ball, asked, shape, classes, place)
        proof = method_of(subject, SMOOTHING if method is None and sigma else method, plan, effort, watch)
        calls = _calls(attack, norm, settings, params)
        checks = 0 if proof.sampled else probe_size(calls, len(x), None, classes, norm)
        attacks = EvalPlan(ball, calls, seed, batch_size, search=settings, checks=checks)
        attacked = Attacked(
            proof.attacked, attacks, asked, confirm=proof.confirm, reset=proof.reset, stop=stop, say=say
        )
        split = MemorySplit(x.cpu().float(), y.cpu(), tuple(map(str, range(classes))))
        work = Certification(proof.certifier, attacked, eps, len(x), batch_size=batch_size, say=say)
        result = work.run(split, torch.arange(len(x)), place)
    found = Certificates(proof.certifier.name, norm, eps, asked, result.rows, result.alarms)
    if told := found.inversion():
        raise UnreliableError(told, hint=WRONG, code="E-INVERSION")
    return found


def _check_least(name: str, value: int | None) -> None:
    """Raises ValueError for a number below 1."""
    if value is not None and value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def benchmark(
    model: nn.Module,
    n_examples: int = 10_000,
    dataset: str = "cifar10",
    threat_model: str = "Linf",
    eps: float | None = None,
    *,
    version: Literal["standard", "plus", "rand", "rapid"] = "standard",
    root: str = "data",
    batch_size: int | None = None,
    device: str = "auto",
    seed: int = 0,
    search: Literal["auto", "fp32", "bf16"] = "auto",
    say: Callable[[str], None] = _warn,
) -> tuple[float, float]:
    """(clean accuracy, robust accuracy) under AutoAttack on n test examples, in [0, 1].

    The signature is RobustBench's, and so are the examples: the first n of the stored test split. Where the
    images are stored class by class the first n would be a few classes; then a fixed sample is taken, every
    class by its share, and `say` is told. RobustBench's own 5,000 of ImageNet are another such sample.

    Args:
        model: pixels in [0, 1] -> logits. n_examples: how many.
        dataset: a data set of ours (cifar10, cifar100, mnist, digits, folder:PATH, npz:PATH …); nothing is
            downloaded.
        threat_model: Linf, L2 or L1. eps: radius in pixel units; None = 8/255, 0.5 or 12.
        version: which AutoAttack. say: told of alarms, one line each (a warning by default); a number with
            alarms must not be quoted without them.

    Raises:
        ValueError: unknown threat model. DataError: the data set is not on this machine.
    """
    if threat_model.lower() not in _THREATS:
        raise ValueError(f"unknown threat_model {threat_model!r}; known: Linf, L2, L1")
    _check_least("n_examples", n_examples)
    norm, usual = _THREATS[threat_model.lower()]
    data = load_data(DataConfig(name=dataset, root=root), parts=("test",), whole=lambda digest: True)
    split: Split = split_of(data, "test")
    positions = _examples(split, n_examples, say, dataset)
    batches = list(split.stream(list(positions.split(1024)), torch.device("cpu")))
    x, y = torch.cat([x for x, _, _ in batches]), torch.cat([y for _, y, _ in batches])
    shared: dict[str, Any] = {
        "seed": seed,
        "device": device,
        "batch_size": batch_size,
        "search": search,
        "say": say,
    }
    verdict = evaluate(
        model,
        x,
        y,
        eps=usual if eps is None else eps,
        norm=norm,
        attack="autoattack",
        version=version,
        **shared,
    )
    for alarm in verdict.alarms:
        say(f"{alarm.level}: {alarm.name}: {alarm.evidence}; {alarm.remedy}")
    return verdict.clean_acc, verdict.robust_acc


def _examples(split: Split, n: int, say: Callable[[str], None], dataset: str) -> Tensor:
    """Positions of the first n images, or of a fixed sample where they are stored class by class."""
    if n >= len(split) or not stored_by_class(split.labels):
        return choose(split, n=None, first=n, seed=0)
    other = "; RobustBench's own 5,000 are another sample" if dataset == "imagenet" else ""
    say(f"the images are stored class by class: a fixed sample of {n}, every class by its share{other}")
    return choose(split, n=n, first=None, seed=0)


def _shown(eps: float | Mapping[Norm, float]) -> str:
    """A radius in an error, or those of a union."""
    if not isinstance(eps, Mapping):
        return f"{eps:.4g}"
    return ", ".join(f"{radius:.4g} ({norm})" for norm, radius in eps.items())


def assert_robust(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Mapping[Norm, float],
    at_least: float,
    attack: Attack | Sequence[Attack] = "autoattack",
    **more: Any,
) -> Verdict:
    """For pytest: the verdict, when robust accuracy >= at_least and no alarm is raised.

    Arguments as for `evaluate`.

    With attack="autoattack" the version is "rapid" unless another is given.

    Raises:
        AssertionError: robust accuracy is lower (it names the counts and the attack that broke most), or the
            evaluation is not reliable.
        ValueError: at_least outside [0, 1].
    """
    if not 0 <= at_least <= 1:
        raise ValueError(f"at_least is a fraction in [0, 1], got {at_least}")
    if attack == "autoattack":
        more = {"version": "rapid", **more}
    verdict = evaluate(model, x, y, eps=eps, attack=attack, **more)
    if verdict.reliability != "ok":
        raise AssertionError(
            f"the evaluation is {verdict.reliability}: "
            + "; ".join(f"{a.name}: {a.evidence}" for a in verdict.alarms)
        )
    standing = int(verdict.survivors.sum())
    if verdict.robust_acc < at_least:
        left = ", ".join(f"{int(kept.sum())} after {label}" for label, kept in verdict.stages.items())
        raise AssertionError(
            f"robust accuracy {standing}/{verdict.n} = {verdict.robust_acc:.3f} "
            f"is below {at_least} at eps {_shown(eps)} ({left})"
        )
    return verdict


@staying()
@torch.inference_mode(mode=False)
def attack(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    name: str = "pgd",
    eps: float,
    norm: Norm = "linf",
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 256,
    search: Literal["auto", "fp32", "bf16"] = "auto",
    stop: Callable[[], None] | None = None,
    **params: Any,
) -> Tensor:
    """x_adv [n, C, H, W] inside the ball around x: the worst point met of each sample.

    All samples are attacked, also misclassified ones. Each point that succeeds does so with the model in
    fp32, whatever the search ran on.

    Arguments as for `evaluate`; `params` (steps=20, step_size=2/255 …) go to the attack. The result lies on
    x's device in float32. A minimal-norm attack (fab, fmn, cw, deepfool) gives its closest success, wherever
    that lies, and x where it found none.
    No success is claimed: re-predict, or call `evaluate`.

    What is searched on is a copy of the model with BatchNorm folded. It is kept while the model lives and is
    as it was, so later calls begin at once; after a change of weights it is brought up to date.

    Raises:
        ValueError: unknown attack or parameter, bad eps. DataError: x outside [0, 1], labels out of range.
        ConfigError (E-MODEL): the model cannot take x, or its answer is not logits; it shows how to wrap it.
    """
    _check_least("batch_size", batch_size)
    home = x.device
    model, x, y, place = _placed(model, x, y, device)
    settings = Search(resolve(search, place), graph=place.type == "cuda")
    ball = _ball(norm, eps, x)
    calls = _calls(name, norm, settings, params)
    if len(calls) > 1:
        raise ValueError(f"{name!r} is a list of attacks: evaluate() runs it")
    check_served(model, calls, norm)
    if not len(x):
        return x.clone()
    found = []
    with frozen(model), ready(model) as kept, as_before(model, kept.copies):
        classifier, classes = kept.adapted(model, x[:1].to(place))
        check_labels(y, classes, where="y")
        with frozen(classifier):
            twin = kept.twin(calls[0].searching(settings), classifier, x[:batch_size].to(place))
            worst = WorstPoints(calls[0], classifier, twin, ball, stop)
            for rows in torch.arange(len(x)).split(batch_size):
                rng = RowRandom(seed, "start", rows.to(place))
                found.append(worst(x[rows].to(place), y[rows].to(place), rng).to(home))
    return torch.cat(found)
