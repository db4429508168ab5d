"""Defences in a configuration stand around any model that is measured."""

import json

import pytest

SMALL = (
    "--model",
    "small_cnn",
    "model.widths=[4]",
    "eval.n=24",
    "eval.checks=0",
    "attacks=[{name: pgd, steps: 2}]",
)
PLUGIN = """
from torch import nn
def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_purifier_changes_what_is_measured_and_the_hash_of_the_model(cli, tmp_path):
    found = {}
    for name, defences in (
        ("bare", "[]"),
        ("one", "[{name: bit_depth, bits: 1}]"),
        ("eight", "[{name: bit_depth, bits: 8}]"),
    ):
        answer = cli("eval", *SMALL, f"defences={defences}", "--out", name, "--json")
        assert answer.code == 0, answer.err
        found[name] = answer.document["clean_acc"], rows(tmp_path / name)[0]["hashes"]["model"]
    assert found["bare"][0] == found["eight"][0]
    assert len({digest for _, digest in found.values()}) == 3, "parameters of a defence are part of the model"


def test_a_users_model_is_guarded_too_and_attack_shows_its_images(cli, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = ("--plugin", "mine.py:net", "defences=[{name: bit_depth, bits: 3}]", "eval.n=8")
    answer = cli("attack", *words, "--steps", "2", "--json")
    assert answer.code == 0, answer.err
    assert (tmp_path / answer.document["run"] / "images").is_dir()


@pytest.mark.parametrize(
    ("defences", "said"),
    [
        ("[ensemble]", "has one network to ask"),
        ("[energy]", "the detector 'energy' has no threshold; defences.0; robustcli guard fit"),
        ("[bit_depth, energi]", "unknown defence 'energi'; did you mean 'energy'?"),
        ("[{name: bit_depth, bits: 9}]", "defences.0.bits"),
        ("[{name: bit_depth, members: [a]}]", "defences.0.members"),
    ],
)
def test_what_cannot_stand_there_is_one_line(cli, tmp_path, defences, said):
    answer = cli("eval", *SMALL, f"defences={defences}")
    assert answer.code == 2 and said in answer.err, answer.err
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))


def test_training_leaves_defences_aside(cli):
    answer = cli("train", "smoke/digits", "--smoke", "defences=[energy]", "--dry-run")
    assert answer.code == 0, answer.err
