"""`--dry-run`: what a run will cost, before it costs anything. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from robustcli import registry
from robustcli.assembly.attacks import make_attacks, make_search
from robustcli.assembly.binding import bound
from robustcli.assembly.method import method_of
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting
from robustcli.assembly.speed import processes_of, seconds_per_forward, shared_seconds
from robustcli.assembly.timing import Precision, Repeat
from robustcli.config.spec import Spec
from robustcli.core.modes import frozen, undisturbed, watched
from robustcli.core.types import declares_draws, passes_of
from robustcli.evaluation.alarms import differing
from robustcli.evaluation.draws import spent
from robustcli.evaluation.plan import JUDGE_DRAWS, AttackCall
from robustcli.evaluation.sizing import shard_size
from robustcli.models.blackbox import BlackBox
from robustcli.models.flops import flops
from robustcli.models.size import count_parameters
from robustcli.reporting.cells import format_eps
from robustcli.reporting.tables import Table
from robustcli.runtime.precision import resolve
from robustcli.terminal.console import Console

_ATTACK_STEP = 2  # passes: forward and backward


def passes_per_image(setting: Setting) -> int:
    """Model passes of one training step on one image: attack, objective, regularisers and hooks.

    A curriculum is taken at its end, with all steps of the attack.
    """
    config, method = setting.config, method_of(setting.config)
    objective = registry.objectives.get(config.objective.name).facts
    own = (objective.passes + objective.per_rival * (setting.classes - 1)) * method.copies
    outer = own + sum(_added(spec) for spec in config.regularizers)
    # The pass at the clean point belongs to the attack: a hook that repeats the loss does not repeat it.
    once = own - method.compares_with_clean
    outer += once * sum(registry.hooks.get(spec.name).facts.extra_losses for spec in config.train.hooks)
    if not method.step_attacks:
        step, parameters = bound(registry.steps, config.train.step, "train.step")
        return outer * int(parameters.get("replays", registry.parameters(step)["replays"].default))
    if method.inner is None:
        return outer
    saved = 1 + registry.attacks.get(method.adversary.name).facts.kept  # no judge looks at the last point
    balls = setting.union or (setting.ball,)
    attacks = [method.adversary.passes(setting.classes, ball.norm) - saved for ball in balls]
    attack, times = _in_union(attacks, config.train.union)
    # The clean answer that the attack compares with is asked for once, and not for each ball.
    again = (times - 1) * (outer - method.compares_with_clean * method.copies)
    return outer + again + attack * method.copies


def _in_union(attacks: Sequence[int], rule: str) -> tuple[int, int]:
    """(passes of the attacks in all balls, how often a step descends); attacks: the passes in each ball.

    Under "random" it is the mean over the balls, rounded. Under "max" the loss is looked at in each ball.
    """
    if len(attacks) == 1:
        return attacks[0], 1
    if rule == "random":
        return round(sum(attacks) / len(attacks)), 1
    if rule == "max":
        return sum(attacks) + len(attacks), 1
    return sum(attacks), len(attacks)


def held_per_image(setting: Setting) -> int:
    """Activations of one image that a training step holds, in outputs of all layers."""
    objective = registry.objectives.get(setting.config.objective.name).facts
    rivals = objective.held_per_rival * (setting.classes - 1)
    return (objective.held + rivals) * method_of(setting.config).copies


def _added(spec: Spec) -> int:
    """Passes that one regulariser adds."""
    return registry.regularizers.get(spec.name).facts.passes


def activation_bytes(model: nn.Module, setting: Setting, batch: int) -> int:
    """Bytes of the outputs of all layers for `batch` images: about what a backward pass keeps."""
    total = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, torch.Tensor) and not list(module.children()):
            total += output.numel() * output.element_size()

    with watched(model, [module.register_forward_hook(count) for module in model.modules()]):
        model(torch.zeros(1, *setting.data.shape, device=setting.device))
    return total * batch


def _memory(model: nn.Module, setting: Setting, batch: int, copies: int) -> int:
    """Bytes of `copies` of the weights, and of the activations of `batch` images."""
    if isinstance(model, BlackBox):  # it runs elsewhere, and each image that it sees is a query
        return 0
    size: int = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return copies * size + activation_bytes(model, setting, batch)


def plan_head(setting: Setting, model: nn.Module, forward: float) -> dict[str, Any]:
    """How each plan begins: the model, and the FLOPs of one of its forward passes."""
    return {
        "model": setting.config.model.label,
        "parameters": count_parameters(model),
        "gflop_per_forward": forward / 1e9,
    }


def plan_ball(setting: Setting) -> str:
    """The norm and the radius, as a plan shows them; of a union, those of all balls."""
    return " and ".join(
        f"{ball.norm} {format_eps(ball.eps, ball.norm)}" for ball in setting.union or [setting.ball]
    )


def training_plan(setting: Setting, model: nn.Module, console: Console) -> dict[str, Any]:
    """Parameters, passes, FLOPs, memory and time of the configured training."""
    config, data = setting.config, setting.data
    train = config.train
    _, objective = bound(registry.objectives, config.objective, "objective")
    for spec, kind in ((train.optimizer, registry.optimizers), (train.schedule, registry.schedules)):
        bound(kind, spec, "train")
    passes = passes_per_image(setting)
    batch = min(train.batch_size, len(data.train))
    per_epoch = len(data.train) // batch
    dtype = resolve(config.precision, setting.device, console.warn)
    forward = seconds_per_forward(setting, model, min(batch, 32), dtype)
    per_step = forward * passes * batch
    if train.steps is not None:
        steps = train.steps
    elif train.minutes is not None:
        steps = int(60 * float(train.minutes) / per_step)
    else:
        steps = round(float(train.epochs if train.epochs is not None else 10) * per_epoch)
    one = flops(model, data.shape)
    return show_plan(
        console,
        {
            **plan_head(setting, model, one),
            "data": data.name,
            "image_size": data.image_size,
            "train_images": len(data.train),
            "val_images": len(data.val),
            "ball": plan_ball(setting),
            "objective": config.objective.name,
            "steps": steps,
            "batch_size": batch,
            "passes_per_image": passes,
            "total_tflop": one * passes * batch * steps / 1e12,
            "memory_bytes": _memory(model, setting, batch * held_per_image(setting), 4),
            "seconds": per_step * steps,
            "precision": "tf32" if config.precision == "tf32" else str(dtype).removeprefix("torch."),
            "device": str(setting.device),
        },
    )


def bench_plan(
    setting: Setting, model: nn.Module, kinds: Sequence[Precision], repeat: Repeat, console: Console
) -> dict[str, Any]:
    """What a benchmark measures, and about how long it takes: each work in each precision, repeated."""
    config, data = setting.config, setting.data
    batch, passes = min(config.train.batch_size, len(data.train)), passes_per_image(setting)
    copies = method_of(config).copies
    forward = seconds_per_forward(setting, model, min(batch, 32), torch.float32)
    repetitions = repeat.least + repeat.warm
    attack = _ATTACK_STEP * copies
    works = [attack, attack, passes]  # on the twin, on the model, a training step
    seconds = sum(max(repeat.budget, forward * batch * work * repetitions) for work in works) * len(kinds)
    return show_plan(
        console,
        {
            **plan_head(setting, model, flops(model, data.shape)),
            "data": data.name,
            "ball": plan_ball(setting),
            "objective": config.objective.name,
            "adversary": config.adversary.name,
            "batch_size": batch,
            "passes_per_image": passes,
            "memory_bytes": _memory(model, setting, batch * held_per_image(setting), 4),
            "seconds": seconds + forward * batch * passes * (repeat.least + 1),
            "precision": ", ".join(kind.name for kind in kinds),
            "device": str(setting.device),
        },
    )


def evaluation_plan(
    setting: Setting, model: nn.Module, specs: Sequence[Spec], console: Console, *, processes: int = 1
) -> dict[str, Any]:
    """Images, passes, FLOPs, memory and time of the configured evaluation.

    It is an upper bound: samples that fall leave early. Passes are those of networks: the answer of a guarded
    model may take several.

    processes: that share the samples. Memory is that of each; none of the time is what they need to start.
    """
    config = setting.config
    n = len(samples(setting)[1])
    search, each = make_search(config, setting.device, console.warn), passes_of(model)
    randomised, answers = draws_anew(model, setting), 0
    for ball in setting.union or (setting.ball,):
        calls = make_attacks(specs, ball.norm)
        passes = spent(calls, setting.classes, ball.norm, randomised=randomised, draws=search.draws)
        # The clean point, and for each attack the judge's look at its last point.
        answers += (JUDGE_DRAWS if randomised else 1) * (1 + len(calls)) + sum(passes)
    batch = min(config.eval.batch_size or 256, -(-n // processes))
    one = flops(model, setting.data.shape)
    return show_plan(
        console,
        {
            **plan_head(setting, model, one),
            "data": f"{setting.data.name} {config.eval.split}",
            "image_size": setting.data.image_size,
            "n": n,
            "ball": plan_ball(setting),
            "attacks": ", ".join(call.label for call in calls),
            **({"draws": _averaging(calls, passes, setting)} if randomised else {}),
            **({"passes_per_answer": each} if each > 1 else {}),
            "passes_per_image": each * answers,
            "total_tflop": one * answers * n / 1e12,
            "memory_bytes": _memory(model, setting, batch, 2),
            "seconds": shared_seconds(setting, model, min(batch, 32), search.dtype, processes) * answers * n,
            **processes_of(setting, processes, n, config.eval.shard_size or shard_size(n)),
            "precision": str(search.dtype).removeprefix("torch."),
            "device": str(setting.device),
        },
    )


def draws_anew(model: nn.Module, setting: Setting) -> bool:
    """Whether each pass of a model draws anew: it says so, or answers twice differently to random pixels."""
    if declares_draws(model):
        return True
    x = torch.rand(8, *setting.data.shape, device=setting.device)
    with undisturbed(model), frozen(model), torch.no_grad():
        return differing(model(x), model(x), 1e-4) > 0


def _averaging(calls: Sequence[AttackCall], passes: Sequence[int], setting: Setting) -> str:
    """``apgd-ce 20, fab-t 3; judged by 25``: draws behind each answer to an attack, and behind a verdict."""
    single = [call.passes(setting.classes, setting.ball.norm) for call in calls]
    each = [
        f"{call.label} {total // max(1, one) * ((call.search and call.search.draws) or 1)}"
        for call, total, one in zip(calls, passes, single, strict=True)
    ]
    return f"{', '.join(each)}; judged by {JUDGE_DRAWS}"


def show_plan(console: Console, plan: dict[str, Any], *, bounded: bool = True) -> dict[str, Any]:
    """Shows the plan as a table of two columns, each number with its unit; returns the document of --dry-run.

    The costs of an evaluation are upper bounds and are shown as "at most".

    bounded: whether the time is one of these, and not that of a few images.
    """
    measures = "n" in plan
    most = "at most " if measures else ""
    longest = most if bounded else ""
    shown: dict[str, tuple[str, Callable[[Any], str]]] = {
        "parameters": ("parameters", lambda v: f"{v:,}"),
        "gflop_per_forward": ("forward pass", lambda v: f"{_flop(1e9 * v)} an image"),
        "image_size": ("image size", str),
        "train_images": ("training images", lambda v: f"{v:,}"),
        "val_images": ("validation images", lambda v: f"{v:,}"),
        "n": ("images", lambda v: f"{v:,}"),
        "draws": ("draws an answer", str),
        "steps": ("steps", lambda v: f"{v:,}"),
        "batch_size": ("batch size", lambda v: f"{v:,} images"),
        "passes_per_answer": ("passes an answer", lambda v: f"{v:,}, by its networks and defences"),
        "passes_per_image": (
            "passes an image",
            lambda v: f"{most}{v:,}" if measures else f"{v:,} in each step",
        ),
        "total_tflop": ("work in all", lambda v: f"{most}{_flop(1e12 * v)}"),
        "memory_bytes": ("memory", lambda v: f"about {max(1, round(v / 2**20)):,} MiB"),
        "seconds": ("time", lambda v: f"{longest}about {_time(v)}"),
        "precision": ("precision of the search" if measures else "precision", str),
    }
    rows = [
        (label, show(value)) for key, value in plan.items() for label, show in [shown.get(key, (key, str))]
    ]
    console.table(Table("plan (dry run: nothing is written)", ["item", "value"], [list(row) for row in rows]))
    return {"plan": plan, "run": None, "seconds": 0.0}


def _flop(amount: float) -> str:
    """2.399 MFLOP, 1.879 TFLOP."""
    unit, name = next(
        ((unit, name) for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")) if amount >= unit),
        (1e3, "k"),
    )
    return f"{amount / unit:.4g} {name}FLOP"


def _time(seconds: float) -> str:
    """0.4 s, 17 s, 3.0 min, 5.2 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{max(seconds, 0.1):.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
