"""A user's code that fails or leaves: never a passed gate, never our bug, and its traceback is kept."""

import json
import subprocess
import sys

import pytest
import torch

import robustcli
from robustcli.cli.main import run
from robustcli.errors import UsageError
from robustcli.foreign import foreign_fault
from robustcli.store.status import read_status

NET = """
import sys
import torch
import typer
from torch import nn
import neighbour_that_fails

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 10)

    def forward(self, x):
        if len(x) > 3:  # the probe before the run shows three
            WHAT
        return self.fc(x.flatten(1))

class Below(nn.Sequential):
    def forward(self, x):
        return super().forward(x if len(x) < 2 else x[:, :0])

def net(): return Net()
threes = nn.Unflatten(0, (3, -1)), nn.Flatten(0, 1)
def of_torch(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 10), *threes)
def inherited(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 10), neighbour_that_fails.Last())
"""
NEIGHBOUR = """
from torch import nn
class Last(nn.Module):
    def forward(self, x):
        if len(x) > 1:
            raise RuntimeError("from the file beside it")
        return x
"""
#: A tenth of all images stands until the last attack.
ALWAYS_ZERO = """
import torch
from torch import nn
class Zero(nn.Module):
    def forward(self, x):
        return torch.eye(10)[:1].expand(len(x), 10) + 0 * x.flatten(1).sum(1, keepdim=True)
def zero(): return Zero()
"""
FAKE = ("data.name=fake", "data.size=8", "eval.n=4", "attacks=[fgsm]", "threads=1")
GATE = ("--fail-under", "robust_acc=0.99")


@pytest.fixture
def plugin(tmp_path):
    """Write the user's file, whose network does WHAT for more than three images; returns its path."""
    (tmp_path / "neighbour_that_fails.py").write_text(NEIGHBOUR)

    def write(what):
        (tmp_path / "net.py").write_text(NET.replace("WHAT", what))
        return tmp_path / "net.py"

    yield write
    sys.modules.pop("neighbour_that_fails", None)


LEAVES = ("sys.exit(0)", "sys.exit()", "sys.exit(1)", "sys.exit('done')", "raise typer.Exit(0)")
RAISES = (
    "raise BrokenPipeError",
    "raise KeyError('a')",
    "raise GeneratorExit",
    "x.view(7, -1)",
    "raise ValueError",
    "from robustcli.errors import RobustCliError; raise RobustCliError('mine')",
    "from robustcli.errors import Interrupted; raise Interrupted('mine', signum=2)",
)


@pytest.mark.parametrize("what", [*LEAVES, *RAISES])
def test_no_way_out_of_a_forward_passes_a_gate(cli, plugin, what):
    file = plugin(what)
    answer = cli("eval", *FAKE, *GATE, "--plugin", f"{file}:net", "--out", "out", "--json")
    assert answer.code == 2 and answer.document["error"]["code"] == "E-PLUGIN"
    assert answer.document["ok"] is False and "net.py:15" in answer.document["error"]["message"]
    status = read_status(file.parent / "out")
    assert (status["state"], status["code"]) == ("failed", 2)
    assert "net.py" in (file.parent / "out" / "crash.log").read_text()


@pytest.mark.parametrize(
    ("what", "code"), [("raise MemoryError", 6), ("raise KeyboardInterrupt", 130), ("pass", 1)]
)
def test_memory_signals_and_gates_stay_what_they_are(cli, plugin, what, code):
    assert cli("eval", *FAKE, *GATE, "--plugin", f"{plugin(what)}:net", "--out", "out").code == code


def test_a_run_of_its_own_name_stays_for_its_traceback(cli, plugin):
    file = plugin("sys.exit(0)")
    assert cli("train", *FAKE, "train.steps=2", "--plugin", f"{file}:net").code == 2
    (log,) = (file.parent / "runs" / "train").glob("*/crash.log")
    assert "SystemExit" in log.read_text()


def test_a_network_from_the_file_beside_the_plugin(cli, plugin):
    answer = cli("eval", *FAKE, "--plugin", f"{plugin('pass')}:inherited")
    assert answer.code == 2 and "neighbour_that_fails.py:6" in answer.err and "E-PLUGIN" in answer.err


def test_a_network_of_torch_alone_is_the_users(cli, plugin):
    """It takes three images, those of the probe, and no four."""
    answer = cli("eval", *FAKE, "--plugin", f"{plugin('pass')}:of_torch")
    assert answer.code == 2 and "E-PLUGIN" in answer.err


def test_what_leaves_at_the_first_images(cli, plugin):
    file = plugin("pass")
    file.write_text(
        file.read_text()
        .replace("len(x) > 3", "len(x) > 1")
        .replace("            pass", "            sys.exit(0)")
    )
    answer = cli("train", *FAKE, "--plugin", f"{file}:net")
    assert answer.code == 2 and "E-PLUGIN" in answer.err


@pytest.mark.parametrize("what", ["import sys; sys.exit(0)", "raise RuntimeError('mine')"])
@pytest.mark.parametrize("where", ["file", "factory", "search"])
def test_an_attack_that_leaves(cli, tmp_path, what, where):
    places = {place: what if place == where else "pass" for place in ("file", "factory", "search")}
    (tmp_path / "atk.py").write_text(
        f"{places['file']}\ndef mine(model):\n    {places['factory']}\n"
        f"    def search(x, y):\n        {places['search']}\n        return x\n    return search\n"
        + ALWAYS_ZERO
    )
    file = tmp_path / "atk.py"
    answer = cli("eval", *FAKE, "--n", "32", "--plugin", f"{file}:zero", "--attack-plugin", f"{file}:mine")
    assert answer.code == 2 and "E-PLUGIN" in answer.err and "atk.py" in answer.err


def test_python_callers_keep_their_program_when_a_network_leaves():
    class Leaves(torch.nn.Module):
        def forward(self, x):
            sys.exit(0)

    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    for call in (
        lambda: robustcli.evaluate(Leaves(), x, y, eps=0.1, attack="fgsm"),
        lambda: robustcli.attack(Leaves(), x, y, name="fgsm", eps=0.1),
        lambda: robustcli.assert_robust(Leaves(), x, y, eps=0.1, at_least=0.9),
    ):
        with pytest.raises(UsageError, match="SystemExit") as caught:
            call()
        assert caught.value.code == "E-PLUGIN"


def test_what_fails_in_our_own_code_is_our_bug():
    with pytest.raises(ZeroDivisionError) as caught:
        raise ZeroDivisionError
    assert foreign_fault(caught.value) is None


def test_nothing_but_a_gate_is_1(tmp_path):
    """A help text whose reader leaves, and a failure behind a full disk, as a shell sees them."""
    program = f"{sys.executable} -m robustcli"
    lines = (
        f"{program} train --help | head -n 1 > closed; echo ${{PIPESTATUS[0]}}",
        f"{program} --version > /dev/full; echo $?",
        f"{program} train nope --json > /dev/full; echo $?",
    )
    done = subprocess.run(
        ["bash", "-c", "; ".join(lines)], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.stdout.split() == ["0", "6", "2"] and "Traceback" not in done.stderr


@pytest.mark.parametrize("code", [0, 1, "0", 256, None])
def test_no_failure_carries_the_code_of_a_success_or_of_a_gate(capsys, monkeypatch, code):
    from robustcli.cli import verbs
    from robustcli.errors import RobustCliError

    class Odd(RobustCliError):
        exit_code = code

    def fails(call):
        raise Odd("x")

    monkeypatch.setattr("robustcli.cli.verbs.train.run", fails)
    assert verbs and run(["train", "--json"]) == 70
    assert json.loads(capsys.readouterr().out)["error"]["exit"] == 70
