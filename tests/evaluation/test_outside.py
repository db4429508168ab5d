"""Attacks of other libraries and of users: judged by us, counted, repeatable, and wrong in one line."""

import random
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.data.split import MemorySplit
from robustcli.errors import ConfigError, Interrupted, ResourceError, UsageError
from robustcli.evaluation.asked import Asked
from robustcli.evaluation.library import torchattacks_call
from robustcli.evaluation.outside import callable_call, load_outside
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.evaluation.robust import RobustEvaluation

CPU = torch.device("cpu")
PLAIN = Search(torch.float32, False, False)
DOCS = Path(__file__).resolve().parents[2] / "docs" / "outside-attacks.md"
peer = pytest.mark.skipif(find_spec("torchattacks") is None, reason="torchattacks is optional")


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
        ).eval()


@pytest.fixture(scope="module")
def split(net):
    pixels = torch.randint(
        0, 256, (40, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    with torch.no_grad():
        return MemorySplit(pixels, net(pixels.float() / 255).argmax(1), tuple("abcd"))


@pytest.fixture
def measure(net, split):
    def run(call, norm="linf", eps=0.03, search=PLAIN, stop=None, **more):
        plan = EvalPlan(Ball(norm, eps), [call], batch_size=40, search=search, **more)
        return RobustEvaluation(net, plan, stop=stop).run(split, torch.arange(len(split)), CPU)

    return run


@pytest.fixture
def ask(net, split):
    """Run a call on an oracle that remembers nothing; returns (x_adv, oracle)."""

    def run(call, norm="linf", eps=0.03, seed=0, **more):
        x, y, ids = next(iter(split.stream([torch.arange(40)], CPU)))
        oracle = Oracle(net, x, Criterion(y), rng=RowRandom(seed, "start", ids), **more)
        net.requires_grad_(False)
        return call.fn(oracle, x, Ball(norm, eps), **call.params), oracle

    return run


def state():
    numpy_state = np.random.get_state()
    return (
        torch.random.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpy_state[1].tobytes(),
        numpy_state[2],
    )


@peer
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_without_a_random_start_breaks_exactly_the_samples_that_ours_breaks(measure, norm):
    eps = 0.03 if norm == "linf" else 0.25
    ours = AttackCall(
        "pgd", "pgd", registry.attacks.get("pgd").fn, {"steps": 6, "step_size": eps / 4, "start": "zero"}
    )
    theirs = torchattacks_call(
        "torchattacks:PGD" if norm == "linf" else "torchattacks:PGDL2",
        {"steps": 6, "alpha": eps / 4, "random_start": False},
        norm,
    )
    first, second = measure(ours, norm, eps), measure(theirs, norm, eps)
    assert torch.equal(first.survivors, second.survivors) and 0 < int(first.survivors.sum()) < 40
    assert second.reliability == "ok" and list(second.stages) == [f"{theirs.name}-6"]


@peer
def test_every_pass_is_counted(ask):
    _, oracle = ask(torchattacks_call("torchattacks:PGD", {"steps": 3}, "linf"))
    assert (oracle.forward_rows, oracle.backward_rows) == (3 * 40, 3 * 40)
    _, oracle = ask(torchattacks_call("torchattacks:Square", {"n_queries": 5}, "linf"))
    assert oracle.forward_rows >= 5 * 30 and oracle.backward_rows == 0


@peer
@pytest.mark.parametrize("name", ["PGD", "Square", "APGD", "FAB"])
def test_a_run_repeats_and_leaves_the_global_generators_alone(ask, name):
    params = {"Square": {"n_queries": 20}}.get(name, {"steps": 3})
    call, before = torchattacks_call(f"torchattacks:{name}", params, "linf"), state()
    first = ask(call)[0]
    assert all(a == b for a, b in zip(state(), before, strict=True))
    torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(ask(call)[0], first)
    assert name == "FAB" or not torch.equal(ask(call, seed=1)[0], first), (
        "the plan's seed reaches it (one FAB run has no chance in it)"
    )


@peer
def test_a_channels_last_twin_serves_attacks_that_view_its_gradient(measure):
    result = measure(
        torchattacks_call("torchattacks:PGDL2", {"steps": 3, "alpha": 0.1}, "l2"),
        "l2",
        0.25,
        Search(torch.float32, True, True),
    )
    assert result.robust_acc < 1


@peer
@pytest.mark.parametrize(
    ("name", "norm", "kind", "needs"),
    [
        ("PGD", "linf", "fixed", "gradient"), ("CW", "l2", "minimal", "gradient"),
        ("DeepFool", "l2", "minimal", "gradient"), ("PIFGSM", "linf", "fixed", "gradient"),
        ("Square", "l2", "fixed", "scores"),
    ],
)  # fmt: skip
def test_kind_follows_from_the_constructor(name, norm, kind, needs):
    call = torchattacks_call(f"torchattacks:{name}", {}, norm)
    assert (call.kind, call.needs, call.name) == (kind, needs, f"torchattacks:{name}")


@peer
def test_a_minimal_attack_counts_where_its_closest_success_lies_in_the_ball(measure):
    call = torchattacks_call("torchattacks:DeepFool", {"steps": 20}, "l2")
    near, far = measure(call, "l2", 0.05), measure(call, "l2", 2.0)
    assert (
        near.robust_acc > far.robust_acc
        and near.reliability == "ok"
        and "outside-ball" not in [a.name for a in near.alarms]
    )


@peer
def test_the_number_of_classes_is_the_models(measure):
    assert (
        measure(torchattacks_call("torchattacks:APGDT", {"steps": 5}, "linf")).robust_acc < 1
    )  # with its default of 10 it fails


@peer
def test_yaml_values_become_numbers_of_the_right_kind():
    call = torchattacks_call(
        "torchattacks:PGD", {"alpha": "2/255", "steps": "10", "random_start": False}, "linf"
    )
    assert (
        call.params == {"alpha": 2 / 255, "steps": 10, "random_start": False}
        and type(call.params["steps"]) is int
        and call.label == "torchattacks:PGD-10"
    )


@peer
@pytest.mark.parametrize(
    ("name", "params", "norm", "problems"),
    [
        ("PDG", {}, "linf", [
            "attacks.0.name: torchattacks has no attack 'PDG'; did you mean 'PGD'? known: ",
        ]),
        ("", {}, "linf", ["attacks.0.name: torchattacks has no attack ''"]),
        ("PGDL2", {}, "linf", ["attacks.0.name: torchattacks:PGDL2 searches in l2, and ball.norm is linf"]),
        ("OnePixel", {}, "l2", ["attacks.0.name: torchattacks:OnePixel searches in l0, and ball.norm is l2"]),
        ("MultiAttack", {}, "linf", [
            "attacks.0.name: torchattacks:MultiAttack needs attacks, which no config can give",
        ]),
        ("PGD", {"alhpa": 1, "eps": 0.1, "steps": "x", "random_start": "yes"}, "linf", [
            "attacks.0.alhpa: no such parameter of torchattacks:PGD; did you mean 'alpha'?",
            "attacks.0.eps: comes from ball.eps; remove it here",
            "attacks.0.steps: expected a number", "attacks.0.random_start: expected true or false",
        ]),
    ],
)  # fmt: skip
def test_mistakes_in_a_spec_are_named_all_at_once(name, params, norm, problems):
    with pytest.raises(ConfigError) as caught:
        torchattacks_call(f"torchattacks:{name}", params, norm, "attacks.0")
    assert len(caught.value.problems) == len(problems), caught.value.problems
    assert all(got.startswith(start) for got, start in zip(caught.value.problems, problems, strict=True)), (
        caught.value.problems
    )


@pytest.mark.parametrize(
    ("missing", "words"), [("torchattacks", "torchattacks is not installed"), ("tqdm", "cannot be imported")]
)
def test_without_the_package_one_line_says_how_to_install_it(monkeypatch, missing, words):
    if missing == "torchattacks":
        monkeypatch.setitem(sys.modules, "torchattacks", None)
    else:

        def broken(name):
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

        monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ResourceError) as caught:
        torchattacks_call("torchattacks:PGD", {}, "linf")
    error = caught.value
    assert (
        (error.exit_code, error.code) == (6, "E-EXTRA")
        and words in error.what
        and error.hint.startswith("pip install --no-deps torchattacks")
    )
    assert missing == "torchattacks" or error.hint.endswith(missing)


@peer
def test_a_target_reaches_attacks_that_can_aim_and_is_refused_by_the_others(measure):
    aimed = measure(
        torchattacks_call("torchattacks:BIM", {"steps": 10, "alpha": 0.02}, "linf"), eps=0.2, target="random"
    )
    assert aimed.robust_acc < 1
    for call in (
        torchattacks_call("torchattacks:APGD", {"steps": 3}, "linf"),
        torchattacks_call("torchattacks:FAB", {"steps": 3}, "linf"),
    ):
        with pytest.raises(UsageError, match="no targeted search"):
            measure(call, target="random")
    with pytest.raises(UsageError, match="no targeted search"):
        measure(callable_call(lambda x, y: x, "mine"), target="random")


def test_no_library_can_reach_the_weights(net, split):
    oracle = Oracle(
        net,
        torch.rand(2, 3, 6, 6),
        Criterion(torch.zeros(2, dtype=torch.int64)),
        rng=RowRandom(0, "start", torch.arange(2)),
    )
    seen = Asked(oracle, torch.rand(2, 3, 6, 6))
    assert (
        sum(p.numel() for p in seen.parameters()) == 0
        and list(seen.buffers()) == []
        and not seen.training
        and net not in list(seen.modules())
    )
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(seen(x).sum(), x)
    assert grad.dtype is torch.float64 and torch.allclose(
        grad.float(), torch.autograd.functional.jacobian(lambda z: net(z).sum(), x.detach().float())
    )


def test_what_the_attack_claims_does_not_count(measure, split):
    same = measure(callable_call(lambda x, y: x.clone(), "idle"))
    assert same.robust_acc == same.clean_acc == 1
    cheat = measure(callable_call(lambda x, y: 1 - x, "cheat"))
    assert cheat.robust_acc == 1 and [a.name for a in cheat.alarms] == ["outside-ball"]
    array = measure(
        callable_call(
            lambda x, y: (x + 0.03 * torch.sign(torch.randn_like(x))).clamp(0, 1).double().numpy(), "array"
        )
    )
    assert array.robust_acc < 1 and array.reliability == "ok"
    repeated = measure(
        callable_call(
            lambda x, y: (x + 0.03 * torch.sign(torch.randn_like(x))).clamp(0, 1).double().numpy(), "array"
        )
    )
    assert torch.equal(array.survivors, repeated.survivors)


@pytest.mark.parametrize("write", ["y", "x", "both"])
@pytest.mark.parametrize("plugin", [False, True])
def test_an_attack_that_writes_into_what_it_is_given_moves_no_verdict(
    measure, split, tmp_path, write, plugin
):
    def attack(x, y):
        [t.zero_() for t in {"x": [x], "y": [y], "both": [x, y]}[write]]
        return x

    call, labels = callable_call(attack, "writes"), split.labels.clone()
    if plugin:
        body = {"x": "x.zero_()", "y": "y.zero_()", "both": "x.zero_(), y.zero_()"}[write]
        (tmp_path / "mine.py").write_text(f"def f(model):\n    return lambda x, y: [{body}] and x\n")
        call = load_outside(f"{tmp_path / 'mine.py'}:f")
    result = measure(call)
    assert result.robust_acc == result.clean_acc == 1 and torch.equal(split.labels, labels)
    assert [alarm.name for alarm in result.alarms] == ([] if write == "y" else ["outside-ball"])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x, y: (x, x), "returned tuple, not x_adv"),
        (lambda x, y: None, "returned NoneType"),
        (lambda x, y: x[:1], "expected (40, 3, 6, 6)"),
        (lambda x, y: 1 / 0, "mine failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrong_answer_is_one_line_with_the_attacks_name(measure, answer, words):
    with pytest.raises(UsageError) as caught:
        measure(callable_call(answer, "mine"))
    assert words in str(caught.value) and caught.value.code == "E-PLUGIN" and "mine" in caught.value.what
    assert "failed" not in words or "test_outside.py:" in caught.value.where


def test_what_an_attack_prints_stays_out_of_the_results(measure, capsys):
    measure(callable_call(lambda x, y: print("chatter") or x, "talks"))
    said = capsys.readouterr()
    assert said.out == "" and "chatter" in said.err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory: 3 bytes"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_not_blamed_on_the_attack(ask, error):
    def hungry(x, y):
        raise error

    with pytest.raises(type(error)) as caught:
        ask(callable_call(hungry, "hungry"))
    assert caught.value is error


@peer
def test_ctrl_c_stops_an_attack_in_the_middle(measure):
    left = [8]

    def stop():
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted("stopped", signum=2)

    with pytest.raises(Interrupted):
        measure(torchattacks_call("torchattacks:PGD", {"steps": 50}, "linf"), stop=stop)


def test_a_plugin_gets_the_model_and_the_ball_it_asks_for(measure, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def fgsm(model, eps, norm):\n"
        "    assert norm == 'linf'\n"
        "    def atk(x, y):\n"
        "        x = x.requires_grad_()\n"
        "        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), x)\n"
        "        return (x + eps * grad.sign()).clamp(0, 1)\n"
        "    return atk\n"
        "def plain(model):\n"
        "    return lambda x, y: x\n"
        "def lazy(model):\n"
        "    return model(3)\n"
        "def odd(model):\n"
        "    return 3\n"
    )
    ours = measure(AttackCall("fgsm", "fgsm", registry.attacks.get("fgsm").fn, {}))
    theirs = measure(load_outside(f"{file}:fgsm"))
    assert (
        torch.equal(ours.survivors, theirs.survivors)
        and theirs.passes_per_sample["fgsm"] >= 2
        and theirs.robust_acc < 1
    )
    assert measure(load_outside(f"{file}:plain")).robust_acc == 1
    for name, words in (("lazy", "failed: AttributeError"), ("odd", "returned int, not a function")):
        with pytest.raises(UsageError, match=words):
            measure(load_outside(f"{file}:{name}"))
    with pytest.raises(UsageError, match="did you mean 'fgsm'"):
        load_outside(f"{file}:fgsn")
    with pytest.raises(UsageError, match="no such plugin file"):
        load_outside(f"{tmp_path}/none.py:f")


def blocks():
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_documented_plugins_are_short_and_compile():
    assert len(blocks()) == 3
    for code in blocks():
        compile(code, str(DOCS), "exec")
        assert code.count("\n") <= 15


@peer
def test_the_documented_torchattacks_example_runs(capsys):
    with torch.random.fork_rng():
        exec(compile(blocks()[0], str(DOCS), "exec"), {"__name__": "example"})
    accuracy, reliability = capsys.readouterr().out.split()
    assert 0 <= float(accuracy) <= 1 and reliability in ("ok", "suspect")


@pytest.mark.parametrize(("package", "number"), [("foolbox", 1), ("art", 2)])
def test_the_documented_plugins_run(measure, tmp_path, package, number):
    pytest.importorskip(package)
    (tmp_path / "plugin.py").write_text(blocks()[number])
    result = measure(load_outside(f"{tmp_path / 'plugin.py'}:pgd"))
    assert result.robust_acc < 1 and result.reliability == "ok" and result.passes_per_sample["pgd"] > 20
