"""A user's network: every record names its code, and only that code repeats the run."""

import hashlib
import json

import pytest
import yaml
from jobs_support import final_state, same

NET = """
from torch import nn
def mine(num_classes, hidden=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, hidden), nn.Tanh(), nn.Linear(hidden, num_classes))
"""
DATA = ("data.name=fake", "data.size=8", "threads=1")
TRAIN = (
    *DATA,
    "train.steps=2",
    "train.batch_size=16",
    "train.val_n=8",
    "adversary=fgsm",
    "train.val_attack=fgsm",
)
NONE_GIVEN = {
    **{"name": "plugin:mine", "weights": None, "normalize": None, "weights_kind": "auto"},
    **{"labels_only": False, "timeout": 30},
}
EVAL = (*DATA, "eval.n=8", "attacks=[fgsm]")


@pytest.fixture
def net(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(NET)
    return file


def record(file):
    return {"file": "net.py", "factory": "mine", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def resolved(run):
    return yaml.safe_load((run / "config.resolved.yaml").read_text())["model"]


def test_a_training_is_recorded_and_repeated_by_its_code_alone(cli, net, tmp_path):
    trained = cli("train", *TRAIN, "--plugin", f"{net}:mine", "--out", "a")
    assert trained.code == 0 and f"robustcli eval --model run:a --plugin {net}:mine " in trained.err
    a, label = tmp_path / "a", f"net.py:mine@{record(net)['sha256'][:12]}"
    assert resolved(a) == {**NONE_GIVEN, "plugin": record(net)}
    manifests = [json.loads(path.read_text()) for path in a.glob("checkpoints/step-*/manifest.json")]
    assert manifests and all(m["meta"]["model"]["plugin"] == record(net) for m in manifests)
    assert label in (a / "summary.md").read_text() and label in (a / "metrics.jsonl").read_text()
    for file in a.rglob("*"):
        if file.suffix in (".yaml", ".json", ".jsonl", ".md", ".txt", ".csv"):
            assert "small_cnn" not in file.read_text(), file
    again = ("train", a / "config.resolved.yaml")
    refused = cli(*again, "--out", "b")
    assert refused.code == 2 and "add --plugin net.py:mine" in refused.err and not (tmp_path / "b").exists()
    assert cli(*again, "--plugin", "net.py:mine", "--out", "b").code == 0
    same(final_state(tmp_path / "b"), final_state(a))
    assert resolved(tmp_path / "b") == resolved(a)
    net.write_text(NET + "# another text\n")
    changed = cli(*again, "--plugin", "net.py:mine", "--out", "c")
    assert changed.code == 2 and "model.plugin=null" in changed.err
    assert cli(*again, "--plugin", "net.py:mine", "model.plugin=null", "--out", "c").code == 0
    assert resolved(tmp_path / "c")["plugin"] == record(net)
    resumed = cli("train", *TRAIN, "--plugin", "net.py:mine", "--out", "a", "--resume", "train.steps=4")
    assert resumed.code == 2 and "model.plugin.sha256" in resumed.err


def test_a_trained_network_is_measured_by_its_code_alone(cli, net, tmp_path):
    assert cli("train", *TRAIN, "--plugin", f"{net}:mine", "--out", "a").code == 0
    measure = ("eval", "--model", "run:a", "attacks=[fgsm]", "eval.n=8")
    refused = cli(*measure)
    assert refused.code == 4 and "pass --plugin net.py:mine" in refused.err
    assert cli(*measure, "--plugin", "net.py:mine", "--out", "e").code == 0
    assert resolved(tmp_path / "e")["plugin"] == record(net)
    assert "net.py:mine@" in (tmp_path / "e" / "results.csv").read_text()
    net.write_text(NET.replace("Tanh", "ReLU"))  # the weights fit, the network is another
    changed = cli(*measure, "--plugin", "net.py:mine")
    assert changed.code == 4 and "E-CKPT-ARCH" in changed.err and "--model" in changed.err


@pytest.mark.parametrize("said", ["--plugin=net.py:mine", "--model=net.py:mine", "model.name=net.py:mine"])
def test_all_spellings_are_one(cli, net, tmp_path, said):
    assert cli("eval", *EVAL, said, "model.hidden=3", "--out", "e").code == 0
    assert resolved(tmp_path / "e") == {**NONE_GIVEN, "plugin": record(net), "hidden": 3}
    rows = (tmp_path / "e" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(row)["model"] for row in rows} == {f"net.py:mine@{record(net)['sha256'][:12]}"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("eval", "--plugin", "net.py"), ("E-PLUGIN", "mine", "net.py:mine")),
        (("train", "--plugin", "net.py"), ("E-PLUGIN", "mine")),
        (("bench", "--model", "net.py"), ("E-PLUGIN", "mine")),
        (("eval", "--plugin", "net.py:mien"), ("E-PLUGIN", "mine")),
        (("eval", "--plugin", "net.py:mine", "--model", "resnet18"), ("two networks",)),
        (("eval", "--plugin", "net.py:mine", "--model", "net.py:mine"), ("two networks",)),
        (("eval", "--plugin", "no.py:mine"), ("no.py",)),
        (("eval",), ("E-MODEL", "--model")),
        (("attack",), ("E-MODEL", "--model")),
        (("eval", "--dry-run"), ("E-MODEL",)),
    ],
)
def test_what_would_measure_another_network_is_refused(cli, net, tmp_path, argv, words):
    answer = cli(*argv, *DATA, "--name", "x")
    assert answer.code == 2 and all(word in answer.err for word in words), answer.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("said", ["--plugin=net.py:mine", "--model=net.py:mine"])
def test_a_run_of_another_network_is_not_measured_in_place_of_the_users(cli, net, tmp_path, said):
    import torch
    from safetensors.torch import save_file

    assert cli("train", *TRAIN, "model=mlp", "--out", "theirs").code == 0
    (tmp_path / "c.yaml").write_text("data: {name: fake, size: 8}\nmodel: run:theirs\n")
    for verb in ("eval", "gate"):
        answer = cli(verb, "c.yaml", *EVAL, "thresholds.clean_acc.min=0", said, "--out", verb)
        assert answer.code == 2 and "the network of run:theirs is mlp, which net.py:mine" in answer.err
    space = {}
    exec(NET, space)
    save_file(space["mine"](10).state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(0)
    assert cli("eval", "c.yaml", *EVAL, said, "--weights", "w.safetensors", "--out", "mine").code == 0
    assert resolved(tmp_path / "mine")["name"] == "plugin:mine"


def test_weights_that_a_configuration_names_go_into_the_users_network(cli, net, tmp_path):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(3)
    space = {}
    exec(NET, space)
    save_file(space["mine"](10).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "c.yaml").write_text(
        "data: {name: fake, size: 8}\nmodel: {name: mlp, weights: w.safetensors}\n"
    )
    assert cli("eval", "c.yaml", *EVAL, "--plugin", "net.py:mine", "--out", "a").code == 0
    assert cli("eval", *EVAL, "--plugin", "net.py:mine", "--model", "w.safetensors", "--out", "b").code == 0
    rows = [json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[0]) for run in "ab"]
    assert rows[0]["hashes"]["model"] == rows[1]["hashes"]["model"]
    assert resolved(tmp_path / "a")["weights"] == "w.safetensors"


def test_a_users_network_beside_others_is_told_the_classes_and_named(cli, net, tmp_path):
    assert cli("train", *TRAIN, "model.name=mlp", "--out", "a").code == 0
    rest = ("attacks=[fgsm]", "eval.n=16", "threads=1")
    assert cli("eval", "--model", "a", "--surrogate", "net.py:mine", *rest, "--out", "s").code == 0
    answer = cli("transfer", "--models", "a,net.py:mine", *rest, "--out", "t")
    assert answer.code == 0, answer.err
    rows = (tmp_path / "t" / "transfer.jsonl").read_text()
    assert f"net.py:mine@{record(net)['sha256'][:12]}" in rows and '"run:a"' in rows
