"""`robustcli guard fit` and `guard:DIR`, as a user runs them."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from commands import run_in
from torch import nn

import robustcli
from robustcli import registry
from robustcli.assembly.lineage import class_order, lineage, trained_on
from robustcli.config.sections import DataConfig
from robustcli.defences.surrogate import straight

DEFENCES = "defences=[{name: bit_depth, bits: 5}, energy]"
PLUGIN = """
from torch import nn
def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""
QUICK = ("--steps", "2", "eval.n=24", "eval.checks=0", "--json")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A trained run and a guard around it, made once: runs/train/t-1, g."""
    folder = tmp_path_factory.mktemp("guard")
    run_in(
        folder,
        [
            "train",
            "train/digits_natural",
            "--name",
            "t",
            "train.steps=20",
            "model.widths=[8]",
            "train.validate_every=9",
            "-q",
        ],
        ["guard", "fit", "--model", "run:runs/train/t-1", DEFENCES, "--out", "g", "-q"],
    )
    return folder


@pytest.fixture
def made(base, tmp_path):
    """A copy of it in the working directory."""
    shutil.copytree(base, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def manifest(folder):
    return json.loads((folder / "guard.json").read_text())


def test_fit_says_what_it_found(cli, made):
    answer = cli("guard", "fit", "--model", "run:runs/train/t-1", DEFENCES, "--json")
    assert answer.code == 0, answer.err
    document = answer.document
    assert document["verb"] == "guard fit" and document["run"] == "runs/guard/t-1"
    kept = manifest(made / document["run"])
    assert [one["label"] for one in document["detectors"]] == kept["detectors"] == ["energy"]
    assert kept["calibration"] == document["calibration"] and kept["calibration"]["alarms"] <= 6
    assert kept["calibration"]["source"] == "validation images"
    assert document["test"]["clean_rejected"] <= 0.12
    assert len(kept["clean"]["energy"]) == 101 and kept["clean"]["energy"] == sorted(kept["clean"]["energy"])
    summary = (made / document["run"] / "summary.md").read_text()
    assert "| energy " in summary and kept["sha256"] in summary and "arXiv:2010.03759" in summary
    assert kept == manifest(made / "g") | {"created": kept["created"], "sha256": kept["sha256"]}


def test_a_detector_that_can_never_alarm_is_named(cli, made):
    """One network agrees with itself: its disagreement is always 0."""
    words = ("guard", "fit", "--model", "run:runs/train/t-1", "defences=[disagreement, feature_squeezing]")
    answer = cli(*words, "--json")
    assert answer.code == 0 and answer.err.count("can never alarm") == 1, answer.err
    assert "disagreement can never alarm" in answer.err
    never, other = answer.document["detectors"]
    assert never["threshold"] >= never["highest"] == 0 and other["threshold"] < other["highest"] == 2


def test_a_guard_is_measured_from_the_shell_and_from_python(cli, made):
    """Without a configuration data and attacks come from the fit; both ways are the same model."""
    answer = cli("eval", "--model", "guard:g", *QUICK)
    assert answer.code == 0, answer.err
    bare = cli("eval", "--model", "g", "attacks=[fgsm]", *QUICK[2:])  # a directory alone says it, too
    assert bare.code == 0 and bare.document["clean_acc"] == answer.document["clean_acc"]
    model = robustcli.load_model("guard:g")
    assert model.info.num_classes == model.reject == 10 and model.classes == tuple("0123456789")
    assert model.sha256 == manifest(made / "g")["sha256"]
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert model(x).shape == (5, 11)
    assert torch.equal(model(x), robustcli.load_model("guard:g")(x))


def test_the_fit_tells_the_order_of_classes_and_what_was_trained_on(made, monkeypatch):
    """So that own data without a test split are split for a guard as they were for its model."""
    monkeypatch.chdir(made)
    metas = lineage(["guard:g"])
    assert len(metas) == 2 and class_order(metas[:1]) == tuple("0123456789")  # the guard, and its run
    assert trained_on(metas[:1], DataConfig(name="digits"), "another digest")
    assert lineage(["guard:nowhere"]) == []


def test_attack_transfer_and_dry_run_take_a_guard(cli, made):
    for words in (
        ("attack", "--model", "guard:g", *QUICK),
        ("transfer", "--models", "guard:g,run:runs/train/t-1", "data.name=digits", *QUICK),
        ("eval", "--model", "guard:g", "--dry-run", *QUICK),
        ("eval", "--model", "guard:g", "--surrogate", "run:runs/train/t-1", *QUICK),
    ):
        answer = cli(*words)
        assert answer.code == 0, (words, answer.err)


def test_an_evaluation_goes_on_and_its_parts_are_merged(cli, made):
    words = ("eval", "--model", "guard:g", *QUICK, "eval.shard_size=12")
    whole = cli(*words, "--out", "whole")
    for part in (1, 2):
        assert cli(*words, "--shard", f"{part}/2", "--out", f"p{part}").code == 0
    merged = cli("eval", "--merge", "p1,p2", "--out", "merged", "--json")
    assert merged.code == 0, merged.err
    again = cli(*words, "--out", "p1", "--resume")
    keys = ("n", "clean_acc", "robust_acc")
    for answer in (merged, again):
        assert [answer.document[key] for key in keys] == [whole.document[key] for key in keys]
    other = cli("guard", "fit", "--model", "run:runs/train/t-1", "defences=[energy]", "--out", "h", "-q")
    assert other.code == 0
    refused = cli(
        "eval",
        "g/config.resolved.yaml",
        "--model",
        "guard:h",
        "defences=[]",
        *words[3:],
        "--out",
        "p1",
        "--resume",
    )
    assert refused.code == 2 and "model" in refused.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("train", "train/digits_natural", "--model", "guard:g"), 2, "which only measures"),
        (("eval", "--model", "guard:g", "--out", "g"), 2, "guard:g"),
        (("guard", "fit", "--model", "guard:g"), 2, "is fitted already"),
        (("eval", "eval/digits", "--model", "guard:g", "defences=[energy]"), 2, "its own defences"),
        (("eval", "eval/digits", "--model", "guard:g", "data={name: fake, size: 9}"), 3, "E-SHAPE"),
        (("eval", "eval/digits", "--model", "guard:nowhere"), 4, "E-CKPT-MISSING"),
        (("guard", "fit", "--model", "run:runs/train/t-1"), 2, "no defence to fit"),
        (("guard", "fit", "defences=[energy]"), 2, "no model to measure"),
        (
            ("guard", "fit", "--model", "run:runs/train/t-1", "defences=[energy]", "guard.fpr=0.001"),
            2,
            "999 are the fewest",
        ),
        (
            ("guard", "fit", "--model", "run:runs/train/t-1", "defences=[energy]", "data.val_fraction=0.3"),
            2,
            "split as its training did: data.val_fraction=0.1",
        ),
    ],
)
def test_what_cannot_be_is_one_line(cli, made, words, code, said):
    answer = cli(*words)
    assert answer.code == code and said in answer.err, answer.err
    assert not (made / "runs" / "guard").exists() or not list((made / "runs" / "guard").rglob("guard.json"))


def test_a_plugin_member_is_opened_with_its_plugin_alone(cli, made):
    (made / "mine.py").write_text(PLUGIN)
    fit = cli(
        "guard", "fit", "--plugin", "mine.py:net", "data.name=digits", "defences=[energy]", "--out", "p"
    )
    assert fit.code == 0, fit.err
    refused = cli("eval", "--model", "guard:p", *QUICK)
    assert refused.code in (2, 4) and "--plugin mine.py:net" in refused.err, refused.err
    taken = cli("eval", "--model", "guard:p", "--plugin", "mine.py:net", *QUICK)
    assert taken.code == 0, taken.err
    (made / "mine.py").write_text((made / "mine.py").read_text() + "# changed\n")
    assert cli("eval", "--model", "guard:p", "--plugin", "mine.py:net", *QUICK).code in (2, 4)


class Learned(nn.Module):
    """A detector with a network: squared distance to a learned mean image."""

    def shaped(self, shape, num_classes):
        self.mean = nn.Parameter(torch.zeros(shape))

    def loss(self, x):
        return (x - self.mean).square().mean()

    def forward(self, x, logits, net):
        return (x - self.mean).square().mean((1, 2, 3))


class Counted(nn.Module):
    """A purifier that keeps a statistic: x, clipped at the largest pixel that it was shown."""

    def __init__(self):
        super().__init__()
        self.register_buffer("most", torch.zeros(()))
        self.seen = 0

    def observe(self, x, y, logits, net):
        assert len(x) == len(y) == len(logits) and torch.equal(net.logits(x), logits)
        self.seen, self.most = self.seen + len(x), torch.maximum(self.most, x.max())

    def settle(self):
        self.most = self.most / 2

    def forward(self, x):
        return straight(x, x.clamp(max=self.most))


@pytest.fixture
def stand_ins(monkeypatch):
    registry.defences.names()
    monkeypatch.setattr(registry.defences, "_entries", dict(registry.defences._entries))
    facts = {"random": False, "differentiable": True, "use": "a test"}
    registry.defences.register("learned", kind="detector", fit="training", **facts)(lambda: Learned())
    registry.defences.register("counted", kind="purifier", fit="statistics", **facts)(lambda: Counted())


def test_networks_are_trained_and_statistics_kept(cli, made, stand_ins):
    words = ("guard", "fit", "--model", "run:runs/train/t-1", "defences=[learned, counted, energy]", "--json")
    answers = [cli(*words, "--out", f"s{k}", "guard.fit.lr=0.05", "guard.fit.epochs=3") for k in range(2)]
    assert all(answer.code == 0 for answer in answers), answers[0].err
    assert manifest(made / "s0")["files"] == manifest(made / "s1")["files"], "a fit repeats to the bit"
    model = robustcli.load_model("guard:s0")
    learned, counted = model.modules_by_label["learned"], model.modules_by_label["counted"]
    assert counted.most == 0.5 and model.detectors == ["learned", "energy"]
    assert 0.05 < learned.loss(torch.zeros(1, 1, 8, 8)) < 0.5
    calibration = answers[0].document["calibration"]
    assert (calibration["spread_n"], calibration["n"]) == (67, 68)
    unfitted = cli("eval", "--model", "run:runs/train/t-1", "defences=[counted]", *QUICK)
    assert unfitted.code == 2 and "the purifier 'counted' has not been fitted" in unfitted.err


def test_smoke_and_dry_run_are_quick_and_the_latter_writes_nothing(cli, made, stand_ins):
    words = ("guard", "fit", "--model", "run:runs/train/t-1", "defences=[learned]")
    planned = cli(*words, "--dry-run", "--json")
    assert planned.document["plan"]["steps"] == "learned: 2000" and not (made / "runs" / "guard").exists()
    assert cli(*words, "--smoke", "--dry-run", "--json").document["plan"]["steps"] == "learned: 3"


ALL = (
    "{name: denoiser, depth: 2, width: 2}",
    *("median", "{name: jpeg, quality: 90}", "{name: autoencoder, width: 2, code: 1}", "gaussian_noise"),
    *("random_resize_pad", "{name: reconstruction, width: 2, code: 1}", "feature_squeezing", "mahalanobis"),
    *(
        "energy",
        "disagreement",
        "noise_consistency",
        "{name: ensemble, members: [run:runs/train/latest], rule: abstain}",
    ),
)


def test_every_defence_is_fitted_together_and_opens_as_it_was(cli, made):
    """An ensemble takes its other networks along, and `latest` is written down as the run that it was."""
    names = {name.removeprefix("{name: ").partition(",")[0] for name in ALL}
    assert names | {"bit_depth"} == set(registry.defences.names())
    words = (
        "guard",
        "fit",
        "--model",
        "run:runs/train/t-1",
        f"defences=[{', '.join(ALL)}]",
        "guard.fit.steps=2",
        "guard.calibration.n=40",
    )
    fit = cli(*words, "eval.n=6", "--out", "all", "--json")
    assert fit.code == 0, fit.err
    assert manifest(made / "all")["defences"][-1]["params"]["members"] == ["run:runs/train/t-1"]
    shutil.rmtree(made / "runs" / "train")  # the artefact needs no run any more
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    answers = []
    for _ in range(2):
        model = robustcli.load_model("guard:all")
        torch.manual_seed(0)
        answers.append(model(x))
    assert len(model.members) == 2 and model.randomised
    assert torch.equal(*answers) and torch.isfinite(answers[0]).all()


def test_a_vote_works_without_a_fit_and_a_detector_that_needs_one_says_so(cli, made):
    vote = "defences=[{name: ensemble, members: [run:runs/train/t-1], rule: abstain}]"
    answer = cli("eval", "--model", "run:runs/train/t-1", vote, *QUICK)
    assert answer.code == 0, answer.err
    bare = cli("eval", "--model", "run:runs/train/t-1", "attacks=[fgsm]", *QUICK[2:])
    assert answer.document["clean_acc"] == bare.document["clean_acc"], "two equal networks never disagree"
    plans = [
        cli("eval", "--model", "run:runs/train/t-1", given, "--dry-run", *QUICK).document["plan"]
        for given in ("defences=[]", vote, "defences=[gaussian_noise]")
    ]
    alone, both, drawn = (plan["passes_per_image"] for plan in plans)
    assert (both, plans[1]["passes_per_answer"]) == (2 * alone, 2)
    assert drawn == 25 * 2 + 20 * (alone - 2), "gradients over 20 draws, 25 for each look of the judge"
    cases = {"members: [guard:g]": "a vote joins bare ones", "members: [run:nowhere]": "no such run"}
    for members, said in cases.items():
        refused = cli(
            "eval", "--model", "run:runs/train/t-1", f"defences=[{{name: ensemble, {members}}}]", *QUICK
        )
        assert refused.code in (2, 4) and said in refused.err, refused.err


def test_a_stopped_fit_leaves_no_guard(forked, made):
    wait, pid = forked(
        "guard",
        "fit",
        "--model",
        "run:runs/train/t-1",
        "defences=[reconstruction]",
        "guard.fit.steps=100000",
        "--out",
        "half",
    )
    end = time.monotonic() + 60
    while not (made / "half" / "env.json").exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)  # its steps begin
    os.kill(pid, signal.SIGTERM)
    assert wait(60) == 143, (made / "err.txt").read_text()
    assert (
        not (made / "half" / "guard.json").exists() and not (made / "half" / "weights.safetensors").exists()
    )
    assert json.loads((made / "half" / "status.json").read_text())["state"] == "preempted"
