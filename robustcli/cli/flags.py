"""The flags that verbs share: one table, so that a word means the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from robustcli import registry

#: What the command line gives for one flag: a switch, a text, or the texts of a flag that is repeated.
FlagValue: TypeAlias = "bool | str | list[str] | None"


@dataclass(frozen=True)
class Flag:
    """One option.

    Args:
        help: what `--help` says.
        key: the configuration key that it sets; None means that the verb reads the value itself.
        kind: a text, a switch, or a list: a text that may be given again and again.
        names: how it is written, the long form first; () means `--` and the flag's name.
        metavar: what `--help` writes for the value; None means the flag's name.
        complete: the beginning of a value -> values, for the shell.
        panel: of `--help`; None means the one where `cli.panels` has the word, else the common one.
    """

    help: str
    key: str | None = None
    kind: Literal["text", "switch", "list"] = "text"
    names: tuple[str, ...] = ()
    metavar: str | None = None
    complete: Callable[[str], list[str]] | None = None
    panel: str | None = None


def _starting(words: list[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _names_in(kind: registry.Registry[Any, Any]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in kind.names() if name.startswith(incomplete)]


FLAGS: dict[str, Flag] = {
    "model": Flag(
        "A model name, run:DIR, guard:DIR, FILE.safetensors, torchvision:NAME@WEIGHTS, 'command:PROGRAM' …",
        "model.name",
        complete=_names_in(registry.models),
    ),
    "weights": Flag("Weights for the model: FILE.safetensors or FILE.npz.", "model.weights", metavar="FILE"),
    "weights_kind": Flag(
        "Of raw weights and their average in one file: auto (the average), averaged or raw.",
        "model.weights_kind",
        complete=_starting(["auto", "averaged", "raw"]),
    ),
    "plugin": Flag("FILE.py:factory, your own model; runs that code.", metavar="FILE.py:FACTORY"),
    "normalize": Flag(
        "What a foreign model expects: imagenet, or means and deviations.",
        "model.normalize",
        metavar="imagenet|NUMBERS",
    ),
    "data": Flag(
        "A data set name, folder:PATH, npz:PATH, hf:PATH or wds:PATH.",
        "data.name",
        complete=_names_in(registry.datasets),
    ),
    "download": Flag("Allow downloads of data sets and published weights.", "data.download", kind="switch"),
    "eps": Flag("Radius on the [0, 1] scale, such as 8/255; of l0 how many pixels.", "ball.eps"),
    "norm": Flag("linf, l2, l1 or l0.", "ball.norm", complete=_starting(["linf", "l2", "l1", "l0"])),
    "allow_large_eps": Flag("Accept linf eps above 0.5.", "ball.allow_large_eps", kind="switch"),
    "steps": Flag("Attack steps."),
    "attack": Flag(
        "Attacks, comma-separated: fgsm,pgd:steps=20, autoattack:rapid, torchattacks:NAME.",
        complete=_names_in(registry.attacks),
    ),
    "target": Flag("Targeted attack: random, least-likely or a class number.", "eval.target"),
    "n": Flag("Images: a seeded sample, every class by its share.", "eval.n", names=("--n", "-n")),
    "first": Flag("The first images in stored order instead.", "eval.first"),
    "skip": Flag(
        "Every K-th image in stored order, as published tables choose them.", "eval.skip", metavar="K"
    ),
    "split": Flag("test, val or train.", "eval.split", complete=_starting(["test", "val", "train"])),
    "device": Flag("auto, cpu, cuda, cuda:N or mps.", "device"),
    "precision": Flag("Of the training step: auto, fp32, tf32, bf16 or fp16.", "precision"),
    "search": Flag("Precision of the attack's search: auto, fp32 or bf16.", "search.precision"),
    "train_batch": Flag("Images per step.", "train.batch_size", names=("--batch-size",)),
    "eval_batch": Flag(
        "Images per batch; never changes a verdict.", "eval.batch_size", names=("--batch-size",)
    ),
    "bench_batch": Flag(
        "Images per step; auto tries growing sizes and takes the fastest.",
        "train.batch_size",
        names=("--batch-size",),
    ),
    "epochs": Flag("Budget in epochs.", "train.epochs"),
    "minutes": Flag("Budget in minutes, which steps and validations together fill.", "train.minutes"),
    "seed": Flag("Seed of everything random.", "seed"),
    "seeds": Flag("Several runs: 0,1,2; mean and spread are reported."),
    "threads": Flag("CPU threads.", "threads"),
    "name": Flag("Name of the run.", "name"),
    "out": Flag("Exact directory of the run instead of runs/VERB/NAME-N.", "out", metavar="DIR"),
    "resume": Flag("Go on with the newest run of this name, or with --out.", kind="switch"),
    "overwrite": Flag("Replace the run, or the files, that are there.", kind="switch"),
    "override_resume": Flag("Resume although this key changed; repeatable.", kind="list", metavar="KEY"),
    "labels_only": Flag(
        "The model answers with labels alone: no attack can use a gradient or a score.",
        "model.labels_only",
        kind="switch",
    ),
    "allow_pickle_weights": Flag("Read .pt files, in a sandboxed process.", kind="switch"),
    "fail_under": Flag(
        "Exit 1 when a metric is below: robust_acc=0.45; repeatable.", kind="list", metavar="METRIC=VALUE"
    ),
    "attack_plugin": Flag(
        "FILE.py:NAME, an attack of your own or of another library; runs that code.", metavar="FILE.py:NAME"
    ),
    "no_report": Flag("Write no report.html at the end (ROBUSTCLI_NO_REPORT=1 says so too).", kind="switch"),
    "strict": Flag("Exit 10 when the evaluation is suspect or invalid.", kind="switch"),
    "shard": Flag("Measure part i of n only, for many machines: 2/4.", metavar="I/N"),
    "merge": Flag("Merge the shards of these runs into one verdict: RUN,RUN,…", metavar="RUNS"),
    "sweep": Flag(
        "Accuracy against eps=0..16/255, steps=1..200 or restarts=1..10; or distance.",
        "eval.sweep",
        metavar="KEY=VALUES",
    ),
    "models": Flag("Two models or more, comma-separated: run:DIR,run:DIR.", metavar="MODEL,MODEL,…"),
    "surrogate": Flag(
        "Another model whose adversarial images are tried too (black box); repeatable, searched on together.",
        kind="list",
        metavar="MODEL",
    ),
    "cross_check": Flag("Run the same attacks by another library too: torchattacks.", metavar="LIBRARY"),
    "nproc": Flag("Processes on this machine that share the work: one per GPU.", metavar="N"),
    "max_restarts": Flag(
        "With --nproc: start again this often from the last checkpoint when a process is lost.", metavar="R"
    ),
    "set": Flag("Set a configuration key; the same as a bare key=value.", kind="list", metavar="KEY=VALUE"),
    "require_cuda": Flag("Exit 6 when there is no CUDA device.", kind="switch"),
    "smoke": Flag("The same path, made tiny: some seconds.", kind="switch"),
    "dry_run": Flag("Say what it will cost; write nothing.", kind="switch"),
    "json": Flag("Print one JSON document.", kind="switch"),
    "quiet": Flag("No progress and no messages.", kind="switch", names=("--quiet", "-q")),
    "verbose": Flag("More messages.", kind="switch", names=("--verbose", "-v")),
    "debug": Flag("Show a traceback when it fails.", kind="switch"),
}


def add_flag(name: str, flag: Flag) -> str:
    """Add a flag that one verb alone has; returns its name. Raises ValueError when the word is taken."""
    if FLAGS.setdefault(name, flag) is not flag:
        raise ValueError(f"the flag {name!r} is taken: {FLAGS[name].help}")
    return name


# Flags that stand together in the help of several verbs.
MODEL = ("model", "weights", "weights_kind", "plugin", "normalize")
DATA_AND_BALL = ("data", "download", "eps", "norm", "allow_large_eps")
SAMPLE = ("n", "first", "split", "eval_batch")
MACHINE = ("device", "search", "seed", "threads")
RUN = ("name", "out", "overwrite")
OUTPUT = ("json", "quiet", "verbose", "debug")


def texts_of(value: FlagValue) -> list[str]:
    """All texts of a flag that is repeated; [] when it was not given."""
    if not value:
        return []
    assert isinstance(value, list), value
    return value


def spellings(name: str) -> tuple[str, ...]:
    """How a flag is written on the command line, the long form first."""
    return FLAGS[name].names or (f"--{name.replace('_', '-')}",)
