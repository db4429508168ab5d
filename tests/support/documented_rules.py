"""How each documented command is run at smoke size: the one table of `tests/docs/test_commands.py`.

The key is how a command begins; the longest that fits counts. CONTRIBUTING.md says how to add one.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from documented import ROOT, Rule

DATA, NETWORK, LONG, PROCESSES = (
    "images that are not there",
    "a network",
    "minutes of a CPU",
    "tests/assembly/test_launch.py starts processes",
)
#: A training of two steps of a small network, whatever the recipe.
STEPS = (
    "--no-report --smoke --batch-size 32 train.steps=2 train.epochs=null train.minutes=null "
    "train.val_attack=fgsm train.val_n=8 threads=1"
)
SMALL = "'model={name: small_cnn, widths: [6], strides: [2]}'"
TRACKER = "an extra: tests/reporting/test_tracking.py"
UNSIGNED = "without the extra `sign`, or openssl, nothing is signed: tests/jobs/test_report_signed.py"
WEAK = "the model of the test is too weak for the gate"
TRAIN = f"{STEPS} {SMALL}"
FAKE = "--data fake data.size=8"
CERTIFY = "eval.checks=0 certify.smoothing.n=200 certify.smoothing.n0=10 threads=1"
UPDATE = (
    "train.steps=2 train.epochs=null train.val_n=8 eval.n=16 attacks.0.steps=2 attacks.1.steps=2 threads=1"
)
EVAL = "--no-report --n 4 eval.checks=2 threads=1"


WHOLE = {
    "docs/bring-your-own.md": "tests/test_bring_your_own.py",
}


def made(command: str) -> str:
    """`make TARGET`: the Makefile has the target."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    target = command.split()[1]
    return "" if re.search(rf"^{target}:", text, flags=re.MULTILINE) else f"no target {target}"


def installed(command: str) -> str:
    """`pip install "robustcli[extra]"`: pyproject.toml has the extra."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    missing = [
        extra
        for extra in re.findall(r"\[([\w,]+)\]", command)
        for extra in extra.split(",")
        if not re.search(rf"^{extra} = \[", text, flags=re.MULTILINE)
    ]
    return f"no extra {missing}" if missing else ""


def ends_well(command: str) -> str:
    """A program of the system: it runs, where it is installed."""
    words = shlex.split(command)
    if shutil.which(words[0]) is None:
        return ""
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def there(command: str) -> str:
    """A script of this repository: the file that is named is there."""
    files = re.findall(r"(?:benchmarks|deploy)/[\w./-]+", command)
    gone = [file for file in files if not Path(ROOT / file).is_file()]
    return f"no file {gone}" if gone or not files else ""


def nothing(command: str) -> str:
    """A command of the shell or of another program, with nothing of ours in it."""
    return "" if "robustcli " not in command else "a command of ours hides in it"


RULES: dict[str, Rule] = {
    # verbs: what is added to each of their commands
    "robustcli attack": Rule("--smoke --n 4 eval.checks=2 threads=1"),
    "robustcli attack attack/labels_only": Rule(
        "--smoke --n 4 eval.checks=2 threads=1 attacks.0.queries=20 attacks.1.queries=20"
    ),
    "robustcli attack attack/patch": Rule(
        "--smoke --n 4 eval.checks=2 threads=1 attack.patch.steps=2 attack.patch.n=16"
    ),
    "robustcli bench": Rule("--dry-run", why="tests/jobs/test_bench.py measures"),
    "robustcli bench train/cifar10_cpu": Rule(f"--smoke data.size=8 {SMALL}"),
    "robustcli bench smoke/fake --model resnet18 --steps 10 --dry-run": Rule(),
    "robustcli certify": Rule(f"{CERTIFY} --n 2"),
    "robustcli certify --model run:A --norm l2 --skip": Rule(f"{CERTIFY} certify.shard_size=2"),
    "robustcli certify certify/digits_smoothing": Rule(f"{CERTIFY} --n 1 attacks.0.steps=2"),
    "robustcli check-gpu": Rule("--help", why="two seconds: tests/jobs/test_verbs.py runs it"),
    "robustcli config": Rule(),
    "robustcli config cp train/digits": Rule(
        instead="robustcli config cp train/digits copied.yaml", why="a file my.yaml is there"
    ),
    "robustcli demo": Rule("--dry-run", why="tests/jobs/test_verbs.py runs it"),
    "robustcli data check": Rule(),
    "robustcli demo guard": Rule("--dry-run", why="tests/jobs/test_demo_guard.py runs it"),
    "robustcli eval --model run:A --labels-only --norm l2": Rule(f"{EVAL} attacks.0.queries=20"),
    "robustcli eval --model run:runs/train/latest --norm l2 --labels-only": Rule(
        f"{EVAL} attacks.0.queries=20 attacks.1.queries=20"
    ),
    "robustcli eval --model run:runs/train/latest --norm l2 --eps 0.5 --labels-only": Rule(
        f"{EVAL} attacks.0.queries=20"
    ),
    "robustcli eval --model 'command:python label.py'": Rule(
        instead="robustcli eval --model \"command:sh -c 'while read p; do echo 1; done'\" --data digits "
        "--n 4 --norm l2 --eps 0.5 --attack surfree:queries=6 --no-report threads=1",
        why="a program of the reader's",
    ),
    "robustcli eval": Rule(EVAL),
    "robustcli eval eval/hf": Rule(EVAL, exits=(0, 6), why="6 without pyarrow"),
    "robustcli eval --merge": Rule(),
    "robustcli env": Rule(),
    "robustcli export": Rule(),
    "robustcli init": Rule(),
    **{
        f"robustcli export --model run:runs/train/latest --out {out} --format torch,onnx": Rule(
            instead=f"robustcli export --model run:runs/train/latest --out {out} --format torch",
            why="an extra: onnx",
        )
        for out in ("deployed", "exported")
    },
    "robustcli gate": Rule(
        "--n 4 eval.checks=0 threads=1", exits=(0, 1, 10), why="4 images and a weak model"
    ),
    "robustcli gate runs/eval/latest": Rule(exits=(1,), why=WEAK),
    "robustcli guard eval": Rule("--smoke --n 4 threads=1"),
    "robustcli guard fit": Rule("--smoke guard.fpr=0.2 threads=1"),
    "robustcli guard fit guard/mnist": Rule("--smoke --data digits --model run:A", why=DATA),
    "robustcli guard forget evidence.db 3fa94c": Rule(
        instead="robustcli guard forget evidence.db {second}", why="the hash of an image that is there"
    ),
    "robustcli guard log": Rule(),
    "robustcli guard log evidence.db --known": Rule(exits=(3,), why="this hash was never noted"),
    "robustcli guard review": Rule(exits=(2,), why="it needs a terminal: tests/guard/test_review.py has one"),
    "robustcli guard review evidence.db --list": Rule(),
    "robustcli guard review evidence.db --label": Rule(
        instead="robustcli guard review evidence.db --label {first}=7 --label {second}=clean",
        why="hashes of images that are there",
    ),
    "robustcli guard run": Rule(),
    "robustcli guard run runs/guard/latest - < images/a.png": Rule(
        instead="robustcli guard run runs/guard/latest -", why="the shell's redirection", stdin="images/a.png"
    ),
    "find . -name '*.png'": Rule(
        instead="robustcli guard run runs/guard/latest -", why="a pipe", stdin="list.txt"
    ),
    "find images -name '*.png'": Rule(
        instead="robustcli guard run runs/guard/latest -",
        why="a pipe, and the webhook needs a network",
        stdin="list.txt",
    ),
    "robustcli guard serve": Rule(
        instead="robustcli guard serve --help", why="it serves until it is stopped: tests/guard"
    ),
    "robustcli guard status": Rule(exits=(0, 1), why="1 when something is to be done"),
    "robustcli guard update": Rule(UPDATE, exits=(0, 1), why="1 where the gate does not pass"),
    "robustcli guard update evidence.db runs/guard/current guard/update_digits": Rule(
        instead=f"robustcli guard update evidence.db runs/guard/latest guard/update_digits {UPDATE}",
        why="the first promotion makes the link",
        exits=(0, 1),
    ),
    "robustcli guard update evidence.db runs/guard/latest guard/update_digits --dry-run": Rule(),
    "openssl": Rule(check=ends_well),
    "robustcli report": Rule(),
    "robustcli report runs/eval/latest --sign": Rule(exits=(0, 6), why=UNSIGNED),
    "robustcli report --verify": Rule(exits=(0, 2), why=UNSIGNED),
    "robustcli runs": Rule(),
    "robustcli runs compare runs/eval/digits-1": Rule(
        instead="robustcli runs compare runs/eval/old runs/eval/new", why="two runs that are there"
    ),
    "robustcli train": Rule(TRAIN),
    "robustcli train train/digits --nproc": Rule("--dry-run", why=PROCESSES),
    "robustcli train train/digits --resume": Rule(
        instead="robustcli train A/config.resolved.yaml --resume",
        why="the run that is there was made smaller",
    ),
    "robustcli train train/digits_denoiser": Rule(STEPS),
    "robustcli transfer": Rule("--n 4 threads=1"),
    # commands that need what a test has not
    "robustcli train train/cifar10_strong --download": Rule(
        instead=f"robustcli train train/cifar10_strong {FAKE} {TRAIN}", why=NETWORK
    ),
    "robustcli train train/cifar10_standard --download": Rule(
        instead=f"robustcli train train/cifar10_standard {FAKE} {TRAIN}", why=NETWORK
    ),
    "robustcli train train/cifar10_standard --dry-run": Rule(f"{FAKE} {SMALL}"),
    "robustcli train train/cifar10_fast --nproc 4": Rule(f"{FAKE} {SMALL} --dry-run"),
    "robustcli eval --model torchvision:resnet50@IMAGENET1K_V2": Rule(
        exits=(3,), why="ImageNet is not there; published weights: tests/models"
    ),
    "robustcli eval --model run:A --cross-check": Rule(EVAL, exits=(0, 6), why="6 without torchattacks"),
    "robustcli eval --model run:A --attack autoattack --nproc": Rule("--dry-run", why=PROCESSES),
    "robustcli eval --model run:runs/train/latest --attack autoattack --nproc": Rule(
        "--dry-run", why=PROCESSES
    ),
    "robustcli eval --model run:A --attack autoattack --shard": Rule(f"{EVAL} eval.shard_size=1"),
    "robustcli eval --model run:A --attack autoattack --search": Rule(f"{EVAL} eval.shard_size=1"),
    "robustcli eval --model run:runs/train/latest --attack autoattack:rapid": Rule(f"{EVAL} ball.eps=0.3"),
    "robustcli eval --model run:runs/train/latest --steps 40 --fail-under": Rule(EVAL, exits=(1,), why=WEAK),
    "robustcli eval --model run:runs/train/latest --fail-under": Rule(EVAL, exits=(1,), why=WEAK),
    # other programs
    "make": Rule(check=made),
    "pip install": Rule(check=installed),
    ".venv/bin/python": Rule(check=there, why="tests/test_gpu_suite.py runs them"),
    ".venv/bin/robustcli check-gpu --require-cuda": Rule(
        instead="robustcli check-gpu --require-cuda --help", why="a GPU, which is hidden from this test"
    ),
    ".venv/bin/pre-commit install": Rule(check=nothing, why="a tool of those who develop"),
    "source": Rule(check=nothing),
    'DATA="data.name=cifar10': Rule(check=nothing),
    "curl": Rule(check=nothing, why="a client of `guard serve`: tests/guard/test_serve.py asks it over HTTP"),
    "MLFLOW_ALLOW_FILE_STORE=true mlflow ui": Rule(check=nothing, why="it serves until it is stopped"),
    "wandb sync": Rule(check=nothing, why=NETWORK),
    "WANDB_MODE=online": Rule(instead="robustcli train train/digits --dry-run", why=NETWORK),
    **{
        f"robustcli train train/digits 'train.trackers=[{tracker}]'": Rule(f"{TRAIN} --dry-run", why=TRACKER)
        for tracker in ("tensorboard", "{name: mlflow, uri: runs/mlflow}", "wandb")
    },
    "tensorboard": Rule(check=nothing, why="it serves until it is stopped"),
    "torchrun --standalone --nproc-per-node 8 -m": Rule(
        instead="robustcli train train/digits --dry-run", why="torchrun: tests/assembly/test_launch.py"
    ),
    "sbatch": Rule(check=there, why="a cluster: tests/assembly/test_launch.py runs the script"),
    "sbatch --dependency=afterok:$id": Rule(
        instead="robustcli eval --merge parts/1,parts/2 --out parts/whole",
        exits=(2,),
        why="a cluster; no parts here",
    ),
    "id=$(sbatch": Rule(check=there, why="a cluster"),
    "jq": Rule(check=nothing, why="tests/evaluation/test_shards.py reads the same lines"),
}
