"""The flags that verbs share: one table, so that a word means the same everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from robustcli import registry


@dataclass(frozen=True)
class Flag:
    """One option. `key` is the configuration key it sets; None: the verb reads it itself."""

    type: Any
    help: str
    key: str | None = None
    names: tuple[str, ...] = ()
    default: Any = None
    metavar: str | None = None
    complete: Callable[[str], list[str]] | None = None


def _starting(words: list[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _names_in(kind: registry.Registry[Any, Any]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in kind.names() if name.startswith(incomplete)]

    return complete


def complete_config(incomplete: str) -> list[str]:
    """Names of the shipped configurations."""
    from robustcli.config.shipped import shipped_configs

    return [name for name in shipped_configs() if name.startswith(incomplete)]


Text = str | None
FLAGS: Mapping[str, Flag] = {
    "model": Flag(
        Text,
        "A model name, run:DIR, FILE.safetensors, torchvision:NAME@WEIGHTS …",
        "model.name",
        complete=_names_in(registry.models),
    ),
    "weights": Flag(Text, "Weights for the model: FILE.safetensors or FILE.npz.", "model.weights"),
    "plugin": Flag(Text, "FILE.py:factory, your own model; runs that code.", metavar="FILE.py:FACTORY"),
    "normalize": Flag(
        Text,
        "What a foreign model expects: imagenet, or means and deviations.",
        "model.normalize",
        metavar="imagenet|NUMBERS",
    ),
    "data": Flag(
        Text, "A data set name, folder:PATH or npz:PATH.", "data.name", complete=_names_in(registry.datasets)
    ),
    "download": Flag(
        bool, "Allow downloads of data sets and published weights.", "data.download", default=False
    ),
    "eps": Flag(Text, "Radius on the [0, 1] scale, such as 8/255.", "ball.eps"),
    "norm": Flag(Text, "linf, l2 or l1.", "ball.norm", complete=_starting(["linf", "l2", "l1"])),
    "allow_large_eps": Flag(bool, "Accept linf eps above 0.5.", "ball.allow_large_eps", default=False),
    "steps": Flag(Text, "Attack steps.", None),
    "attack": Flag(
        Text,
        "Attacks, comma-separated: fgsm,pgd, autoattack, autoattack:rapid, torchattacks:NAME.",
        None,
        complete=_names_in(registry.attacks),
    ),
    "target": Flag(Text, "Targeted attack: random, least-likely or a class number.", "eval.target"),
    "n": Flag(Text, "Images: a seeded sample, every class by its share.", "eval.n", names=("--n", "-n")),
    "first": Flag(Text, "The first images in stored order instead.", "eval.first"),
    "split": Flag(Text, "test, val or train.", "eval.split", complete=_starting(["test", "val", "train"])),
    "device": Flag(Text, "auto, cpu, cuda, cuda:N or mps.", "device"),
    "precision": Flag(Text, "Of the training step: auto, fp32, tf32, bf16 or fp16.", "precision"),
    "search": Flag(Text, "Precision of the attack's search: auto, fp32 or bf16.", "search.precision"),
    "train_batch": Flag(Text, "Images per step.", "train.batch_size", names=("--batch-size",)),
    "eval_batch": Flag(
        Text, "Images per batch; never changes a verdict.", "eval.batch_size", names=("--batch-size",)
    ),
    "bench_batch": Flag(
        Text,
        "Images per step; auto tries growing sizes and takes the fastest.",
        "train.batch_size",
        names=("--batch-size",),
    ),
    "epochs": Flag(Text, "Budget in epochs.", "train.epochs"),
    "minutes": Flag(
        Text, "Budget in minutes; a few timed steps turn it into a number of steps.", "train.minutes"
    ),
    "seed": Flag(Text, "Seed of everything random.", "seed"),
    "seeds": Flag(Text, "Several runs: 0,1,2; mean and spread are reported.", None),
    "threads": Flag(Text, "CPU threads.", "threads"),
    "name": Flag(Text, "Name of the run.", "name"),
    "out": Flag(Text, "Exact directory of the run instead of runs/VERB/NAME-N.", "out"),
    "resume": Flag(bool, "Go on with the newest run of this name, or with --out.", default=False),
    "overwrite": Flag(bool, "Empty --out first.", default=False),
    "override_resume": Flag(
        list[str], "Resume although this key changed; repeatable.", default=(), metavar="KEY"
    ),
    "allow_pickle_weights": Flag(bool, "Read .pt files, in a sandboxed process.", default=False),
    "fail_under": Flag(
        list[str],
        "Exit 1 when a metric is below: robust_acc=0.45; repeatable.",
        default=(),
        metavar="METRIC=VALUE",
    ),
    "attack_plugin": Flag(
        Text,
        "FILE.py:NAME, an attack of your own or of another library; runs that code.",
        metavar="FILE.py:NAME",
    ),
    "strict": Flag(bool, "Exit 10 when the evaluation is suspect or invalid.", default=False),
    "shard": Flag(Text, "Measure part i of n only, for many machines: 2/4.", metavar="I/N"),
    "merge": Flag(Text, "Merge the shards of these runs into one verdict: RUN,RUN,…", metavar="RUNS"),
    "sweep": Flag(
        Text,
        "Accuracy against eps=0..16/255, steps=1..200 or restarts=1..10; or distance.",
        "eval.sweep",
        metavar="KEY=VALUES",
    ),
    "models": Flag(Text, "Two models or more, comma-separated: run:DIR,run:DIR.", metavar="MODEL,MODEL,…"),
    "surrogate": Flag(
        Text, "Another model whose adversarial images are tried too (black box).", metavar="MODEL"
    ),
    "cross_check": Flag(
        Text, "Run the same attacks by another library too: torchattacks.", metavar="LIBRARY"
    ),
    "nproc": Flag(Text, "Processes on this machine that train together: one per GPU.", metavar="N"),
    "max_restarts": Flag(
        Text,
        "With --nproc: start again this often from the last checkpoint when a process is lost.",
        metavar="R",
    ),
    "set": Flag(
        list[str],
        "Set a configuration key; the same as a bare key=value.",
        names=("--set",),
        default=(),
        metavar="KEY=VALUE",
    ),
    "require_cuda": Flag(bool, "Exit 6 when there is no CUDA device.", default=False),
    "smoke": Flag(bool, "The same path, made tiny: some seconds.", default=False),
    "dry_run": Flag(bool, "Say what it will cost; write nothing.", default=False),
    "json": Flag(bool, "Print one JSON document.", default=False),
    "quiet": Flag(bool, "No progress and no messages.", names=("--quiet", "-q"), default=False),
    "verbose": Flag(bool, "More messages.", names=("--verbose", "-v"), default=False),
    "debug": Flag(bool, "Show a traceback when it fails.", default=False),
}
OUTPUT = ("json", "quiet", "verbose", "debug")
WORDS = "CONFIG (a file or a shipped name) and key=value settings."


def with_flags(names: tuple[str, ...], run: Callable[[Mapping[str, Any]], None]) -> Callable[..., None]:
    """A function with the Typer signature `(words…, --flag…)` that hands `run` a mapping of all values."""

    def command(**values: Any) -> None:
        run(values)

    parameters = [_argument()] if "set" in names else []
    parameters += [_option(name, FLAGS[name]) for name in names]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def as_argv(verb: str, values: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> list[str]:
    """The command line that gives a verb these values again, less the flags `without`."""
    found = [verb]
    for name in (name for name in values if name in FLAGS and name not in without):
        long, value = (FLAGS[name].names or (f"--{name.replace('_', '-')}",))[0], values[name]
        if value is True:
            found.append(long)
        elif value:
            found += [f"{long}={item}" for item in (value if isinstance(value, (list, tuple)) else [value])]
    return [*found, "--", *(values.get("words") or [])]


def _argument() -> inspect.Parameter:
    note = typer.Argument(
        help=WORDS, metavar="[CONFIG] [KEY=VALUE]...", autocompletion=complete_config, show_default=False
    )
    return inspect.Parameter(
        "words", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[list[str] | None, note], default=None
    )


def _option(name: str, flag: Flag) -> inspect.Parameter:
    long = flag.names or (f"--{name.replace('_', '-')}",)
    if flag.type is bool:
        note = typer.Option(*long, help=flag.help, show_default=False)
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[bool, note], default=False
        )
    many = flag.type == list[str]
    note = typer.Option(
        *long,
        help=flag.help,
        metavar=flag.metavar or name.upper(),
        autocompletion=flag.complete,
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[list[str] | None if many else str | None, note],
        default=None,
    )
