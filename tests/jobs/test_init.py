"""`robustcli init`: files of which each works as it was written."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

NET = """from torch import nn


def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
"""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """A picture takes longer than the training that it shows."""

    def save(figure, target, **options):
        Image.new("L", (8, 8)).save(target, format="PNG")

    monkeypatch.setattr(Figure, "savefig", save)


def photos(folder, size=(8, 8)):
    """folder/{train,test}/{ant,bee}: 40 images."""
    draw = np.random.default_rng(0)
    for split, count in {"train": 16, "test": 4}.items():
        for name in ("ant", "bee"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def steps(workflow):
    """The commands of robustcli in a workflow, as words."""
    jobs = yaml.safe_load(Path(workflow).read_text())["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    return [shlex.split(line)[1:] for line in lines if line.startswith("robustcli ")]


def test_images_in_the_directory_are_found_and_all_files_work(cli):
    photos(Path("photos"))
    Path("src").mkdir()
    answer = cli("init", "--gitlab", "--json")
    assert answer.code == 0, answer.err
    assert "found in photos: 2 classes, 32 train, 8 test images, all 8x8" in answer.err
    told = answer.document
    assert told["found"] == {"images": {"train": 32, "test": 8}, "classes": ["ant", "bee"]}
    assert told["files"] == ["robustness.yaml", ".github/workflows/robustness.yml", ".gitlab/robustness.yml"]
    config = yaml.safe_load(Path("robustness.yaml").read_text())
    assert config["data"] == {"name": "folder:photos", "val_fraction": 0.1}
    assert (
        config["ball"] == {"norm": "linf", "eps": "8/255"} and "robust_acc@linf:8/255" in config["thresholds"]
    )
    commands = steps(".github/workflows/robustness.yml")
    assert [words[0] for words in commands] == ["config", "data", "train", "train", "gate"]
    for words in commands[:3]:  # the job "smoke", as it stands
        done = cli(*words, *(["--no-report"] if words[0] == "train" else []))
        assert done.code == 0, done.err
    planned = cli(*commands[4], "--model", "run:runs/smoke", "--dry-run")  # the gate, of the tiny model
    assert planned.code == 0, planned.err
    jobs = yaml.safe_load(Path(".gitlab/robustness.yml").read_text())
    said = [*jobs["robustness-smoke"]["script"], *jobs["robustness-gate"]["script"]]
    assert [shlex.split(line)[1:] for line in said] == commands


def test_what_is_there_stays(cli):
    assert cli("init").code == 0
    Path("robustness.yaml").write_text("mine")
    refused = cli("init")
    assert refused.code == 2 and refused.err.count("\n") == 1 and "robustness.yaml and .github" in refused.err
    assert Path("robustness.yaml").read_text() == "mine"
    assert cli("init", "--overwrite").code == 0 and Path("robustness.yaml").read_text() != "mine"
    assert cli("init", "--gitlab").code == 2, "half of the files would be new"
    Path("file").write_text("")
    assert "it is a file" in cli("init", "file").err


def test_options_are_filled_in_and_a_network_of_ones_own_is_named_by_every_command(cli):
    Path("my project").mkdir()
    Path("my project/net.py").write_text(NET)
    photos(Path("my project/some images"))
    plugin = ("--plugin", "my project/net.py:net")
    answer = cli("init", "my project", *plugin, "--data", "folder:my project/some images", "--norm", "l2")
    assert answer.code == 0 and "outside of the project" not in answer.err, answer.err
    text = Path("my project/robustness.yaml").read_text()
    config = yaml.safe_load(text)
    assert config["data"]["name"] == "folder:some images" and config["model"] == {"name": "plugin:net"}
    assert config["ball"] == {"norm": "l2", "eps": 0.5} and "robust_acc@l2:0.5" in config["thresholds"]
    commands = steps("my project/.github/workflows/robustness.yml")
    assert all("net.py:net" in words for words in commands if words[0] in ("train", "gate"))
    assert "# robustcli train robustness.yaml --plugin net.py:net\n" in text
    away = cli("init", "other", *plugin, "--data", "folder:my project/some images")
    assert away.code == 0 and away.err.count("lies outside of the project") == 2


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ((), {"data": "digits", "model": "small_cnn", "eps": 0.1}),
        (("--data", "cifar10", "--eps", "4/255"), {"data": "cifar10", "eps": "4/255"}),
        (("--data", "cifar10", "--model", "wide_resnet"), {"model": "wide_resnet", "eps": "8/255"}),
        (("--model", "torchvision:resnet18@DEFAULT"), {"model": "torchvision:resnet18@DEFAULT"}),
    ],
)
def test_what_is_said_stands_in_a_valid_file(cli, words, kept):
    answer = cli("init", "new", *words)
    assert answer.code == 0, answer.err
    config = yaml.safe_load(Path("new/robustness.yaml").read_text())
    found = {"data": config["data"]["name"], "model": config["model"]["name"], "eps": config["ball"]["eps"]}
    assert {key: found[key] for key in kept} == kept
    assert cli("config", "validate", "new/robustness.yaml").code == 0
    trained = "torchvision" in str(words)
    workflow = Path("new/.github/workflows/robustness.yml").read_text()
    assert ("workflow_dispatch'" not in workflow) == trained and not re.search(r"@[A-Z]+@", workflow)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--eps", "8"), "did you mean 8/255"),
        (("--model", "resnt18"), "did you mean 'resnet18'"),
        (("a", "b"), "one directory, please"),
        (("--plugin", "net.py:net"), "net.py"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(cli, words, told):
    answer = cli("init", *words)
    assert answer.code == 2 and told in answer.err and list(Path().iterdir()) == []


def test_large_images_and_folders_that_are_no_data_set(cli):
    photos(Path("data"), size=(90, 120))
    Path("proj/.git").mkdir(parents=True)
    photos(Path("proj/sub/odd/one"), size=(8, 8))
    photos(Path("proj/sub/odd/two"), size=(8, 8))
    assert cli("init").code == 0
    config = yaml.safe_load(Path("robustness.yaml").read_text())
    assert config["data"]["size"] == 64 and config["model"]["name"] == "preact_resnet18"
    answer = cli("init", "proj/sub")
    assert (
        answer.code == 0 and "working-directory: sub" in answer.err and "none were found here" in answer.err
    )
