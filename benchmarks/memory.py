"""Peak memory of an evaluation against the number of images: it must not grow beyond the images themselves.

python benchmarks/memory.py            # n = 500, 2000, 8000 fake images of 3x32x32, each in a fresh process
"""

from __future__ import annotations

import resource
import subprocess
import sys


def one(n: int, attacked: bool) -> None:
    """Peak resident memory (MiB) of one process that evaluates n images, or only holds them."""
    import torch

    from robustcli import registry
    from robustcli.core.geometry import Ball
    from robustcli.data.split import MemorySplit
    from robustcli.evaluation.plan import AttackCall, EvalPlan
    from robustcli.evaluation.robust import RobustEvaluation
    from robustcli.models.build import build_model
    from robustcli.models.info import ModelInfo

    model = build_model("small_cnn", {}, ModelInfo(10, 3, 32, (0.5,) * 3, (0.25,) * 3), seed=0)
    split = MemorySplit(
        torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n) % 10, tuple("0123456789")
    )
    plan = EvalPlan(
        Ball("linf", 1 / 255),
        [AttackCall("pgd", "pgd", registry.attacks.get("pgd").fn, {"steps": 5})],
        batch_size=256,
    )
    if attacked:
        RobustEvaluation(model, plan).run(split, torch.arange(n), torch.device("cpu"))
    else:
        RobustEvaluation(model, plan).run(split, torch.arange(256), torch.device("cpu"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """A markdown table; the last column is what n images cost beyond holding them and evaluating 256."""
    if len(sys.argv) == 3:
        one(int(sys.argv[1]), sys.argv[2] == "attacked")
        return
    print(
        "| n | images MiB | peak, 256 of n evaluated | peak, all n evaluated | difference MiB |\n"
        "| ---: | ---: | ---: | ---: | ---: |"
    )
    for n in (500, 2000, 8000, 32000):
        commands = [[sys.executable, __file__, str(n), mode] for mode in ("held", "attacked")]
        peaks = [
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for command in commands
        ]
        print(
            f"| {n} | {n * 3072 / 2**20:.1f} | {peaks[0]:.0f} | {peaks[1]:.0f} | {peaks[1] - peaks[0]:.0f} |"
        )


if __name__ == "__main__":
    main()
