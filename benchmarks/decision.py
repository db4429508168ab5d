"""Median distance against queries: our HopSkipJump and SurFree beside Foolbox's and the authors' own.

    python benchmarks/decision.py --model run:runs/train/digits --data digits --n 50 --queries 1000,5000,25000
    python benchmarks/decision.py ... --against foolbox
    python benchmarks/decision.py ... --against surfree --authors PATH/TO/SurFree

Each call adds a line per attack to a table. All attacks get the first n images that the model is right on.
Every answer that an attack gets is a query of its row, and every success among the points it asks about
counts with its distance, whether the attack keeps it or not. Foolbox divides the normals of a batch by the
length of all of them together and asks rows again that have an answer; here each row has its own length, and
a question that repeats the one before costs nothing. So its numbers are those of one image at a time.

`foolbox` (3.3.4) and the authors' code (github.com/t-maho/SurFree) are in nobody's requirements: the
environment of this script has them.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.api import load_model
from robustcli.config.sections import DataConfig
from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.data.datasets import load_data
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall


class Watched(nn.Module):
    """A model that keeps, per row, the distance of the nearest success within each number of queries."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, norm: str, grid: Sequence[int]) -> None:
        super().__init__()
        self.model, self.x, self.y, self.norm = model, x, y, norm
        self.grid = torch.tensor(grid)
        self.spent = torch.zeros(len(x), dtype=torch.int64)
        self.best = torch.full((len(x), len(grid)), float("inf"))
        self.before = torch.full_like(x, float("nan"))
        self.only: int | None = None  # the row that is asked about alone

    def forward(self, points: Tensor) -> Tensor:
        rows = torch.arange(len(self.x)) if self.only is None else torch.tensor([self.only])
        logits: Tensor = self.model(points)
        fresh = (points != self.before[rows]).flatten(1).any(1)
        self.before[rows] = points.detach()
        self.spent[rows[fresh]] += 1
        way = (points.detach() - self.x[rows]).flatten(1)
        order = {"l2": 2.0, "linf": float("inf")}[self.norm]
        far = torch.linalg.vector_norm(way, ord=order, dim=1)
        far[logits.argmax(1) == self.y[rows]] = float("inf")
        inside = self.spent[rows, None] <= self.grid
        self.best[rows] = torch.where(inside, torch.minimum(self.best[rows], far[:, None]), self.best[rows])
        if int(self.spent.min()) >= int(self.grid[-1]):
            raise Spent
        return logits


class Spent(Exception):
    """All rows have had all their queries."""


def ours(name: str) -> Callable[[Watched, int], None]:
    """One of our attacks, on the rows together."""

    def attack(watched: Watched, seed: int) -> None:
        model, x, ball = watched.model, watched.x, Ball(watched.norm, 0.1)  # type: ignore[arg-type]
        call = AttackCall.of(registry.attacks.get(name), {"queries": int(watched.grid[-1])})
        criterion, rng = (
            Judge(model, ball).criterion(watched.y),
            RowRandom(seed, "start", torch.arange(len(x))),
        )
        oracle = call.oracle(model, x, criterion, rng=rng, ball=ball)
        call.fn(oracle, x, ball, **call.params)
        watched.spent += oracle.passes // len(x)
        for rows, spent, far in oracle.trace:
            nearer = torch.where(spent[:, None] <= watched.grid, far[:, None], float("inf"))
            watched.best[rows] = torch.minimum(watched.best[rows], nearer)

    return attack


def foolbox_hopskipjump(watched: Watched, seed: int) -> None:
    """Foolbox's HopSkipJump with its own start, one image at a time as far as its numbers go."""
    import eagerpy as ep
    import foolbox as fb

    class PerRow(fb.attacks.HopSkipJumpAttack):  # type: ignore[misc]
        def approximate_gradients(self, *given: object) -> object:
            grad = super().approximate_gradients(*given)
            length = ep.norms.l2(ep.astensor(grad).flatten(start=1), axis=1) + 1e-12
            return grad / length.expand_dims(1).expand_dims(1).expand_dims(1)

    torch.manual_seed(seed)
    model = fb.PyTorchModel(watched, bounds=(0, 1), device="cpu")
    starts = []
    for row in range(len(watched.x)):
        watched.only, one = row, slice(row, row + 1)
        start = fb.attacks.LinearSearchBlendedUniformNoiseAttack(steps=50)
        starts.append(start.run(model, watched.x[one], fb.criteria.Misclassification(watched.y[one])))
    watched.only = None
    attack = PerRow(steps=10**6, constraint=watched.norm)
    attack.run(model, watched.x, fb.criteria.Misclassification(watched.y), starting_points=torch.cat(starts))


def authors_surfree(folder: str) -> Callable[[Watched, int], None]:
    """The authors' SurFree, with the directions of their example and the other settings of their class."""

    def attack(watched: Watched, seed: int) -> None:
        sys.path.insert(0, folder)
        import random

        import surfree

        torch.manual_seed(seed)
        random.seed(seed)
        settings = {"steps": 10**6, "max_queries": int(watched.grid[-1]), "quantification": False}
        with redirect_stdout(io.StringIO()):
            starts = noisy(watched)
            surfree.SurFree(**settings)(_AsTheyCount(watched), watched.x.clone(), watched.y, starts)

    return attack


def noisy(watched: Watched) -> Tensor:
    """The authors' start, x + 0.5 * N(0, 1) until it is a success; a robust model needs more in time."""
    points, size = watched.x.clone(), 0.5
    wrong = watched(points).argmax(1) != watched.y
    while not bool(wrong.all()):
        drawn = (watched.x + size * torch.randn_like(points)).clamp(0, 1)
        points = torch.where(wrong[:, None, None, None], points, drawn)
        wrong = watched(points).argmax(1) != watched.y
        size *= 1.02
    return points


class _AsTheyCount(nn.Module):
    """Points of zeros are rows that the authors' code does not ask about, and does not count."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self.watched = watched

    def forward(self, points: Tensor) -> Tensor:
        idle = (points == 0).flatten(1).all(1)
        before = self.watched.before
        return self.watched(torch.where(idle[:, None, None, None], _known(before, points), points))


def _known(before: Tensor, points: Tensor) -> Tensor:
    return torch.where(before.isnan(), points, before)


def images(model: nn.Module, data: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n test images that the model is right on, [n, C, H, W], and their labels."""
    split = load_data(DataConfig(name=data), parts=("test",), whole=lambda digest: True).test
    x, y, _ = next(iter(split.stream([torch.arange(min(len(split), 4 * n + 50))], torch.device("cpu"))))
    right = (model(x).argmax(1) == y).nonzero()[:n, 0]
    return x[right], y[right]


def main() -> None:
    """One line per attack: medians at each number of queries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--data", required=True)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--norm", choices=("l2", "linf"), default="l2")
    parser.add_argument("--queries", default="1000,5000,25000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", choices=("ours", "foolbox", "surfree"), default="ours")
    parser.add_argument("--attack", default="hopskipjump,surfree", help="which of ours")
    parser.add_argument("--authors", default="SurFree", help="folder of the authors' code")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(given.model, weights=given.weights).eval().requires_grad_(False)
    x, y = images(model, given.data, given.n)
    grid = [int(count) for count in given.queries.split(",")]
    runs = {f"ours, {name}": ours(name) for name in given.attack.split(",")}
    if given.against != "ours":
        other = {"foolbox": foolbox_hopskipjump, "surfree": authors_surfree(given.authors)}
        runs = {given.against: other[given.against]}
    for name, attack in runs.items():
        watched, began = Watched(model, x, y, given.norm, grid), time.process_time()
        try:
            with torch.no_grad():
                attack(watched, given.seed)
        except Spent:
            pass
        medians = [f"{float(column.median()):.4f}" for column in watched.best.T]
        cells = [given.model, given.norm, str(len(x)), str(given.seed), name, *medians]
        print("|", " | ".join([*cells, f"{time.process_time() - began:.0f} s"]), "|", flush=True)


if __name__ == "__main__":
    main()
