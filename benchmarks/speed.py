"""Attack and training-step throughput against torchattacks and a plain fp32 loop, interleaved in one run.

    python benchmarks/speed.py                       # ResNet-18, batch 32, 10 steps
    pip install --no-deps torchattacks requests      # the peer; without it only the plain loop is compared

Each round runs every contender once, in turn, so that a machine whose speed drifts slows all of them. Ratios
are taken round by round and their median is printed with minimum and maximum. All have the same model, data,
eps, step size and number of steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.evaluation.plan import Search
from robustcli.models.build import build_model
from robustcli.models.info import ModelInfo
from robustcli.objectives.madry import madry
from robustcli.runtime.precision import bf16_native
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

EPS, STEP = 8 / 255, 2 / 255


def network(device: torch.device, arch: str = "resnet18") -> nn.Module:
    """A network after three training batches, so that its BatchNorm has real statistics."""
    info = ModelInfo(
        num_classes=10, channels=3, size=32, mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262)
    )
    model = build_model(arch, {}, info, seed=0).to(device).train()
    with torch.no_grad():
        for k in range(3):
            model(torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(k)).to(device))
    return model


def plain_pgd(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> torch.Tensor:
    """The loop of many paper scripts: `loss.backward()` also forms the weight gradients; fp32, contiguous."""
    x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        F.cross_entropy(model(x_adv), y).backward()
        x_adv = x_adv + STEP * x_adv.grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv.detach()


def plain_step(
    attack: Callable[[nn.Module], torch.Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    y: torch.Tensor,
) -> None:
    """Attack in eval mode, then one fp32 SGD step."""
    model.eval()
    x_adv = attack(model)
    model.train()
    optimizer.zero_grad()
    F.cross_entropy(model(x_adv), y).backward()
    optimizer.step()


def contenders(
    device: torch.device, batch: int, steps: int, arch: str = "resnet18"
) -> dict[str, Callable[[], object]]:
    """name -> one unit of work on `batch` images. Ours run as on each device by default: graphs on CUDA."""
    graph = device.type == "cuda"
    x, y = torch.rand(batch, 3, 32, 32, device=device), torch.arange(batch, device=device) % 10
    ids, ball = torch.arange(batch, device=device), Ball("linf", EPS)
    jobs: dict[str, Callable[[], object]] = {}

    def ours(dtype: torch.dtype) -> Callable[[], object]:
        model = network(device, arch).eval()
        twin = SearchTwin(model, dtype=dtype, graph=graph)

        def work() -> object:
            with frozen(model):
                return pgd(
                    Oracle(twin, x, Criterion(y), rng=RowRandom(0, "start", ids)),
                    x,
                    ball,
                    steps=steps,
                    step_size=STEP,
                )

        return work

    def our_step(dtype: torch.dtype) -> Callable[[], object]:
        model = network(device, arch).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

        def attack(oracle: Oracle, x: torch.Tensor, ball: Ball) -> torch.Tensor:
            return pgd(oracle, x, ball, steps=steps, step_size=STEP)

        step = MinMax(
            StepSettings(
                model, madry, "ce", attack, ball, optimizer, dtype=dtype, search=Search(dtype, graph=graph)
            )
        )
        return lambda: step(x, y, ids, seed=0, epoch=0)

    low = torch.bfloat16 if bf16_native(device) else torch.float32
    jobs["attack: robustcli fp32"] = ours(torch.float32)
    jobs[f"attack: robustcli {str(low)[6:]}"] = ours(low)
    plain = network(device, arch).eval()
    jobs["attack: plain loop fp32"] = lambda: plain_pgd(plain, x, y, steps)
    jobs[f"step: robustcli {str(low)[6:]}"] = our_step(low)
    trained = network(device, arch)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    jobs["step: plain loop fp32"] = lambda: plain_step(
        lambda m: plain_pgd(m, x, y, steps), trained, optimizer, y
    )
    try:
        import torchattacks
    except ImportError:
        print("torchattacks is not installed: only the plain loop is compared")
        return jobs
    peer_model = network(device, arch).eval()
    peer = torchattacks.PGD(peer_model, eps=EPS, alpha=STEP, steps=steps)
    jobs["attack: torchattacks fp32"] = lambda: peer(x, y)
    around = network(device, arch)
    around_optimizer = torch.optim.SGD(around.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    inner = torchattacks.PGD(around, eps=EPS, alpha=STEP, steps=steps)
    jobs["step: torchattacks fp32"] = lambda: plain_step(lambda m: inner(x, y), around, around_optimizer, y)
    return jobs


def main() -> None:
    """Print a markdown table of images/s and the ratios; write them as JSON with --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    jobs = contenders(device, options.batch, options.steps)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_number in range(options.rounds + 1):
        for name, work in jobs.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    print(
        f"ResNet-18, batch {options.batch}, {options.steps} steps, {options.rounds} rounds, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| work | images/s (median) |\n| --- | ---: |")
    for name, times in seconds.items():
        print(f"| {name} | {options.batch / statistics.median(times):.1f} |")
    print("\n| ratio of images/s | median | min | max |\n| --- | ---: | ---: | ---: |")
    ratios = {}
    for mine in (name for name in jobs if "robustcli" in name):
        for other in (
            name for name in jobs if "robustcli" not in name and name.split(":")[0] == mine.split(":")[0]
        ):
            values = [b / a for a, b in zip(seconds[mine], seconds[other], strict=True)]
            ratios[f"{mine} / {other.split(': ')[1]}"] = values
            print(
                f"| {mine} / {other.split(': ')[1]} | {statistics.median(values):.2f} "
                f"| {min(values):.2f} | {max(values):.2f} |"
            )
    if options.out:
        record = {
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            **vars(options),
        }
        options.out.write_text(
            json.dumps(
                {**{k: str(v) for k, v in record.items()}, "seconds": seconds, "ratios": ratios}, indent=1
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
