"""What attacks search on, and what they find: every fast path against the plain fp32 model."""

from copy import deepcopy
from typing import get_args

import pytest
import torch
from zoo import EPS, digits, honest

from robustcli import registry
from robustcli.assembly.attacks import make_search
from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.config.sections import SearchConfig
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.data.split import MemorySplit
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.evaluation.robust import RobustEvaluation

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COUNT = 192
FLIPS = 2  # of COUNT verdicts that another search may turn
PLAIN = Search().exact()


def network(device):
    return deepcopy(honest("bn")).to(device)


def images(device, count=COUNT):
    x, y = digits()
    return x[1400 : 1400 + count].to(device), y[1400 : 1400 + count].to(device)


def survivors(device, search, *, name="pgd", batch_size=64, **params):
    """bool [COUNT] on the CPU, of one attack; nothing that fell back to another search."""
    x, y = images("cpu")
    split = MemorySplit((x * 255).to(torch.uint8), y, tuple("0123456789"))
    call = AttackCall.of(registry.attacks.get(name), params)
    plan = EvalPlan(Ball("linf", EPS), [call], batch_size=batch_size, search=search)
    said = []
    found = RobustEvaluation(network(device), plan, say=said.append).run(split, torch.arange(COUNT), device)
    assert said == []
    return found.survivors.cpu()


def flips(one, other):
    return int((one != other).sum())


# ---- the twin ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_twin_agrees_with_its_model(device, dtype, channels_last):
    net, (x, _) = network(device), images(device, 32)
    twin = SearchTwin(net, dtype=dtype, channels_last=channels_last)
    assert twin.parity(x) == "" and len(twin.folded) == 2
    logits = twin(x)
    assert logits.dtype == torch.float32 and logits.device == x.device and not logits.requires_grad


def test_a_compiled_twin_agrees_at_every_batch_size(device, compiler):
    net, (x, _) = network(device), images(device, 33)
    twin = SearchTwin(net, compiled=True)
    for count in (33, 8, 5, 1):
        assert twin.parity(x[:count]) == ""


# ---- verdicts ----------------------------------------------------------------------------------------------


@pytest.fixture
def plain():
    """The verdicts of the plain fp32 search on the CPU, which all others are compared with."""
    found = survivors(torch.device("cpu"), PLAIN, steps=10)
    assert 10 < int(found.sum()) < COUNT - 10
    return found


@pytest.mark.parametrize("search", [PLAIN, Search()], ids=["plain", "folded"])
def test_a_device_gives_the_verdicts_of_the_cpu(device, plain, search):
    assert flips(survivors(device, search, steps=10), plain) <= FLIPS


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_a_search_in_low_precision_gives_the_verdicts_of_fp32(device, plain, dtype):
    assert flips(survivors(device, Search(dtype), steps=10), plain) <= FLIPS


@pytest.mark.parametrize("mode", get_args(SearchConfig.model_fields["compile"].annotation))
def test_every_way_to_run_the_copy_gives_the_verdicts_of_the_plain_one(device, compiler, plain, mode):
    """Whatever `search.compile` offers. Batches of 65 images leave a rest."""
    config = load_config(
        None,
        [
            parse_assignment(f"search.compile={mode}", "test"),
            parse_assignment("search.precision=fp32", "test"),
        ],
    ).config
    found = survivors(device, make_search(config, device), steps=10, batch_size=65)
    assert flips(found, plain) <= FLIPS


def test_growing_batches_change_no_verdict(device):
    growing, fixed = (survivors(device, PLAIN, steps=5, batch_size=size) for size in (None, 64))
    assert flips(growing, fixed) <= FLIPS


def test_the_same_search_twice_finds_the_same_points(device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    net, (x, y) = network(device), images(device, 32)
    found = []
    for _ in range(2):
        with frozen(net):
            oracle = Oracle(net, x, Criterion(y), rng=RowRandom(0, "start", torch.arange(32, device=device)))
            found.append(registry.attacks.get("pgd").fn(oracle, x, Ball("linf", EPS), steps=5))
    assert torch.equal(*found)


# ---- every attack ------------------------------------------------------------------------------------------

SHORT = {"steps": 3, "restarts": 1, "queries": 10, "draws": 2}
ATTACKS = [(entry.name, norm) for entry in registry.attacks for norm in entry.facts.norms]


@pytest.mark.parametrize(("name", "norm"), ATTACKS)
def test_every_attack_stays_on_the_device_and_in_its_ball(device, name, norm):
    entry, net, (x, y) = registry.attacks.get(name), network(device), images(device, 6)
    params = {key: value for key, value in SHORT.items() if key in registry.parameters(entry.fn)}
    call, ball = (
        AttackCall.of(entry, params),
        Ball(norm, {"linf": EPS, "l2": 1.0, "l1": 4.0, "l0": 3.0}[norm]),
    )
    with frozen(net):
        ids = torch.arange(6, device=device)
        oracle = call.oracle(net, x, Criterion(y), rng=RowRandom(0, "start", ids), ball=ball)
        x_adv = call.points(oracle, x, ball)
    assert x_adv.device == x.device and x_adv.shape == x.shape and not x_adv.requires_grad
    assert not call.bounded or ball.contains(x, x_adv).all()
