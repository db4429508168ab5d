"""AutoAttack: time, passes and verdict against torchattacks' AutoAttack, interleaved in one run.

    python benchmarks/autoattack.py --model FILE.py:FACTORY --weights W.npz --data SURVIVORS.npz --eps 8/255
    pip install --no-deps torchattacks requests      # the peer; without it only our versions are compared

--data is an .npz with x uint8 [n, C, H, W] and y [n], and, where a reference verdict is known, one boolean
array per stage (clean, apgd-ce, apgd-t, fab-t, square). The images are cut into rounds. In each round every
contender attacks the same images in turn, so that a machine whose speed drifts slows all of them. Times are
sums over rounds; the spread is that of the rounds.

--ours NAME/SEARCH,... chooses ours: `standard/auto`, `rapid:0/auto` (with an audit of 0 samples), or an
attack alone, `square/auto`. --standing takes only images that stand in the stored verdict: with --ours
square/auto that is 5,000 queries of Square on survivors.

--other FILE.py:FACTORY adds any other implementation: FACTORY(model, eps, norm) -> atk(x, y) -> x_adv.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import robustcli
from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.evaluation.judge import Judge


class Counted(nn.Module):
    """A model that counts rows forward and backward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += len(x)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._count)
        logits: Tensor = self.model(x)
        return logits

    def _count(self, grad: Tensor) -> None:
        self.passes += len(grad)


def judged(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """bool [n]: still right, by our judge, whoever made the points."""
    with frozen(model):
        judge = Judge(model, ball)
        return (judge.logits(x).argmax(1) == y) & ~judge.rule(x, x_adv, Criterion(y)).hit


def foreign(
    make: Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]], model: nn.Module, ball: Ball
) -> Callable[[Tensor, Tensor], tuple[Tensor, float]]:
    """(survivors, passes) of another implementation."""

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
        counted = Counted(model).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        x_adv = make(counted)(x, y)
        return judged(model, x, x_adv.detach(), y, ball), counted.passes

    return run


def ours(
    version: str, search: str, model: nn.Module, ball: Ball, seed: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, float]]:
    """(survivors, passes) of ours, with the diagnosis left out: no other implementation has one."""

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
        options: dict[str, Any] = {"search": search, "seed": seed, "checks": 0}
        name, _, audit = version.partition(":")
        if name in registry.attacks:
            options |= {"attack": name}
        else:
            options |= {"attack": "autoattack", "version": name} | ({"audit": int(audit)} if audit else {})
        verdict = robustcli.evaluate(
            model, x, y, eps=ball.eps, norm=ball.norm, device=str(x.device), **options
        )
        return verdict.survivors.to(x.device), sum(verdict.passes_per_sample.values()) * len(x) + len(x)

    return run


def contenders(
    model: nn.Module, ball: Ball, options: argparse.Namespace
) -> dict[str, Callable[[Tensor, Tensor], tuple[Tensor, float]]]:
    """name -> one evaluation."""
    jobs = {
        f"robustcli {version} ({search})": ours(version, search, model, ball, options.seed)
        for version, search in options.ours
    }
    norm = {"linf": "Linf", "l2": "L2"}[ball.norm]
    if not options.no_peer:
        try:
            import torchattacks
        except ImportError:
            print("torchattacks is not installed: only our own versions are compared")
        else:
            shared: dict[str, Any] = {"norm": norm, "eps": ball.eps, "seed": options.seed, "n_restarts": 1}

            def shipped(counted: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
                """Its AutoAttack: 10 steps for each gradient attack, where the authors take 100."""
                return torchattacks.AutoAttack(
                    counted, norm=norm, eps=ball.eps, version="standard", n_classes=10, seed=options.seed
                )  # type: ignore[no-any-return]

            def full(counted: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
                """Its attacks with the parameters of AutoAttack's version standard."""
                ce = torchattacks.APGD(counted, steps=100, loss="ce", **shared)
                targeted = torchattacks.APGDT(counted, steps=100, n_classes=10, **shared)
                fab = torchattacks.FAB(counted, steps=100, multi_targeted=True, n_classes=10, **shared)
                square = torchattacks.Square(counted, n_queries=5000, **shared)
                return torchattacks.MultiAttack([ce, targeted, fab, square])  # type: ignore[no-any-return]

            jobs["torchattacks, 100 steps"] = foreign(full, model, ball)
            jobs["torchattacks AutoAttack as shipped, 10 steps"] = foreign(shipped, model, ball)
    if options.other:
        path, _, name = options.other.rpartition(":")
        spec = importlib.util.spec_from_file_location("other", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        jobs[options.other] = foreign(
            lambda counted: getattr(module, name)(counted, ball.eps, ball.norm), model, ball
        )
    return jobs


def main() -> None:
    """Print a markdown table; write it as JSON with --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--standing", action="store_true", help="images that stand in the stored verdict")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--ours",
        type=lambda text: [tuple(item.split("/")) for item in text.split(",")],
        default=[("standard", "auto"), ("rapid", "auto")],
    )
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--other", help="FILE.py:FACTORY")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    stored = dict(np.load(options.data))
    if options.standing:
        standing = stored["square"]
        stored = {name: values[standing] for name, values in stored.items() if len(values) == len(standing)}
    device, ball = torch.device(options.device), Ball(options.norm, float(Fraction(options.eps)))
    x = torch.from_numpy(stored["x"][: options.n]).to(device).float() / 255
    y = torch.from_numpy(stored["y"][: options.n]).long().to(device)
    model = robustcli.load_model(options.model, weights=options.weights).to(device).eval()
    jobs = contenders(model, ball, options)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    passes, left = dict.fromkeys(jobs, 0.0), {name: torch.zeros(0, dtype=torch.bool) for name in jobs}
    for rows in torch.arange(len(x)).chunk(options.rounds):
        for name, work in jobs.items():
            began = time.perf_counter()
            survivors, spent = work(x[rows], y[rows])
            seconds[name].append(time.perf_counter() - began)
            passes[name] += spent
            left[name] = torch.cat((left[name], survivors.cpu()))
            print(
                f"  {name}: {int(survivors.sum())} of {len(rows)} standing, {seconds[name][-1]:.1f} s",
                flush=True,
            )
    report(options, jobs, seconds, passes, left, stored, len(x))


def report(
    options: argparse.Namespace, jobs: Any, seconds: Any, passes: Any, left: Any, stored: Any, n: int
) -> None:
    """Table, ratios and JSON."""
    print(
        f"\n{n} images, {options.norm} eps {options.eps}, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    reference = torch.from_numpy(stored["square"][:n]) if "square" in stored else None
    if reference is not None:
        print(f"reference verdict (stored): {int(reference.sum())} of {n} = {reference.float().mean():.3f}\n")
    last = [name for name in jobs if not name.startswith("robustcli")]
    heads = "".join(f" times faster than {name} (range of rounds) |" for name in last)
    print(f"| | standing | standing here, fallen in the reference | seconds | passes per image |{heads}")
    print("| --- | ---: | ---: | ---: | ---: |" + " ---: |" * len(last))
    for name in jobs:
        extra = "" if reference is None else str(int((left[name] & ~reference).sum()))
        ratio = " |" * len(last)
        if last and name not in last:
            rounds = {
                other: [b / a for a, b in zip(seconds[name], seconds[other], strict=True)] for other in last
            }
            ratio = "".join(
                f" {sum(seconds[other]) / sum(seconds[name]):.2f} ({min(r):.2f} to {max(r):.2f}) |"
                for other, r in rounds.items()
            )
        standing = f"{int(left[name].sum())} ({float(left[name].float().mean()):.3f})"
        print(f"| {name} | {standing} | {extra} | {sum(seconds[name]):.1f} | {passes[name] / n:.0f} |{ratio}")
    if options.out:
        record = {
            key: str(value)
            for key, value in vars(options).items()
            if key not in ("model", "weights", "data", "out", "other")
        }
        rows = {
            name: {
                "standing": int(left[name].sum()),
                "seconds": seconds[name],
                "passes_per_image": passes[name] / n,
            }
            for name in jobs
        }
        options.out.write_text(
            json.dumps(
                {**record, "torch": torch.__version__, "threads": torch.get_num_threads(), "results": rows},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
