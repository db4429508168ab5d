"""What `eval --nproc N` gains over one process: the same command by both, interleaved, as a user runs it.

    python benchmarks/nproc.py            # digits, trained first; PGD and AutoAttack, n = 64 and 256
    python benchmarks/nproc.py --model run:runs/train/latest --n 1000 --attack autoattack --nproc 4

Each round runs both, in turn. Wall seconds are those of the whole command, with the loading of data and model
in each process; CPU seconds are those of all processes. The verdicts must be equal. Compare wall times on a
machine that does nothing else; CPU seconds say what the second process costs anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(*words: str) -> tuple[float, float]:
    """(wall, CPU) seconds of a command; its errors end this program."""
    before, began = _cpu(), time.perf_counter()
    command = [sys.executable, "-m", "robustcli", *words, "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, _cpu() - before


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def robust(folder: Path) -> float:
    """The robust accuracy of a run."""
    return float(json.loads((folder / "summary.json").read_text())["robust_acc"])


def main() -> None:
    """Print one line for each number of samples and list of attacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="run:DIR; left out: a digits network that is trained first")
    parser.add_argument("--attack", nargs="+", default=["pgd", "autoattack"])
    parser.add_argument("--n", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        model = args.model or f"run:{out / 'model'}"
        if args.model is None:
            run("train", "train/digits", "--out", str(out / "model"))
        for attack in args.attack:
            for n in args.n:
                words = ("eval", "--model", model, "--attack", attack, "--n", str(n))
                print(compared(words, args.nproc, args.rounds, out / f"{attack}-{n}"), flush=True)


def compared(words: tuple[str, ...], nproc: int, rounds: int, out: Path) -> str:
    """One line about one command."""
    taken: dict[int, list[tuple[float, float]]] = {1: [], nproc: []}
    for _ in range(rounds):
        for processes in taken:
            folder = Path(f"{out}-{processes}")
            more = ("--nproc", str(processes), "--out", str(folder), "--overwrite")
            taken[processes].append(run(*words, *more))
    assert robust(Path(f"{out}-1")) == robust(Path(f"{out}-{nproc}")), "the verdicts differ"
    gains = [one[0] / many[0] for one, many in zip(taken[1], taken[nproc], strict=True)]
    wall = {k: statistics.median(times[0] for times in found) for k, found in taken.items()}
    cpu = {k: statistics.median(times[1] for times in found) for k, found in taken.items()}
    return (
        f"{' '.join(words[3:])}: wall {wall[1]:.1f} s and {wall[nproc]:.1f} s with {nproc} processes,"
        f" {statistics.median(gains):.2f}x ({min(gains):.2f} to {max(gains):.2f});"
        f" CPU {cpu[1]:.1f} s and {cpu[nproc]:.1f} s"
    )


if __name__ == "__main__":
    main()
