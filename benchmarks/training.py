"""TRADES-10 and PGD-10 + AWP training steps: ours against plain loops written from the papers' formulas.

Both are interleaved in one run.

    python benchmarks/training.py --out benchmarks/results/training_cpu.json
    python benchmarks/training.py --model preact_resnet18 --batch 16

Without --model they train the small CNN of configs/train/cifar10_cpu.yaml, in batches of 64.

The plain loops are what published scripts do: fp32, contiguous memory, the model itself in eval mode under
attack. TRADES computes f(x) anew for every attack step and twice in the loss (autograd.grad: 39 forward-
equivalents an image, with loss.backward() more). PGD forms weight gradients in every attack step by
loss.backward() (33). AWP takes a deep copy as its proxy and goes through dictionaries by name.

Ours are the steps that `robustcli train` makes. Before anything is timed, both compute a step in fp32 from
the same weights, images and start noise. Their losses must agree to 1e-4 of their size after three attack
steps in the layout of the plain loops, and to 1e-3 after one in the layout that is timed, which rounds
differently. (More steps would compare rounding: a gradient near 0 may change its sign, and after ten steps
the same method is at another point of the ball. For the same reason the noise of TRADES is 0.03 in the check;
at 0.001 the gradient of its KL is hardly more than rounding.)
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from plain_loops import BETA, EPS, GAMMA, STEP, PlainAWP, plain_awp, plain_trades
from torch import Tensor, nn

from robustcli.assembly.timing import interleaved
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.evaluation.plan import Search
from robustcli.models.build import build_model
from robustcli.models.info import ModelInfo
from robustcli.objectives.madry import madry
from robustcli.objectives.trades import trades
from robustcli.runtime.precision import bf16_native
from robustcli.training.hooks.awp import awp
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

LR, SEED = 0.01, 0
MODELS: dict[str, dict[str, Any]] = {
    "small_cnn": {"widths": (48, 48, 96, 96, 192, 192, 192), "strides": (1, 1, 2, 1, 2, 1, 2)},
    "preact_resnet18": {},
    "tiny": {"widths": (4, 6), "strides": (1, 2)},
}
BACKWARD = "loss.backward()"
LOOPS = {
    "TRADES": ("autograd.grad", BACKWARD),
    "AWP": (BACKWARD,),
}  # how the plain loops ask for the attack's gradient
AGREE, NOISE, CHECKED_NOISE = (
    1e-4,
    0.001,
    0.03,
)  # largest difference of losses, relative; TRADES' start noise, and that of the check


def network(name: str, device: torch.device, size: int) -> nn.Module:
    """The model after three batches of training (BatchNorm has real statistics); always the same weights."""
    info = ModelInfo(
        num_classes=10, channels=3, size=size, mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262)
    )
    model = build_model("small_cnn" if name == "tiny" else name, MODELS[name], info, seed=SEED).train()
    with torch.no_grad():
        for k in range(3):
            model(torch.rand(32, 3, size, size, generator=torch.Generator().manual_seed(k)))
    return model.to(device)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)


Work = Callable[[], Tensor]


def ours(
    method: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    dtype: torch.dtype,
    noise: float = NOISE,
    fast: bool = True,
) -> Work:
    """The step of `robustcli train` with the same numbers; without `fast` in the plain loops' layout."""
    start: dict[str, Any] = {"start": "gaussian", "start_scale": noise} if method == "TRADES" else {}

    def attack(oracle: Oracle, x: Tensor, ball: Ball) -> Tensor:
        return pgd(oracle, x, ball, steps=steps, step_size=STEP, **start)

    model = model.to(memory_format=torch.channels_last) if fast else model
    objective, inner = (partial(trades, beta=BETA), "kl") if method == "TRADES" else (madry, "ce")
    hooks = [awp(model, gamma=GAMMA)] if method == "AWP" else []
    layout = {"dtype": dtype, "search": Search(dtype) if fast else Search().exact(), "channels_last": fast}
    ball = Ball("linf", EPS)
    step = MinMax(StepSettings(model, objective, inner, attack, ball, sgd(model), hooks=hooks, **layout))
    ids = torch.arange(len(x), device=x.device)
    return lambda: step(x, y, ids, seed=SEED, epoch=0).total.detach()


def plain(
    method: str, word: str, model: nn.Module, x: Tensor, y: Tensor, steps: int, noise: float = NOISE
) -> Work:
    """The plain loop from the start noise that ours draws."""
    rng, ball = (
        RowRandom(SEED, "start", torch.arange(len(x), device=x.device), epoch=0).restart(0),
        Ball("linf", EPS),
    )
    if method == "TRADES":
        start = ball.start(x, "gaussian", rng, scale=noise) - x
        return partial(plain_trades, model, sgd(model), x, y, start, steps, word == BACKWARD)
    return partial(
        plain_awp, model, sgd(model), x, y, ball.start(x, "uniform", rng) - x, steps, PlainAWP(model)
    )


def contenders(make: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int) -> dict[str, dict[str, Work]]:
    """method -> name -> one training step that returns its loss; each has a model of its own."""
    low = torch.bfloat16 if bf16_native(x.device) else torch.float32
    found: dict[str, dict[str, Work]] = {}
    for method, words in LOOPS.items():
        mine = {
            f"robustcli {str(dtype).removeprefix('torch.')}": ours(method, make(), x, y, steps, dtype)
            for dtype in dict.fromkeys((torch.float32, low))
        }
        found[method] = {
            **mine,
            **{f"plain fp32, {word}": plain(method, word, make(), x, y, steps) for word in words},
        }
    return found


def agree(make: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int) -> dict[str, float]:
    """Largest |difference| of the loss of one step between ours and the plain loops, all in fp32.

    Raises SystemExit above 1e-4 of the loss, 1e-3 where layouts differ.
    """
    worst: dict[str, float] = {}
    for method, words in LOOPS.items():
        for count, fast, limit in ((min(steps, 3), False, AGREE), (1, True, 10 * AGREE)):
            mine = float(ours(method, make(), x, y, count, torch.float32, CHECKED_NOISE, fast)())
            others = {
                word: float(plain(method, word, make(), x, y, count, CHECKED_NOISE)()) for word in words
            }
            apart = max(abs(mine - other) for other in others.values())
            layout = "layout that is timed" if fast else "layout of the plain loops"
            name = f"{method}, {count} attack steps, {layout}"
            print(f"{name}: loss {mine:.6f}, the plain loops at most {apart:.1e} away")
            if not apart <= limit * abs(mine):
                raise SystemExit(f"{name}: the steps do not compute the same loss: {mine} and {others}")
            worst[name] = apart
    return worst


def report(seconds: dict[str, dict[str, list[float]]], batch: int) -> dict[str, list[float]]:
    """Two markdown tables; the ratios of images/s, round by round."""
    print("\n| step | images/s (median) |\n| --- | ---: |")
    ratios = {}
    for method, times in seconds.items():
        for name, values in times.items():
            print(f"| {method}: {name} | {batch / statistics.median(values):.1f} |")
        for mine in (name for name in times if name.startswith("robustcli")):
            for other in (name for name in times if name.startswith("plain")):
                ratios[f"{method}: {mine} / {other}"] = [
                    b / a for a, b in zip(times[mine], times[other], strict=True)
                ]
    print("\n| ratio of images/s | median | min | max |\n| --- | ---: | ---: | ---: |")
    for name, values in ratios.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    return ratios


def main(argv: list[str] | None = None) -> None:
    """Check, measure, print; write JSON with --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), default="small_cnn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(SEED)
    x, y = (
        torch.rand(options.batch, 3, options.size, options.size, generator=generator).to(device),
        torch.arange(options.batch, device=device) % 10,
    )
    make = partial(network, options.model, device, options.size)
    apart = agree(make, x, y, options.steps)
    jobs = contenders(make, x, y, options.steps)
    flat = {f"{method}\n{name}": work for method, named in jobs.items() for name, work in named.items()}
    times = interleaved(flat, device, options.rounds)
    seconds = {method: {name: times[f"{method}\n{name}"] for name in named} for method, named in jobs.items()}
    about = f"{options.model}, batch {options.batch}, {options.steps} attack steps, {options.rounds} rounds"
    print(f"\n{about}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    ratios = report(seconds, options.batch)
    if options.out:
        record = {
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            **vars(options),
        }
        document = {
            **{k: str(v) for k, v in record.items()},
            "loss_difference": apart,
            "seconds": seconds,
            "ratios": ratios,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
