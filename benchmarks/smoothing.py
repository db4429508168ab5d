"""Randomised smoothing at N = 100,000 beside a plain fp32 loop, interleaved in one run.

    python benchmarks/smoothing.py                                  # a network fitted on digits
    python benchmarks/smoothing.py --weights W.npz --images I.npz   # yours

W.npz holds the arrays of `network().state_dict()`; I.npz holds x, uint8 [n, 1, 28, 28]. The plain loop is
in the style of the code that introduced randomised smoothing: 400 copies of an image, randn_like, argmax,
counts in numpy. Both draw N times for each image, in pieces that take turns, so that a machine whose speed
drifts slows both; their radii must agree within the error of sampling. Seconds are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.certificates.binomial import lower_bound, tie_chance
from robustcli.certificates.smoothing import Smoothed, Smoothing

BATCH, PIECE = 400, 4096


def network() -> nn.Sequential:
    """Two convolutions of 5 x 5, one hidden layer; pixels [B, 1, 28, 28] in [0, 1]."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


def digits() -> tuple[Tensor, Tensor]:
    """The embedded 8 x 8 digits, enlarged to 28 x 28."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return F.interpolate(x, size=(28, 28), mode="bilinear"), torch.tensor(data.target)


def fitted(x: Tensor, y: Tensor, sigma: float) -> nn.Module:
    """The network after 150 steps on noisy images."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(150):
        rows = torch.randint(len(x), (64,))
        loss = F.cross_entropy(model(x[rows] + sigma * torch.randn(64, 1, 28, 28)), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def loaded(weights: Path) -> nn.Module:
    """The network with weights from a file."""
    model = network()
    with np.load(weights) as arrays:
        model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return model.eval()


@torch.no_grad()
def plain_counts(model: nn.Module, image: Tensor, sigma: float, draws: int) -> np.ndarray:
    """Counts of classes [10] of `draws` noisy copies."""
    counts = np.zeros(10, dtype=int)
    while draws > 0:
        size = min(BATCH, draws)
        draws -= size
        batch = image.repeat((size, 1, 1, 1))
        noise = torch.randn_like(batch) * sigma
        for label in model(batch + noise).argmax(1).numpy():
            counts[label] += 1
    return counts


def seconds_of(work: Callable[[], object]) -> tuple[float, object]:
    """(CPU seconds of this process, the result)."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main() -> None:
    """Print a markdown table; write it as JSON with --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.images:
        with np.load(options.images) as arrays:
            x = torch.from_numpy(arrays["x"][: options.count]).float() / 255
    else:
        x = digits()[0][: options.count]
    model = loaded(options.weights) if options.weights else fitted(*digits(), options.sigma)
    smoothed = Smoothed(model, 10, Smoothing(sigma=options.sigma, n=options.n, stop=False))
    early, late = memory(smoothed, x[:1])
    print(f"peak resident memory after N = 1,000: {early} MiB, after N = {options.n}: {late} MiB")
    rows = [compared(model, smoothed, image, number) for number, image in enumerate(x)]
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} thread(s), N = {options.n}\n")
    print(
        "| image | plain s | robustcli s | ratio | (min, max of pieces) | plain radius | robustcli radius |"
    )
    print("| ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    for number, row in enumerate(rows):
        print(
            f"| {number} | {row['plain_s']:.1f} | {row['ours_s']:.1f} | {row['ratio']:.2f} "
            f"| ({row['least']:.2f}, {row['most']:.2f}) | {row['plain_radius']:.4f} "
            f"| {row['ours_radius']:.4f} | {row['alike']:.2f} |"
        )
    print("\np: chance that draws which miss the class alike often have counts that differ so much")
    print(f"\nmedian ratio of images/s: {statistics.median(row['ratio'] for row in rows):.2f}")
    if options.out:
        machine = platform.processor() or platform.machine()
        given = {name: str(value) for name, value in vars(options).items()}
        record = {"machine": machine, "torch": torch.__version__, **given, "images": rows}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


def compared(model: nn.Module, smoothed: Smoothed, image: Tensor, number: int) -> dict[str, float]:
    """Seconds and radii of both for one image."""
    plan = smoothed.plan
    ids, ends = torch.tensor([number]), [*range(0, plan.n, PIECE), plan.n]
    smoothed.counts(image[None], ids, 0, 1)  # what is built once
    theirs, ours = np.zeros(10, dtype=int), torch.zeros(1, 10, dtype=torch.int64)
    seconds: list[tuple[float, float]] = []
    for first, last in zip(ends[:-1], ends[1:], strict=True):
        plain, counts = seconds_of(lambda: plain_counts(model, image, plan.sigma, last - first))  # noqa: B023
        fast, more = seconds_of(lambda: smoothed.counts(image[None], ids, first, last))  # noqa: B023
        theirs, ours = theirs + counts, ours + more
        seconds.append((plain, fast))
    plain, fast = (sum(times) for times in zip(*seconds, strict=True))
    ratios = [a / b for a, b in seconds]
    return {
        "plain_s": plain,
        "ours_s": fast,
        "ratio": plain / fast,
        "least": min(ratios),
        "most": max(ratios),
        "alike": tie_chance(plan.n - int(theirs.max()), plan.n - int(ours.max())),
        "plain_radius": plan.radius(float(lower_bound(theirs.max(), plan.n, plan.alpha))),
        "ours_radius": plan.radius(float(lower_bound(int(ours.max()), plan.n, plan.alpha))),
    }


def memory(smoothed: Smoothed, x: Tensor) -> tuple[int, int]:
    """Peak MiB of this process after 1,000 and after N draws of ours."""
    found = []
    for draws in (1000, smoothed.plan.n):
        smoothed.counts(x, torch.tensor([0]), 0, draws)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
    return found[0], found[1]


if __name__ == "__main__":
    main()
