"""AttackBench as an outside referee: local optimality of our attacks beside those of other libraries.

    python benchmarks/referee.py --model run:runs/train/latest --data digits --n 32 --store found.json

In an environment of its own that has torch and robustcli's dependencies:

    pip install --no-deps attackbenchlib adv-lib foolbox eagerpy tqdm visdom numba llvmlite requests GitPython

All attacks of a norm get the same model, images and budget, one after another in one process. Local
optimality compares the curve of robust accuracy against eps with that of the nearest points which all of them
met together: 1 is the best. What --store holds is not measured again. Theirs run as AttackBench configures
them, but for the number of steps, which `contenders` shows.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import attackbench
import numpy as np
import torch
from attackbench.models.benchmodel_wrapper import BenchModel
from attackbench_adapter import Attack, fixed, minimal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robustcli
from robustcli import registry
from robustcli.assembly.samples import choose, split_of
from robustcli.config.sections import DataConfig
from robustcli.data.datasets import load_data

_PREFIX = {"foolbox": "fb"}  # of the names in AttackBench's configurations, where it is not the library's


def theirs(library: str, name: str, norm: str, **changed: Any) -> Attack:
    """An attack of another library, with AttackBench's wrapper and configuration of it."""
    module = importlib.import_module(f"attackbench.attacks.{library}.configs")
    prefix = _PREFIX.get(library, library)
    general = getattr(module, f"{prefix}_{name}", None)
    params = getattr(module, f"{prefix}_{name}_{norm}", general)() | {"threat_model": norm} | changed
    make = getattr(module, f"get_{prefix}_{name}")
    made = make(**{key: params[key] for key in inspect.signature(make).parameters if key in params})
    if isinstance(made, dict):
        return partial(module._wrapper, **made)
    return partial(module._wrapper, attack=made)


def sigma_zero(steps: int) -> Attack:
    """adversarial-library's sigma-zero, for which AttackBench has no configuration."""
    from adv_lib.attacks import sigma_zero as search
    from attackbench.attacks.adv_lib.wrapper import adv_lib_wrapper

    return partial(adv_lib_wrapper, attack=partial(search, num_steps=steps))


def ours(norm: str) -> dict[str, Any]:
    """label -> () -> attack, for 2,000 passes forward and backward."""
    of_linf = ("apgd", "pgd")  # AttackBench, too, searches for the smallest radius of fixed attacks there
    tried: dict[str, Any] = {
        "fmn": partial(minimal, "fmn", steps=1000),
        "fab": partial(minimal, "fab", steps=74),
        "deepfool": partial(minimal, "deepfool"),
        "ddn": partial(minimal, "ddn", steps=1000),
        "pdpgd": partial(minimal, "pdpgd", steps=1000),
        "sigma_zero": partial(minimal, "sigma_zero", steps=1000),
        "cw": partial(minimal, "cw", steps=110, binary_search=9),
        "apgd": partial(fixed, "apgd", loss="dlr"),
        "apgd-t": partial(fixed, "apgd", loss="dlr-targeted"),
        "apgd-t, 20 steps, 3 classes": partial(fixed, "apgd", loss="dlr-targeted", steps=20, targets=3),
        "pgd": partial(fixed, "pgd", steps=100),
    }
    known = {entry.name for entry in registry.attacks if norm in entry.facts.norms}
    known -= {name for name in of_linf if norm != "linf"}
    return {f"robustcli {label}": make for label, make in tried.items() if make.args[0] in known}


#: (label, library, name in AttackBench, norms, what is changed in its configuration there)
THEIRS: tuple[tuple[str, str, str, str, dict[str, Any]], ...] = (
    ("apgd", "adv_lib", "apgd_minimal", "linf", {}),
    ("apgd-t", "adv_lib", "apgd_t_minimal", "linf", {}),
    ("apgd-t, 20 steps, 3 classes", "adv_lib", "apgd_t_minimal", "linf", {"num_steps": 20, "num_targets": 3}),
    ("pgd", "adv_lib", "pgd_minimal", "linf", {}),
    ("fmn", "adv_lib", "fmn", "linf l2 l1 l0", {}),
    ("fab", "adv_lib", "fab", "linf l2 l1", {}),
    ("pdpgd", "adv_lib", "pdpgd", "linf l2 l1 l0", {"num_steps": 1000}),
    ("ddn", "adv_lib", "ddn_NQ", "l2", {}),
    ("alma", "adv_lib", "alma", "l2 l1", {}),
    ("cw", "adv_lib", "cw_l2", "l2", {"num_steps": 110}),
    ("fmn", "foolbox", "fmn", "linf l2 l1 l0", {"num_steps": 1000}),
    ("ddn", "foolbox", "ddn", "l2", {"num_steps": 1000}),
    ("ead", "foolbox", "ead", "l1", {"num_steps": 110}),
    ("deepfool", "foolbox", "deepfool", "linf l2", {}),
)


def contenders(norm: str) -> dict[str, Any]:
    """label -> () -> attack; ours come first."""
    found = ours(norm)
    for label, library, name, norms, changed in THEIRS:
        if norm in norms.split():
            found[f"{library} {label}"] = partial(theirs, library, name, norm, **changed)
    if norm == "l0":
        found["adv_lib sigma_zero"] = partial(sigma_zero, 1000)
    return found


class Boxed(BenchModel):
    """AttackBench's counters, with a box that lets the gradient of a pixel at 0 or 1 through.

    AttackBench clamps what the model is asked. In torch 2.15 the slope of `clamp` is 0 at its bounds, so no
    attack could tell that a black pixel matters: nearest errors were half as far again on digits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, enforce_box=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.where((input >= 0) & (input <= 1), input, input.clamp(0, 1)))


def measured(model: nn.Module, images: DataLoader[Any], attack: Attack, norm: str) -> dict[str, Any]:
    """What AttackBench says of one attack, with the seconds of this process."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = attackbench.run_attack(
            Boxed(model), images, attack, norm, device=torch.device("cpu"), save_adversarial=True, debug=True
        )
    moved = (found.pop("adv_inputs") - found.pop("inputs")).abs() > 1e-10
    found["pixels"] = moved.any(1).flatten(1).sum(1).tolist()  # of the point returned, a colour pixel once
    return found | {"seconds": time.process_time() - began}


def table(found: dict[str, dict[str, Any]], norm: str) -> list[str]:
    """Markdown rows, the best first: local optimality, distances, passes and CPU seconds."""
    scores = attackbench.compare_attacks_optimality([*found.values()], norm, [*found])["optimality_scores"]
    rows = [
        f"| {norm} | local optimality | median | broken | forward | backward | CPU s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for label, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        of = found[label]
        distances, ahead = np.array(of["distances"][norm]), np.array(of["correct"])
        broken = np.isfinite(distances[ahead])
        cells = [f"{score:.3f}", f"{np.median(distances[ahead]):.4g}", f"{broken.sum()} of {ahead.sum()}"]
        cells += [f"{np.mean(np.array(of[key])[ahead]):.0f}" for key in ("num_forwards", "num_backwards")]
        rows.append(f"| {label} | {' | '.join(cells)} | {of['seconds']:.0f} |")
    return rows


def pictures(name: str, n: int) -> tuple[Tensor, Tensor]:
    """n test images of a data set, every class by its share: (x [n, C, H, W] in [0, 1], y)."""
    split = split_of(load_data(DataConfig(name=name), parts=("test",)), "test")
    batches = [*split.stream([choose(split, n=n, first=None, seed=0)], torch.device("cpu"))]
    return batches[0][0], batches[0][1]


def main() -> None:
    """Print a table for each norm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="as for robustcli.load_model")
    parser.add_argument("--weights", help="a file of weights for it")
    parser.add_argument("--data", default="digits", help="a data set, such as folder:PATH or npz:PATH")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--norms", nargs="+", default=["linf", "l2", "l1", "l0"])
    parser.add_argument("--only", default="", help="attacks whose label holds this regular expression")
    parser.add_argument("--store", type=Path, required=True, help="JSON of all that was measured")
    options = parser.parse_args()
    model = robustcli.load_model(options.model, weights=options.weights).eval().requires_grad_(False)
    images = DataLoader(TensorDataset(*pictures(options.data, options.n)), options.batch)
    stored: dict[str, Any] = {}
    if options.store.exists():
        stored = json.loads(options.store.read_text())
    for norm in options.norms:
        found = stored.setdefault(norm, {})
        for label, make in contenders(norm).items():
            if label not in found and re.search(options.only, label):
                found[label] = measured(model, images, make(), norm)
                options.store.write_text(json.dumps(stored))
        print("\n".join(["", *table(found, norm)]), flush=True)


if __name__ == "__main__":
    main()
