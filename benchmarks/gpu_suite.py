"""What must be seen on a real GPU: correctness, speed, a training, a verdict.

    python benchmarks/gpu_suite.py --part check   --data cifar10.npz
    python benchmarks/gpu_suite.py --part speed   --data cifar10.npz
    python benchmarks/gpu_suite.py --part train   --data cifar10.npz --minutes 3
    python benchmarks/gpu_suite.py --part verdict --data cifar10.npz --n 1000
    python benchmarks/gpu_suite.py --part check --toy

check: low precision, graphs, compiler, folding, batch size, resume. speed: share of the measured peak, plain
fp32 loops, torchattacks. train: clean and PGD-20 accuracy. verdict: AutoAttack, rapid then standard, on that
model. --toy runs the same code in seconds on a CPU, to keep it alive.

--data is an .npz (x_train, y_train, x_test, y_test) or a folder of images (train/CLASS, test/CLASS). Without
it generated images are used, on which accuracies mean nothing.

Each part has a budget of seconds, start-up included, and makes its lines in the order of their worth. After
each line OUT/gpu_PART.json is whole; what is killed keeps all that it has measured. The exit code is 1 where
a check failed and 3 where lines were left out. Runs go to runs/ of the current directory.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_check import lines
from gpu_report import Line, OutOfTime, Report, Row, end_in_time, process_began
from gpu_speed import Speed

from robustcli.cli.main import run
from robustcli.runtime.device import describe_devices
from robustcli.runtime.seed import environment

#: Seconds of a part: an eighth less than a limit of 200, 150, 330 and 240.
BUDGETS = {"check": 180.0, "speed": 132.0, "train": 295.0, "verdict": 212.0}
_EVAL = 45.0  # seconds of the train part that are kept for start-up, data and evaluation
_PROBE = 64  # images of the first look at the cost of a verdict
_NEED = 20.0  # seconds of a verdict, at least
#: ResNet-18 in minutes: PGD-2 with steps of 6/255, averaged weights, smoothed labels, one cycle; the rate is
#: that of train/cifar10_standard, 0.1 for batches of 128, times 4. Shown on a CPU at small size, docs/gpu.md:
#: it learns and does not collapse, as robust as train/cifar10_cpu's N-FGSM. ResNet-18 has no number yet.
RECIPE = (
    "name=gpu-suite", "data.val_fraction=0.02", "data.augment={crop: 4, flip: true}", "model.name=resnet18",
    "ball.eps=8/255", "objective={name: madry, label_smoothing: 0.1}",
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
    """The JSON document of one robustcli command, in this process.

    Raises SystemExit when it fails, OutOfTime when a signal ended it.
    """
    said = io.StringIO()
    print(f"$ robustcli {' '.join(argv)}", file=sys.stderr)
    with contextlib.redirect_stdout(said):
        code = run([*argv, "--json"])
    if code in (130, 143):
        raise OutOfTime(f"robustcli {argv[0]} was stopped by a signal")
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


def part_check(options: argparse.Namespace, report: Report) -> None:
    """A short training, then every comparison of `gpu_check` on its model."""
    minutes = min(options.minutes or 1, report.left / 240)
    length = "train.steps=12" if options.toy else f"train.minutes={minutes:.3g}"
    trained = command("train", *recipe(options, length), "--device", options.device)
    report.know(trained=trained)
    eager = ("train.compile=off", "search.compile=off", "deterministic=true")
    short = recipe(options, "train.steps=12", "train.save_every=4", "train.val_n=64", *eager)
    report.run(lines(trained["run"], options.device, n=24 if options.toy else 1000, short=short))


def part_speed(options: argparse.Namespace, report: Report) -> None:
    """The lines of `gpu_speed`."""
    speed = Speed(options)
    report.facts.update(speed.facts)  # they grow
    report.run(speed.lines())


def part_train(options: argparse.Namespace, report: Report) -> None:
    """The recipe for the given minutes, then clean and PGD-20 test accuracy of its best model."""
    minutes = min(options.minutes or (0.02 if options.toy else 3), max(0.05, (report.left - _EVAL) / 60))
    report.know(minutes=minutes)

    def trained() -> list[Row]:
        document = command(
            "train", *recipe(options, f"train.minutes={minutes:.4g}"), "--device", options.device
        )
        report.know(trained=document)
        note = f"{document['steps']} steps, asked for {60 * minutes:g} s"
        return [Row("training, seconds", document["seconds"], note)]

    def measured(n: int) -> list[Row]:
        model = ("--model", f"run:{report.facts['trained']['run']}", "--device", options.device)
        document = command("eval", *model, "--n", str(n))
        report.know(evaluated=document)
        return _accuracies(document, "PGD-20")

    few, all_images = (32, 64) if options.toy else (1000, 10_000)
    report.run(
        [
            Line("training", 0, trained),
            Line("PGD-20", 0, lambda: measured(few)),
            Line("PGD-20 on the whole test split", 30, lambda: measured(all_images) if options.data else []),
        ]
    )


def part_verdict(options: argparse.Namespace, report: Report) -> None:
    """AutoAttack on the model of the train part, or of --run: a probe of each version, then what fits."""
    n = options.n or (8 if options.toy else 1000)
    found: dict[str, Any] = {}
    report.know(n=n, evaluated=found)
    versions = options.versions.split(",")

    def judged(version: str, count: int) -> list[Row]:
        began = time.perf_counter()
        model = ("--model", f"run:{options.run}", "--device", options.device)
        found[version] = command(
            "eval", *model, "--attack", f"autoattack:{version}", "--n", str(count), *options.set
        )
        seconds[version] = (time.perf_counter() - began) / found[version]["n"]
        alarms = Row(
            f"AutoAttack {version}, alarms",
            float(len(found[version]["alarms"])),
            found[version]["reliability"],
            found[version]["reliability"] == "ok",
        )
        return [
            *_accuracies(found[version], f"AutoAttack {version}"),
            Row(f"AutoAttack {version}, seconds, n = {found[version]['n']}", time.perf_counter() - began),
            alarms,
        ]

    def grown(version: str, share: float) -> list[Row]:
        """As many images as `share` of what is left pays for; the probe's seconds hold the start-up, too."""
        fits = n if report.left == float("inf") else min(n, int(share * report.left / seconds[version]))
        if fits < 2 * min(_PROBE, n) and n > _PROBE:
            report.leave_out(f"AutoAttack {version} on more than the probe: {fits} images would fit")
            return []
        return judged(version, fits)

    seconds: dict[str, float] = {}
    lines = []
    for k, version in enumerate(versions):
        share = 0.8 / (len(versions) - k)
        if n > _PROBE:
            lines.append(Line(f"AutoAttack {version}, probe", _NEED, lambda v=version: judged(v, _PROBE)))
        else:
            seconds[version] = 0.0
        lines.append(Line(f"AutoAttack {version}", _NEED, lambda v=version, s=share: grown(v, s)))
    report.run(lines)


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


def main(argv: list[str] | None = None, began: float | None = None) -> int:
    """Run one part: 1 when a check failed, 3 when lines were left out. began: see `Report`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=list(PARTS), required=True)
    parser.add_argument("--toy", action="store_true", help="seconds on a CPU; the numbers mean nothing")
    parser.add_argument("--budget", type=float, help=f"seconds of the part, start-up included: {BUDGETS}")
    parser.add_argument("--minutes", type=float, help="of training, at most: 3, for the check 1")
    parser.add_argument("--data", type=Path, help="an .npz or a folder")
    parser.add_argument(
        "--config", type=Path, help="a training configuration in the place of the built-in recipe"
    )
    parser.add_argument(
        "--run", default="runs/train/latest", help="verdict, speed: the run whose model is attacked"
    )
    parser.add_argument("--versions", help="verdict: of AutoAttack; rapid,standard, for the toy rapid")
    parser.add_argument("--n", type=int, help="verdict: images, at most 1000")
    parser.add_argument("--device", help="cuda, or cpu for the toy")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("set", nargs="*", metavar="KEY=VALUE", help="settings of the configuration")
    options = parser.parse_args(argv)
    options.versions = options.versions or ("rapid" if options.toy else "rapid,standard")
    options.device = options.device or ("cpu" if options.toy else "cuda")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --toy runs the same code on a CPU")
    budget = options.budget or (None if options.toy else BUDGETS[options.part])
    card = next((row["name"] for row in describe_devices() if row["device"].startswith(options.device)), None)
    head = {"part": options.part, "toy": options.toy, "device": options.device, "card": card}
    path = options.out / f"gpu_{options.part}.json"
    report = Report(path, {**head, "environment": environment()}, budget, began or time.monotonic())
    if began is not None:
        end_in_time(report)
    try:
        PARTS[options.part](options, report)
    except OutOfTime as why:
        report.end(str(why))
    except SystemExit as failure:
        report.end(str(failure))
        raise
    report.write()
    print(f"\n{report.path}: {len(report.rows)} rows")
    if not report.passed:
        return 1
    return 3 if report.left_out else 0


if __name__ == "__main__":
    sys.exit(main(began=process_began()))
