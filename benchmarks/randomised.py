"""AutoAttack `standard` on five randomised models of the digits: verdict and passes, by number of draws.

    python benchmarks/randomised.py                  # 2 to 20 draws an answer, fewer in long searches
    python benchmarks/randomised.py --many           # 20 draws everywhere, as before
    python benchmarks/randomised.py --models gauss --seeds 0 1 2

Each model puts its randomness into one small network, trained against PGD: rounding with a random threshold
(and a straight-through gradient), ReLUs that drop out, noise on the pixels, dropout before the last layer,
and a random scale and shift. Passes have no noise; a sample near a tie falls or stands by luck.
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import robustcli
from robustcli.evaluation import robust

EPS = 0.1


def images() -> tuple[Tensor, Tensor]:
    """All digits, shuffled: (x [1797, 1, 8, 8] in [0, 1], y)."""
    stored = load_digits()
    order = torch.randperm(len(stored.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(stored.images, dtype=torch.float32)[order][:, None] / 16
    return x, torch.tensor(stored.target)[order]


def trained(x: Tensor, y: Tensor) -> nn.Sequential:
    """Two convolutions, 120 steps of Adam against PGD of five steps."""
    torch.manual_seed(2)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    for _ in range(120):
        rows = torch.randint(0, len(x), (64,))
        x_adv = robustcli.attack(net, x[rows], y[rows], eps=EPS, steps=5, step_size=EPS / 2, device="cpu")
        optimizer.zero_grad()
        F.cross_entropy(net(x_adv), y[rows]).backward()
        optimizer.step()
    return net.eval()


class Random(nn.Module):
    """One network under one kind of randomness."""

    randomised = True

    def __init__(self, net: nn.Sequential, kind: str) -> None:
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.pixels(x)
        for layer in self.net:
            if self.kind == "dropout" and isinstance(layer, nn.Linear):
                x = F.dropout(x, 0.5, training=True)
            x = layer(x)
            if self.kind == "activation" and isinstance(layer, nn.ReLU):
                x = F.dropout(x, 0.3, training=True)
        return x

    def pixels(self, x: Tensor) -> Tensor:
        """The images, where the randomness lies in them."""
        if self.kind == "gauss":
            return x + 0.25 * torch.randn_like(x)
        if self.kind == "bits":
            rounded = torch.floor(x * 3 + torch.rand_like(x)) / 3
            return x + (rounded - x).detach()
        if self.kind == "resize":
            scale = (0.9 + 0.25 * torch.rand(len(x), 1, 1)) * torch.eye(2).expand(len(x), 2, 2)
            moves = torch.cat((scale, 0.3 * (torch.rand(len(x), 2, 1) - 0.5)), 2)
            grid = F.affine_grid(moves, list(x.shape), align_corners=False)
            return F.grid_sample(x, grid, align_corners=False)
        return x


def main() -> None:
    """Print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ["bits", "activation", "gauss", "dropout", "resize"]
    parser.add_argument("--models", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--many", action="store_true")
    options = parser.parse_args()
    if options.many:
        robust.averaged = lambda *known: 20
    x, y = images()
    net = trained(x[:1400], y[:1400])
    x, y = x[1400 : 1400 + options.n], y[1400 : 1400 + options.n]
    print("| model | seed | right | standing | passes an image | CPU s |")
    print("| --- | ---: | ---: | --- | ---: | ---: |")
    for kind in options.models:
        for seed in options.seeds:
            torch.manual_seed(100 + seed)
            began = time.process_time()
            verdict = robustcli.evaluate(
                Random(net, kind), x, y, eps=EPS, attack="autoattack", seed=seed, checks=0, device="cpu"
            )
            left = ", ".join(str(int(kept.sum())) for kept in verdict.stages.values())
            passes = round(sum(verdict.passes_per_sample.values()))
            spent = time.process_time() - began
            right = round(verdict.clean_acc * verdict.n)
            cells = f"{seed} | {right} of {verdict.n} | {left} | {passes:,} | {spent:.0f}"
            print(f"| {kind} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
