"""`robustcli.train`: what the verb does, for a program that goes on afterwards."""

import contextlib
import io
import json
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import cli
from jobs_support import TIMING, TINY
from matplotlib.figure import Figure
from PIL import Image

import robustcli
from robustcli.errors import ConfigError, RobustCliError, UsageError

__all__ = ["cli"]
NET = """from torch import nn


def net(num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))
"""
SETTINGS = {key: yaml.safe_load(text) for key, _, text in (word.partition("=") for word in TINY)}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """A picture takes longer than the training that it shows."""

    def save(figure, target, **options):
        Image.new("L", (8, 8)).save(target, format="PNG")

    monkeypatch.setattr(Figure, "savefig", save)


def process():
    """What a training sets in the whole process."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    kernels = cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision, matmul.fp32_precision
    draws = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    strict = torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    return torch.get_num_threads(), kernels, draws, handlers, strict, torch.is_grad_enabled()


def without_times(path):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").open()]
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def test_the_run_is_that_of_the_verb_and_nothing_else_changes(cli, monkeypatch):
    monkeypatch.delenv("ROBUSTCLI_NO_REPORT", raising=False)
    assert cli("train", *TINY, "train.steps=6", "--eps", "8/255", "--no-report", "--out", "verb").code == 0
    torch.set_num_threads(2)
    said, printed, before = [], io.StringIO(), process()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), torch.no_grad():
        more = {"train.steps": 6, "say": said.append}
        found = robustcli.train(**{**SETTINGS, **more}, eps=8 / 255, out="python")
        assert process() == (*before[:-1], False)
    assert process() == before and printed.getvalue() == ""
    assert any("training small_cnn" in line for line in said)
    assert found.run == Path("python") and without_times(found.run) == without_times(Path("verb"))
    assert "TrainRow" not in repr(found) and "Conv2d" not in repr(found)  # a notebook shows it
    told = json.loads(Path("verb/summary.json").read_text())
    assert (found.run / "report.html").is_file()
    assert found.best == told["best"] and found.last == told["last"] and found.steps == 6
    assert found.robust_acc == told["best"]["robust_acc"] and found.rows[-1].step == 6
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(found.model(x), robustcli.load_model("run:verb")(x)) and not found.model.training
    with pytest.raises(UsageError, match="not empty"):
        robustcli.train(SETTINGS, eps=8 / 255, out="python")
    again = robustcli.train(
        SETTINGS,
        eps=8 / 255,
        out="python",
        resume=True,
        report=False,
        train={"steps": 9},
        override_resume=["train.steps"],
    )
    assert again.steps == 9


def test_outside_the_main_thread_by_a_shipped_name_with_a_network_of_ones_own(cli):
    Path("net.py").write_text(
        "from torch import nn\ndef net(num_classes, width=4):\n    return nn.Sequential("
    )
    with Path("net.py").open("a") as file:
        file.write("nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))\n")
    found, before = [], process()

    def work():
        more = {"objective": "natural", "deterministic": True, "report": False}
        found.append(robustcli.train("smoke/digits", model="net.py:net", smoke=True, out="run", **more))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert process() == before and found[0].model.plugin.factory == "net" and found[0].steps == 12
    assert found[0].run == Path("run") and found[0].model(torch.rand(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ({"config": "nowhere"}, "E-CONFIG", "no such file"),
        ({"epz": 3}, "E-CONFIG", r"train\(\): epz: unknown key"),
        ({"config": {"ball": {"eps": 8}}}, "E-CONFIG", "did you mean 8/255"),
        ({"model": torch.nn.Linear(1, 1)}, "E-VALUE", "model=Linear is no setting"),
        ({"data": "folder:nowhere", "eps": 0.1}, "E-DATA", "nowhere"),
        ({"plugin": "net.py"}, "E-PLUGIN", "net.py"),
    ],
)
def test_failures_are_ours_and_say_where(cli, arguments, code, words):
    with pytest.raises(RobustCliError, match=words) as caught:
        robustcli.train(**arguments)
    assert caught.value.code == code and caught.value.exit_code in (2, 3)


def test_all_mistakes_come_at_once(cli):
    with pytest.raises(ConfigError) as caught:
        robustcli.train({"train": {"epoks": 2}}, eps=8, attacks=[{"name": "pdg"}])
    assert len(caught.value.problems) == 3
