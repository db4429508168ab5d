"""Mistakes of meaning: every one of a load in one pass, each with its place and the nearest right word."""

from __future__ import annotations

from typing import Any

import pytest

from robustcli.config.schema import Config
from robustcli.config.sections import Augment, BallConfig, DataConfig
from robustcli.config.spec import ModelConfig, Spec
from robustcli.config.verb_sections import EvalConfig, TrainConfig


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        # the ball
        ("ball: {eps: 8}", "c.yaml:1: ball.eps: eps=8.0 on the [0,1] scale; did you mean 8/255?"),
        ("ball: {eps: 255}", "c.yaml:1: ball.eps: eps=255.0 on the [0,1] scale; it must be <= 1"),
        ("ball: {eps: 0.6}",
         "c.yaml:1: ball.eps: eps=0.6 turns any image into any other: "
         "linf eps > 0.5 needs allow_large_eps: true"),
        ("ball: {eps: -1}", "c.yaml:1: ball.eps: must be > 0, got -1"),
        ("ball: {eps: 0}", "c.yaml:1: ball.eps: must be > 0, got 0"),
        ("ball: {eps: .nan}",
         "c.yaml:1: ball.eps: expected a number such as 8/255, 0.03 or 1e-3, got '.nan'; it must be finite"),
        ("ball: {eps: 8/0}", "c.yaml:1: ball.eps: division by zero in '8/0'"),
        ("ball: {norm: l2, eps: 128}",
         "c.yaml:1: ball.eps: eps=128.0 is beyond l2 <= 100 on the [0,1] scale; did you mean 128/255?"),
        ("ball: {norm: l1, eps: 5000}",
         "c.yaml:1: ball.eps: eps=5000.0 is beyond l1 <= 1000 on the [0,1] scale; it must be <= 1000"),
        ("ball: {norm: l0, eps: 0.5}",
         "c.yaml:1: ball.eps: eps=0.5: under l0 it is how many pixels may change, a whole number such as 5"),
        ("ball: {norm: l0, eps: 1e9}",
         "c.yaml:1: ball.eps: eps=1000000000: no image has more than 16777216 pixels"),
        ("thresholds: {'robust_acc@l0:2.5': {min: 0.5}}",
         "c.yaml:1: thresholds.robust_acc@l0:2.5: eps=2.5: under l0 it is how many pixels may change"),
        ("ball: {norm: linff}",
         "c.yaml:1: ball.norm: expected 'linf', 'l2', 'l1' or 'l0', got 'linff'; did you mean 'linf'?"),
        # keys
        ("trian: {epochs: 1}", "c.yaml:1: trian: unknown key; did you mean 'train'?"),
        ("eps: 8/255", "c.yaml:1: eps: unknown key; did you mean 'ball.eps'?"),
        ("ball: {eps:8/255}",
         "c.yaml:1: ball.eps:8/255: unknown key; YAML wants a space after the colon: {eps: 8/255}"),
        ("batch_size: 3",
         "c.yaml:1: batch_size: unknown key; did you mean 'train.batch_size' or 'eval.batch_size'?"),
        ("train:\n  epohcs: 3", "c.yaml:2: train.epohcs: unknown key; did you mean 'epochs'?"),
        ("train:\n  eps: 3", "c.yaml:2: train.eps: unknown key; did you mean 'ball.eps'?"),
        ("data:\n  augment: {corp: 3}", "c.yaml:2: data.augment.corp: unknown key; did you mean 'crop'?"),
        ("zzzz: 3", "c.yaml:1: zzzz: unknown key; known here: name, seed, device"),
        # types
        ("seed: 010",
         "c.yaml:1: seed: expected a whole number, got '010'; "
         "a leading zero means octal elsewhere: write 10"),
        ("seed: 1:30", "c.yaml:1: seed: expected a whole number, got '1:30'; base 60"),
        ("seed: true", "c.yaml:1: seed: expected a whole number, got true"),
        ("seed: 1.0", "c.yaml:1: seed: expected a whole number, got 1.0; write 1"),
        ("seed: -1", "c.yaml:1: seed: must be >= 0, got -1"),
        ("seed: 9223372036854775808", "c.yaml:1: seed: must be smaller than 2**63 in size"),
        ("train: {keep: 1}", "c.yaml:1: train.keep: must be >= 2, got 1"),
        ("deterministic: no", "c.yaml:1: deterministic: expected true or false, got 'no'; write false"),
        ("name: 7", "c.yaml:1: name: expected text, got 7; put it in quotes"),
        ("ball:", "c.yaml:1: ball: expected a mapping, got nothing; the section is empty"),
        ("ball: linf", "c.yaml:1: ball: expected a mapping, got 'linf'"),
        ("attacks: pgd", "c.yaml:1: attacks: expected a list, got 'pgd'"),
        ("attacks: []", "c.yaml:1: attacks: needs at least 1 of them, got 0"),
        ("attacks:\n  - 3", "c.yaml:2: attacks.0: expected a mapping, got 3"),
        ("device: gpu", "c.yaml:1: device: expected auto, cpu, mps, cuda or cuda:N, got 'gpu'"),
        ("eval: {target: -1}",
         "c.yaml:1: eval.target: expected random, least-likely, a label >= 0 or null, got -1"),
        ("eval: {target: randm}", "c.yaml:1: eval.target: expected random, least-likely"),
        ("eval: {fail_under: {robust_acc: 45}}",
         "c.yaml:1: eval.fail_under.robust_acc: must be <= 1, got 45"),
        ("data: {augment: flip}", "c.yaml:1: data.augment: expected 'auto' or 'none', got 'flip'"),
        ("data: {max_bad: 2}", "c.yaml:1: data.max_bad: must be <= 1, got 2"),
        ("model: {normalize: imagent}",
         "c.yaml:1: model.normalize: expected `imagenet` or as many means as deviations"),
        # run names are directory names
        ("name: ../x", "c.yaml:1: name: a run name is 1 to 64"), ("name: ..", "c.yaml:1: name: a run name"),
        ("name: a/b", "c.yaml:1: name: a run name"), ("name: ''", "c.yaml:1: name: a run name"),
        ('name: "a\\nb"', "c.yaml:1: name: control character"),
        ('name: "a\\0"', "c.yaml:1: name: control character"),
        ("name: " + "a" * 65, "c.yaml:1: name: a run name"), ("name: -rf", "c.yaml:1: name: a run name"),
        ("name: a b", "c.yaml:1: name: a run name"), ("name: ü", "c.yaml:1: name: a run name"),
        # what excludes each other
        ("train: {epochs: 3, steps: 3}",
         "c.yaml:1: train.steps: at most one of epochs, steps, minutes can be set, and epochs is"),
        ("train: {steps: 3, minutes: 3}",
         "c.yaml:1: train.minutes: at most one of epochs, steps, minutes can be set, and steps is"),
        ("eval: {n: 3, first: 3}", "c.yaml:1: eval.first: at most one of n, first can be set, and n is"),
        # names and parameters
        ("adversary: {name: pgd, stpes: 4}",
         "c.yaml:1: adversary.stpes: no such parameter of attack 'pgd'; did you mean 'steps'?"),
        ("adversary: {name: pgdd}",
         "c.yaml:1: adversary.name: unknown attack 'pgdd'; did you mean 'pgd'? known: corner, fgsm, pgd"),
        ("objective: trades", "c.yaml:1: objective.name: unknown objective 'trades'; "),
        ("objective: {name: madry, beta: 6}",
         "c.yaml:1: objective.beta: no such parameter of objective 'madry'; it has none"),
        ("train:\n  schedule: cosin",
         "c.yaml:2: train.schedule.name: unknown schedule 'cosin'; did you mean 'cosine'?"),
        ("train: {optimizer: {name: sgd, lr: fast}}",
         "c.yaml:1: train.optimizer.lr: expected a number such as 8/255"),
        ("train: {optimizer: {name: adamw, betas: [1]}}", "c.yaml:1: train.optimizer.betas: missing"),
        ("attacks:\n  - pgd\n  - {name: pgd, steps: 0}", "c.yaml:3: attacks.1.steps: must be >= 1, got 0"),
        ("attacks:\n  - {steps: 3}", "c.yaml:2: attacks.0.name: missing; write {name: ...}"),
        ("attacks:\n  - {nmae: pgd}", "c.yaml:2: attacks.0.name: missing; did you mean it by 'nmae'?"),
        ("adversary: {name: pgd, start: unifrom}",
         "c.yaml:1: adversary.start: expected 'uniform', 'gaussian' or 'zero', got 'unifrom'; did you mean"),
        ("adversary: {name: pgd, clip: yes}",
         "c.yaml:1: adversary.clip: expected true or false, got 'yes'; write true"),
        ("adversary: {name: pgd, params: 1}",
         "c.yaml:1: adversary.params: no such parameter of attack 'pgd'"),
        ('adversary: {name: pgd, start: "\\e[1m"}', "c.yaml:1: adversary.start: control character"),
        ("model: {name: wide_resnet}", "c.yaml:1: model.depth: missing; model 'wide_resnet' needs it"),
        ("model: {name: small_cnn, widhts: [1]}",
         "c.yaml:1: model.widhts: no such parameter of model 'small_cnn'; did you mean 'widths'?"),
        ("model: {name: small_cnn, wieghts: x}", "did you mean 'weights'?"),
        ("model: {name: small_cnn, widths: [1, true]}",
         "c.yaml:1: model.widths: expected a whole number, got true"),
        ("model: {name: 'run:x', depth: 3}", "c.yaml:1: model.depth: a run knows its model"),
        ("model: resnet19", "c.yaml:1: model.name: unknown model 'resnet19'; did you mean 'resnet18'?"),
        ("model: my/net.py:make",
         "c.yaml:1: model.name: a config never names code; use --plugin FILE.py:FACTORY"),
        ("data: {name: digit}",
         "c.yaml:1: data.name: unknown data set 'digit'; did you mean 'digits'? "
         "known: digits, fake, folder:PATH"),
        ("data: {name: folder}", "c.yaml:1: data.name: folder needs a path; write folder:PATH"),
        ("data: {name: 'npz:'}", "c.yaml:1: data.name: npz needs a path; write npz:PATH"),
        ("data: {name: 'digits:x'}", "c.yaml:1: data.name: unknown data set 'digits:x'"),
        ("ball: {norm: l2}\nadversary: corner",
         "c.yaml:2: adversary.name: attack 'corner' works for linf, and ball.norm is l2; l2 is searched by "),
    ],
)  # fmt: skip
def test_one_mistake(loader: Any, text: str, problem: str) -> None:
    problems = loader.problems(text + "\n")
    assert any(
        found.startswith(problem) or (not problem.startswith("c.yaml") and problem in found)
        for found in problems
    ), problems
    assert len(problems) <= 2


def test_all_mistakes_in_one_pass_in_the_order_of_the_file(loader: Any) -> None:
    text = (
        "seed: 010\nball:\n  norm: linff\n  eps: 8/0\nadversary:\n  name: pgd\n  stpes: 4\n  restarts: no\n"
    )
    text += "trian: 1\ndata: {name: nothing, download: on}\nseed: 3\n"
    problems = loader.problems(
        text,
        "train.epochs=x",
        "attacks.5=pgd",
        environ={"ROBUSTCLI_EVAL__N": "0", "ROBUSTCLI_SEDE": "1", "ROBUSTCLI_BALL__EPZ": "1"},
    )
    places = [
        problem.rsplit(": ", 1)[0].split(": ")[:2] if ": " in problem else problem for problem in problems[:9]
    ]
    assert places == [
        ["c.yaml:1", "seed"], ["c.yaml:3", "ball.norm"], ["c.yaml:4", "ball.eps"],
        ["c.yaml:7", "adversary.stpes"], ["c.yaml:8", "adversary.restarts"], ["c.yaml:9", "trian"],
        ["c.yaml:10", "data.download"], ["c.yaml:10", "data.name"], ["c.yaml:11", "seed"],
    ]  # fmt: skip
    assert sorted(" ".join(problem.split(": ")[:2]) for problem in problems[9:]) == [
        "command line attacks.5", "command line train.epochs", "environment ROBUSTCLI_BALL__EPZ ball.epz",
        "environment ROBUSTCLI_EVAL__N eval.n",
        "environment ROBUSTCLI_SEDE no such setting; did you mean 'ROBUSTCLI_SEED'?",
    ]  # fmt: skip


def test_many_problems_are_counted_not_flooded(loader: Any) -> None:
    problems = loader.problems("".join(f"k{k}: 1\n" for k in range(4000)))
    assert len(problems) == 201 and problems[-1] == "... and 3800 more problems"


def test_problem_lines_carry_no_escapes(loader: Any) -> None:
    for problem in loader.problems('"\u202ekey": 1\nname: "\u202e\U0001f4a9"\nout: "\\e[2J"\n'):
        assert problem.isprintable()


def test_the_api_is_as_strict_as_the_file() -> None:
    for build in (
        lambda: Config.model_validate({"seed": True}), lambda: BallConfig(eps=8.0),
        lambda: TrainConfig(epochs=1.0, steps=1), lambda: EvalConfig(n=1, first=1),
        lambda: DataConfig(name=""), lambda: Spec.of("pgd", steps=float("nan")),
        lambda: Spec.of("pgd", x={"y": object()}), lambda: Spec.of("a\nb"),
        lambda: Spec.of("pgd", x=["\x1b"]), lambda: ModelConfig.of("x", normalize="1,0"),
        lambda: Augment(crop=-1), lambda: Spec.of(""),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            build()


def test_sections_do_not_change_after_validation() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
    params = Spec.of("pgd", widths=[1]).params
    params["widths"].append(2)
    assert Spec.of("pgd", widths=[1]) == Spec.of("pgd", widths=[1]) and Config() == Config()
    spec = Spec.of("pgd", widths=[1])
    spec.params["widths"].append(2)
    assert spec.params == {"widths": [1]}


def test_default_length_is_ten_epochs() -> None:
    assert (
        TrainConfig().epochs == 10
        and TrainConfig(steps=3).epochs is None
        and TrainConfig(minutes=1).epochs is None
    )
    assert TrainConfig(epochs=None, steps=None).epochs == 10
