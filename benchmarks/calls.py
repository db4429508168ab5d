"""`robustcli.attack` in a loop over batches, against torchattacks' PGD, interleaved in one run.

    python benchmarks/calls.py                       # small CIFAR network, batch 32, 5 and 10 steps
    python benchmarks/calls.py --model resnet18
    pip install --no-deps torchattacks requests      # the peer, which this comparison needs

Same model, batches, eps, step size and number of steps. Each round calls every contender once, in turn, on
a batch of its own; ratios are taken round by round, in wall time and in CPU time. The second half of each
batch is labelled by the model, the first half at random. "weights moved": the weights change before each
call, as in adversarial training, and the change is not timed. --peer-path is a folder that holds
torchattacks, where it is not installed beside robustcli.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from speed import EPS, STEP, network
from torch import Tensor, nn

import robustcli
from robustcli.runtime.precision import bf16_native

Work = Callable[[Tensor, Tensor], object]


def small() -> nn.Module:
    """Five convolutions with BatchNorm and ReLU, 3x32x32 -> 10, after three batches."""

    def layer(wide: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(wide, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    torch.manual_seed(0)
    net = nn.Sequential(
        *(layer(3, 32), layer(32, 64), nn.MaxPool2d(2), layer(64, 64), layer(64, 128), nn.MaxPool2d(2)),
        *(layer(128, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(32, 3, 32, 32))
    return net.eval()


def contenders(make: Callable[[], nn.Module], steps: int) -> dict[str, tuple[nn.Module, Work]]:
    """name -> (its model, its call); the peer comes first."""
    import torchattacks

    def called(net: nn.Module, search: str) -> Work:
        return lambda x, y: robustcli.attack(
            net, x, y, eps=EPS, steps=steps, step_size=STEP, search=search, device=str(x.device)
        )

    peer = make()
    low = "bf16" if bf16_native(torch.device("cpu")) else "fp32"
    jobs = {"torchattacks": (peer, torchattacks.PGD(peer, eps=EPS, alpha=STEP, steps=steps))}
    for name, search in (("fp32", "fp32"), (f"auto ({low} here)", "auto"), ("auto, weights moved", "auto")):
        net = make()
        jobs[f"robustcli.attack, {name}"] = net, called(net, search)
    return jobs


def timed(jobs: dict[str, tuple[nn.Module, Work]], rounds: int, batch: int) -> dict[str, list[list[float]]]:
    """name -> [wall seconds, CPU seconds] of each round but the first."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in jobs}
    generator = torch.Generator().manual_seed(0)
    for number in range(rounds + 1):
        x = torch.rand(batch, 3, 32, 32, generator=generator)
        y = torch.randint(0, 10, (batch,), generator=generator)
        for name, (net, work) in jobs.items():
            with torch.no_grad():
                y[batch // 2 :] = net(x[batch // 2 :]).argmax(1)
                if "moved" in name:
                    for parameter in net.parameters():
                        parameter.mul_(1.001)
            wall, cpu = time.perf_counter(), time.process_time()
            work(x, y)
            if number:
                seconds[name].append([time.perf_counter() - wall, time.process_time() - cpu])
    return seconds


def main() -> None:
    """Print a markdown table for each number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["small", "resnet18"], default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--peer-path")
    options = parser.parse_args()
    if options.peer_path:
        sys.path.append(options.peer_path)
    cpu = torch.device("cpu")

    def make() -> nn.Module:
        return small() if options.model == "small" else network(cpu).eval()

    threads = torch.get_num_threads()
    print(f"{options.model}, batch {options.batch}, {threads} threads, torch {torch.__version__}")
    for steps in options.steps:
        seconds = timed(contenders(make, steps), options.rounds, options.batch)
        peer = seconds.pop("torchattacks")
        print(
            f"\n| times as fast as torchattacks' PGD, {steps} steps | wall (min to max) | CPU (min to max) |"
        )
        print("| --- | ---: | ---: |")
        for name, mine in seconds.items():
            cells = []
            for clock in (0, 1):
                ratios = [a[clock] / b[clock] for a, b in zip(peer, mine, strict=True)]
                cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
