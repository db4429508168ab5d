"""The wider reference: verdicts of the AutoAttack authors' code, stage by stage, beside ours, per sample.

    python benchmarks/reference.py                                  # ours beside the stored verdicts
    python benchmarks/reference.py --authors PATH --write           # theirs anew; PATH: fra31/auto-attack

Networks, threats and verdicts: tests/agreement/wider/README.md. --only TEXT takes the cases whose name holds
TEXT. Theirs run with seed 0 in batches of 250; ours with --seeds and --search. `above` counts samples that
stand with us and fell with them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import robustcli

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
import wider  # noqa: E402 - after its folder is known

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def theirs(path: Path, case: Any) -> dict[str, torch.Tensor]:
    """bool [n] per stage: who stands in the authors' code, each stage on what the ones before left."""
    sys.path.insert(0, str(path))
    from autoattack import AutoAttack  # type: ignore[import-not-found]

    model, x, y, _ = case.some(len(case.rows))
    attack = AutoAttack(
        model, norm=_NORMS[case.norm], eps=case.eps, seed=0, verbose=False, version="standard", device="cpu"
    )
    with torch.no_grad():
        logits = model(x)
    classes = logits.shape[1]
    attack.fab.n_target_classes = min(9, classes - 1)
    attack.apgd_targeted.n_target_classes = min(attack.apgd_targeted.n_target_classes, classes - 1)
    found = {"clean": logits.argmax(1) == y}
    standing = found["clean"].clone()
    for stage in wider.STAGES:
        rows = standing.nonzero()[:, 0]
        if len(rows) and not (stage == "apgd-t" and classes < 4):  # targeted DLR needs four classes
            attack.attacks_to_run = [stage]
            x_adv = attack.run_standard_evaluation(x[rows], y[rows], bs=250)
            with torch.no_grad():
                standing[rows] = model(x_adv).argmax(1) == y[rows]
        found[stage] = standing.clone()
    return found


def written(case: Any, found: dict[str, torch.Tensor]) -> str:
    """One line of verdicts.json."""
    flags = {name: "".join(str(int(kept)) for kept in standing) for name, standing in found.items()}
    return json.dumps(
        {"model": case.model, "norm": case.norm, "eps": case.text, "rows": case.rows.tolist(), **flags},
        separators=(",", ":"),
    )


def main() -> None:
    """Print one markdown row per case, version and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--authors", type=Path, help="a checkout of fra31/auto-attack")
    parser.add_argument("--write", action="store_true", help="store what --authors measured")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--versions", default="standard,rapid")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--search", default="auto")
    options = parser.parse_args()
    chosen = [case for case in wider.cases() if case.here and options.only in str(case)]
    if options.authors:
        for case in chosen:
            began = time.perf_counter()
            case.stages = theirs(options.authors, case)
            counts = ", ".join(f"{name} {int(kept.sum())}" for name, kept in case.stages.items())
            print(f"{case}: {counts} of {len(case.rows)}, {time.perf_counter() - began:.0f} s", flush=True)
        if options.write:
            lines = ",\n".join(written(case, case.stages) for case in wider.cases())
            (wider.FOLDER / "verdicts.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        return
    print(
        "| case | n | theirs | version | seed | standing | above | passes an image | audit |\n"
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |"
    )
    for case in chosen:
        model, x, y, stages = case.some(len(case.rows))
        for version in options.versions.split(","):
            for seed in map(int, options.seeds.split(",")):
                found: Any = robustcli.evaluate(
                    model,
                    x,
                    y,
                    eps=case.eps,
                    norm=case.norm,
                    attack="autoattack",
                    version=version,
                    seed=seed,
                    device="cpu",
                    search=options.search,
                )
                passes = sum(
                    spent for stage, spent in found.passes_per_sample.items() if stage != "rapid:audit"
                )
                above = int((found.survivors & ~stages["square"]).sum())
                cells = [
                    case,
                    len(x),
                    int(stages["square"].sum()),
                    version,
                    seed,
                    int(found.survivors.sum()),
                    above,
                    f"{passes:.0f}",
                ]
                print(
                    "| " + " | ".join(map(str, [*cells, found.audit.words() if found.audit else ""])) + " |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
