"""Fine-tuning, evaluating and comparing what `latest` names.

The run of that moment is written down, and stays when `latest` moves.
"""

import os

import pytest
import yaml
from jobs_support import TINY

from robustcli.assembly.origin import followed, pinned

LATEST = "run:runs/train/latest"
QUICK = (*TINY, "train.steps=3", "train.validate_every=100", "train.save_every=2")
FINE = (
    "train", "data.name=fake", "data.size=8", "--model", LATEST, "adversary.steps=1", "train.batch_size=16",
    "train.save_every=2", "train.val_n=16", "train.validate_every=100", "train.val_attack.steps=1",
    "threads=1", "name=fine",
)  # fmt: skip


def model_of(path):
    return yaml.safe_load((path / "config.resolved.yaml").read_text())["model"]["name"]


@pytest.fixture
def source(cli):
    assert cli("train", *QUICK, "name=source").code == 0


def test_fine_tuning_from_latest_reads_one_source_to_the_end(source, cli, tmp_path):
    """The same command with --resume, when `latest` has become the run itself.

    Its verdict is that of a run which named the source.
    """
    first = cli(*FINE, "train.steps=4")
    assert first.code == 0, first.err
    run = tmp_path / "runs" / "train" / "fine-1"
    assert model_of(run) == "run:runs/train/source-1" and os.readlink(run.parent / "latest") == "fine-1"
    again = cli(*FINE, "train.steps=6", "train.schedule=constant", "--resume")
    assert again.code == 2 and "train.schedule" in again.err and "model" not in again.err, (
        "the model is the same, only the schedule is not"
    )
    again = cli(*FINE, "train.steps=6", "--resume")
    assert again.code == 0 and "resuming at step 4" in again.err, again.err
    assert (
        "going on with run:runs/train/source-1, as the run began; "
        "run:runs/train/latest is run:runs/train/fine-1 by now" in again.err
    )
    assert model_of(run) == "run:runs/train/source-1"
    other = cli(*FINE, "train.steps=6", "--resume", "--model", "run:runs/train/fine-1")
    assert other.code == 2 and "E-RESUME" in other.err and "model.name" in other.err


def test_all_seeds_start_from_one_source(source, cli, tmp_path):
    answer = cli(*FINE, "train.steps=2", "--seeds", "0,1")
    assert answer.code == 0, answer.err
    runs = tmp_path / "runs" / "train"
    assert {model_of(runs / f"fine-seed{seed}-1") for seed in (0, 1)} == {"run:runs/train/source-1"}
    again = cli(*FINE, "train.steps=3", "--seeds", "0,2", "--resume")
    assert again.code == 0, again.err
    assert {model_of(runs / f"fine-seed{seed}-1") for seed in (0, 2)} == {"run:runs/train/source-1"}


def test_what_measures_latest_says_which_run_that_was(source, cli, tmp_path):
    """eval, attack, bench and transfer; a resumed evaluation goes on with the model it began with."""
    small = ("--n", "8", "--attack", "fgsm", "eval.checks=0")
    for verb, words in (
        ("eval", ("--model", LATEST, *small)),
        ("attack", ("--model", LATEST, *small)),
        ("bench", ("--model", LATEST, "--smoke")),
    ):
        answer = cli(verb, *words, "--json")
        assert answer.code == 0, answer.err
        assert model_of(tmp_path / answer.document["run"]) == "run:runs/train/source-1", verb
    both = cli("transfer", "--models", f"{LATEST},small_cnn", *small, "--json")
    assert (
        both.code == 0
        and both.document["references"][0] == "run:runs/train/source-1"
        and both.document["models"][0] == "source-1"
    )
    assert cli("train", *QUICK, "name=later", "seed=1").code == 0
    again = cli("eval", "--model", LATEST, *small, "name=source", "--resume")
    assert again.code == 0 and "going on with run:runs/train/source-1" in again.err
    assert model_of(tmp_path / "runs" / "eval" / "source-1") == "run:runs/train/source-1"


def test_which_references_are_followed(tmp_path, monkeypatch):
    from robustcli.config.load import load_config
    from robustcli.config.overlay import parse_assignment

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/train/a-2").mkdir(parents=True)
    (tmp_path / "runs/train/latest").symlink_to("a-2")
    assert followed("run:runs/train/latest/checkpoints/best") == "run:runs/train/a-2/checkpoints/best"
    assert followed("runs/train/latest/x.safetensors") == "runs/train/a-2/x.safetensors"
    same = (
        "small_cnn",
        "torchvision:resnet50@V2",
        "run:./runs/train/a-2/",
        "run:latest",
        "net.py:factory",
        "run:runs/train/latest-1",
    )
    assert [followed(name) for name in same] == list(same)
    config = load_config(None, [parse_assignment("model.weights=runs/train/latest/w.npz", "test")]).config
    assert pinned(config).model.weights == "runs/train/a-2/w.npz" and pinned(config).model.name == "small_cnn"
    (tmp_path / "config.resolved.yaml").write_text(
        "model: {name: small_cnn, weights: elsewhere/train/a-1/w.npz}"
    )
    assert pinned(config, tmp_path).model.weights == "runs/train/a-2/w.npz", "that was another file"
    for text, expected in (
        ("model: {name: small_cnn, weights: runs/train/a-1/w.npz}", "a-1"),
        ("not: a: config", "a-2"),
    ):
        (tmp_path / "config.resolved.yaml").write_text(text)
        assert pinned(config, tmp_path).model.weights == f"runs/train/{expected}/w.npz"
