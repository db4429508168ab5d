"""What must be seen on a real GPU: correctness, speed, a training, a verdict.

Each part is one command of at most eight minutes.

    python benchmarks/gpu_suite.py --part check   --data cifar10.npz
    python benchmarks/gpu_suite.py --part speed   --data cifar10.npz
    python benchmarks/gpu_suite.py --part train   --data cifar10.npz --minutes 5
    python benchmarks/gpu_suite.py --part verdict --data cifar10.npz --n 1000
    python benchmarks/gpu_suite.py --part verdict --data cifar10.npz --n 10000 --versions standard
    python benchmarks/gpu_suite.py --part check --toy

check: low precision, compiler, folding, batch size, resume. speed: against plain fp32 loops; share of the
measured peak. train: clean and PGD-20 accuracy. verdict: AutoAttack, rapid then standard, on that model.
--toy runs the same code in seconds on a CPU, to keep it alive.

--data is an .npz (x_train, y_train, x_test, y_test) or a folder of images (train/CLASS, test/CLASS). Without
it generated images are used, on which accuracies mean nothing. Each part prints a table and writes
OUT/gpu_PART.json; `passed` is false, and the exit code 1, where a check failed. Runs go to runs/ of the
current directory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_check import Row, check
from speed import contenders

from robustcli.assembly.timing import interleaved
from robustcli.cli.main import run
from robustcli.runtime.seed import environment

PASSED = {None: "", True: "passed", False: "FAILED"}
#: ResNet-18 in minutes: PGD-2, averaged weights, smoothed labels. These are the settings of fast adversarial
#: training, scaled to batches of 512.
RECIPE = (
    "name=gpu-suite", "data.val_fraction=0.02", "data.augment={crop: 4, flip: true}", "model.name=resnet18",
    "ball.eps=8/255", "objective={name: madry, label_smoothing: 0.2}",
    "adversary={name: pgd, steps: 2, step_size: 6/255}", "train.batch_size=512",
    "train.optimizer={name: sgd, lr: 0.4, momentum: 0.9, weight_decay: 5e-4}",
    "train.schedule={name: one_cycle, warmup: 0.2}", "train.hooks=[{name: ema, decay: 0.998}]",
    "train.validate_every=5", "train.val_attack={name: pgd, steps: 10, step_size: 2/255}", "train.val_n=1000",
    "attacks=[{name: pgd, steps: 20, step_size: 2/255}]",
)  # fmt: skip
TOY = (
    "name=gpu-suite", "data.size=8", "model={name: small_cnn, widths: [4, 8], strides: [1, 2]}",
    "ball.eps=4/255", "adversary={name: pgd, steps: 2}", "train.batch_size=32", "train.optimizer.lr=0.1",
    "train.hooks=[{name: ema, decay: 0.9}]", "train.val_n=32", "train.val_attack.steps=2",
    "attacks=[{name: pgd, steps: 20}]", "threads=1",
)  # fmt: skip


def command(*argv: str) -> dict[str, Any]:
    """The JSON document of one robustcli command, in this process. Raises SystemExit when it fails."""
    said = io.StringIO()
    print(f"$ robustcli {' '.join(argv)}", file=sys.stderr)
    with contextlib.redirect_stdout(said):
        code = run([*argv, "--json"])
    if code:
        raise SystemExit(f"robustcli {argv[0]} ended with {code}: {said.getvalue()[:2000]}")
    document: dict[str, Any] = json.loads(said.getvalue())
    return document


def recipe(options: argparse.Namespace, *more: str) -> list[str]:
    """The configuration as words of a command line.

    A file, the built-in recipe or the toy; then `more`, the data and what the user adds.
    """
    words = [str(options.config)] if options.config else list(TOY if options.toy else RECIPE)
    if options.data is None:
        data = ["data.name=fake"]
    else:
        data = (
            [f"data.name=npz:{options.data}"]
            if options.data.suffix == ".npz"
            else [f"data.name=folder:{options.data}", "data.size=32"]
        )
    return [*words, *data, *more, *options.set]


# ---- parts -------------------------------------------------------------------------------------------------


def part_check(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """A short training, then every comparison of `gpu_check` on its model."""
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # the resume check needs it, and cuBLAS reads it once
    trained = command(
        "train",
        *recipe(options, "train.steps=12" if options.toy else f"train.minutes={options.minutes or 1}"),
        "--device",
        options.device,
    )
    short = recipe(
        options,
        "train.steps=12",
        "train.save_every=4",
        "train.compile=off",
        "search.compile=off",
        "deterministic=true",
        "train.val_n=64",
    )
    rows = check(trained["run"], options.device, n=24 if options.toy else 1000, short=short)
    return rows, {"trained": trained, "passed": all(row.passed is not False for row in rows)}


def part_speed(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The contenders of speed.py in interleaved rounds, then `robustcli bench` for the recipe's peak share.

    Nothing is compiled unless KEY=VALUE says so: eleven compilations would take longer than all measurements.
    """
    batch, steps = (2, 1) if options.toy else (512, 10)
    device = torch.device(options.device)
    seconds = interleaved(contenders(device, batch, steps), device, 2 if options.toy else 7)
    rows = [Row(f"{name}, images/s", batch / statistics.median(times)) for name, times in seconds.items()]
    ratios = {}
    for mine in (name for name in seconds if "robustcli" in name):
        for other in (
            name for name in seconds if "robustcli" not in name and name.split(":")[0] == mine.split(":")[0]
        ):
            found = sorted(b / a for a, b in zip(seconds[mine], seconds[other], strict=True))
            ratios[f"{mine} / {other}"] = found
            rows.append(
                Row(
                    f"{mine} / {other.split(': ')[1]}, times",
                    statistics.median(found),
                    note=f"{found[0]:.2f} to {found[-1]:.2f}",
                )
            )
    bench = command(
        "bench",
        *recipe(options, "train.compile=off", "search.compile=off"),
        "--device",
        options.device,
        *(("--smoke",) if options.toy else ()),
    )
    rows += [
        Row(f"peak of {name}, TFLOP/s", peak["tflops"], note=f"side {peak['size']}")
        for name, peak in bench["peak"].items()
    ]
    for row in bench["steps"]:
        rows.append(
            Row(
                f"{row['work']} {row['search']} {row['precision']}, images/s",
                row["images_per_second"],
                note=f"{row['mfu']:.1%} of the peak",
            )
        )
    return rows, {"seconds": seconds, "ratios": ratios, "bench": bench}


def part_train(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The recipe for the given minutes, then clean and PGD-20 test accuracy of its best model."""
    minutes = options.minutes or (0.02 if options.toy else 5)
    trained = command("train", *recipe(options, f"train.minutes={minutes}"), "--device", options.device)
    few = ("--n", "32") if options.toy else ()
    measured = command("eval", "--model", f"run:{trained['run']}", "--device", options.device, *few)
    rows = [
        Row(
            "training, seconds",
            trained["seconds"],
            note=f"{trained['steps']} steps, asked for {60 * minutes:g} s",
        ),
        *_accuracies(measured, "PGD-20"),
    ]
    return rows, {"minutes": minutes, "trained": trained, "evaluated": measured}


def part_verdict(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """AutoAttack on the model of the train part, or of --run."""
    rows, found = [], {}
    n = options.n or (8 if options.toy else 1000)
    for version in options.versions.split(","):
        began = time.perf_counter()
        model = ("--model", f"run:{options.run}", "--device", options.device)
        found[version] = command(
            "eval", *model, "--attack", f"autoattack:{version}", "--n", str(n), *options.set
        )
        rows += [
            *_accuracies(found[version], f"AutoAttack {version}"),
            Row(f"AutoAttack {version}, seconds", time.perf_counter() - began),
        ]
    return rows, {
        "n": n,
        "evaluated": found,
        "passed": all(document["reliability"] == "ok" for document in found.values()),
    }


def _accuracies(document: dict[str, Any], attack: str) -> list[Row]:
    named = {"clean_acc": "clean accuracy", "robust_acc": f"robust accuracy, {attack}"}
    notes = {key: "{:.3f} to {:.3f}".format(*document["intervals"][key]) for key in named}
    return [
        Row(
            f"{name}, n = {document['n']}",
            document[key],
            note=f"95 % {notes[key]}, {document['reliability']}",
        )
        for key, name in named.items()
    ]


PARTS = {"check": part_check, "speed": part_speed, "train": part_train, "verdict": part_verdict}


def main(argv: list[str] | None = None) -> int:
    """Run one part; 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=list(PARTS), required=True)
    parser.add_argument("--toy", action="store_true", help="seconds on a CPU; the numbers mean nothing")
    parser.add_argument("--minutes", type=float, help="of training: 5, for the check 1")
    parser.add_argument("--data", type=Path, help="an .npz or a folder")
    parser.add_argument(
        "--config", type=Path, help="a training configuration in the place of the built-in recipe"
    )
    parser.add_argument("--run", default="runs/train/latest", help="verdict: the run whose model is judged")
    parser.add_argument("--versions", default="rapid,standard", help="verdict: of AutoAttack")
    parser.add_argument("--n", type=int, help="verdict: images, 1000")
    parser.add_argument("--device", help="cuda, or cpu for the toy")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("set", nargs="*", metavar="KEY=VALUE", help="settings of the configuration")
    options = parser.parse_args(argv)
    if options.device is None:
        options.device = "cpu" if options.toy else "cuda"
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --toy runs the same code on a CPU")
    began = time.perf_counter()
    rows, found = PARTS[options.part](options)
    document = {
        "part": options.part,
        "toy": options.toy,
        "device": options.device,
        "seconds": round(time.perf_counter() - began, 1),
    }
    passed = bool(found.setdefault("passed", True))
    table = [row.to_json() for row in rows]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu_{options.part}.json"
    path.write_text(
        json.dumps({**document, "environment": environment(), "rows": table, **found}, indent=1, default=str)
        + "\n"
    )
    print(f"\n| {options.part} on {options.device} | value | | |\n| --- | ---: | --- | --- |")
    for row in rows:
        print(f"| {row.name} | {row.value:.5g} | {row.note} | {PASSED[row.passed]} |")
    print(f"\n{document['seconds']} s; {path}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
