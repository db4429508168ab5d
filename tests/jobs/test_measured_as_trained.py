"""`--model run:X` without a CONFIG: what is measured comes from the run, how and where from the call."""

import pytest
import yaml
from jobs_support import TINY

from robustcli.cli.call import OF_THE_CALL
from robustcli.config.load import load_config
from robustcli.config.schema import known_keys

SEARCH = {"precision": "fp32", "fold_bn": False, "channels_last": False, "compile": "off"}
TRAINED = {
    "seed": 3, "threads": 1, "device": "cpu", "deterministic": True, "search": {**SEARCH, "eot": 2},
    "eval": {"n": 12, "checks": 0},
    "data": {"workers": 0, "storage": "memory", "timeout": 7.0, "download": True, "split_seed": 5},
    "ball": {"eps": 0.03}, "attacks": [{"name": "fgsm"}],
}  # fmt: skip
RUN = ("eval", "--model", "run:model")


@pytest.fixture
def model(cli, tmp_path):
    (tmp_path / "trained.yaml").write_text(yaml.safe_dump({**TRAINED, "name": "mine"}))
    assert (
        cli(
            "train",
            "trained.yaml",
            *(word for word in TINY if word != "threads=1"),
            "train.steps=2",
            "--out",
            "model",
        ).code
        == 0
    )


def resolved(cli, tmp_path, *words):
    answer = cli(*words, "--json")
    assert answer.code == 0, answer.err
    return yaml.safe_load((tmp_path / answer.document["run"] / "config.resolved.yaml").read_text())


def test_the_machine_and_the_call_are_not_those_of_the_training(model, cli, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("robustcli.assembly.setting.threads", asked.append)
    found, default = (
        resolved(cli, tmp_path, *RUN),
        load_config(None, bind=False).config.model_dump(mode="json"),
    )
    for key in OF_THE_CALL:
        first, _, second = key.partition(".")
        assert (
            (found[first][second] == default[first][second]) if second else (found[first] == default[first])
        ), key
    assert asked == [None] and found["threads"] is None
    assert (
        found["ball"]["eps"] == 0.03 and found["data"]["name"] == "fake" and found["data"]["split_seed"] == 5
    )
    assert (
        [spec["name"] for spec in found["attacks"]] == ["fgsm"]
        and found["eval"]["n"] == 12
        and found["search"]["eot"] == 2
        and found["name"] == "mine"
    )


def test_what_the_call_says_counts_and_so_does_the_environment(model, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTCLI_SEARCH__PRECISION", "fp32")
    found = resolved(
        cli, tmp_path, *RUN, "--threads", "1", "--seed", "4", "data.timeout=9", "--norm", "l2", "--eps", "0.5"
    )
    assert (found["threads"], found["seed"], found["data"]["timeout"], found["search"]["precision"]) == (
        1,
        4,
        9.0,
        "fp32",
    )
    assert found["ball"]["norm"] == "l2"


def test_a_config_that_is_named_counts_whole(model, cli, tmp_path):
    found = resolved(cli, tmp_path, "eval", "model/config.resolved.yaml", "--model", "run:model")
    assert (found["threads"], found["seed"], found["data"]["timeout"], found["search"]["precision"]) == (
        1,
        3,
        7.0,
        "fp32",
    )


def test_every_such_key_is_one():
    known = {".".join((*path, key)) for path, keys in known_keys().items() for key in keys}
    assert set(OF_THE_CALL) <= known
