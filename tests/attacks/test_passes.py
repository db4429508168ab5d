"""What a registration states about cost is what the attack asks for, counted by the oracle."""

from __future__ import annotations

import pytest
import torch

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.evaluation.plan import AttackCall

ROWS = 3
#: Values for parameters of these names, whatever the attack: the first choice, and another one.
SMALL = {"steps": 3, "restarts": 1, "targets": 2, "draws": 1, "queries": 11, "binary_search": 2}
SMALL |= {"rounds": 2, "angles": 3, "shifts": 2, "classes": 3, "samples": 2, "copies": 2, "periods": 2}
OTHER = {"steps": 7, "restarts": 3, "targets": 9, "draws": 4, "skip": 1, "grid": True, "targeted": False}
OTHER |= {"rounds": 1, "queries": 5, "angles": 2, "shifts": 1, "classes": 9, "samples": 1, "copies": 3}
RADII = {"linf": 0.1, "l2": 0.5, "l1": 2.0, "l0": 3.0}
CASES = [
    (entry.name, norm, classes, wanted)
    for entry in registry.attacks
    for norm in entry.facts.norms
    for classes in (2, 5)
    for wanted in ("small", "other", "no target left", "climbing", "wide")
]


def parameters(name: str, wanted: str) -> dict[str, object]:
    """Parameters of the attack under these names."""
    own = registry.parameters(registry.attacks.get(name).fn)
    chosen: dict[str, object] = dict(OTHER if wanted == "other" else SMALL)
    if wanted == "no target left":
        chosen |= {"skip": 8, "loss": "dlr-targeted"}
    if wanted == "climbing":
        chosen |= {"loss": "dlr-targeted", "steps": 1}
    if wanted == "wide":
        chosen |= {"widest": 2.0, "loss": "dlr", "steps": 5}
    if name not in ("apgd",):
        chosen.pop("loss", None)
    return {key: value for key, value in chosen.items() if key in own}


class Unbroken(torch.nn.Module):
    """Logits with a slope everywhere, and class 0 far above the others."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = torch.randn(48, classes, generator=torch.Generator().manual_seed(0))
        self.lead = torch.zeros(classes)
        self.lead[0] = 1000.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ self.weight) + self.lead


@pytest.mark.parametrize(("name", "norm", "classes", "wanted"), CASES)
def test_a_survivor_costs_what_the_registration_states(name, norm, classes, wanted):
    model, x = Unbroken(classes), torch.rand(ROWS, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    call = AttackCall.of(registry.attacks.get(name), parameters(name, wanted))
    ids = torch.arange(ROWS)
    oracle = call.oracle(
        model,
        x,
        Criterion(torch.zeros(ROWS, dtype=torch.int64)),
        rng=RowRandom(0, "start", ids),
        watch=lambda rows, points: torch.zeros(len(rows), dtype=torch.bool),
        clean_logits=model(x),
        ball=Ball(norm, RADII[norm]),
    )
    call.points(oracle, x, Ball(norm, RADII[norm]))
    asked = oracle.forward_rows + oracle.backward_rows
    stated = call.passes(classes, norm) * ROWS
    assert asked <= stated
    facts = registry.attacks.get(name).facts  # one for guarded models asks less of any other model
    assert asked == stated or facts.ends_early or facts.guarded


def test_deepfool_states_the_most():
    """In a corner of the box every step is cut: both walks are made to the end."""
    model, x = Unbroken(4), torch.zeros(ROWS, 3, 4, 4)
    call = AttackCall.of(registry.attacks.get("deepfool"), {"steps": 5})
    ball = Ball("l2", 0.5)
    criterion = Criterion(torch.zeros(ROWS, dtype=torch.int64))
    rng = RowRandom(0, "start", torch.arange(ROWS))
    oracle = call.oracle(model, x, criterion, rng=rng, clean_logits=model(x), ball=ball)
    call.points(oracle, x, ball)
    assert oracle.forward_rows + oracle.backward_rows == call.passes(4, "l2") * ROWS


@pytest.mark.parametrize("name", [entry.name for entry in registry.attacks if entry.facts.guarded])
@pytest.mark.parametrize("wanted", ["small", "other"])
def test_on_a_guarded_model_they_cost_what_they_state(name, wanted):
    """The model rejects everything, and its class is never crossed."""
    net, x = Unbroken(4), torch.rand(ROWS, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    ball = Ball("linf", 0.1)

    def model(x):
        logits = net(x)
        return torch.cat([logits, logits.amax(1, keepdim=True) + x.mean((1, 2, 3))[:, None]], 1)

    call = AttackCall.of(registry.attacks.get(name), parameters(name, wanted))
    criterion = Criterion(torch.zeros(ROWS, dtype=torch.int64), reject=4)
    rng = RowRandom(0, "start", torch.arange(ROWS))
    oracle = call.oracle(model, x, criterion, rng=rng, clean_logits=model(x), ball=ball)
    call.points(oracle, x, ball)
    assert oracle.forward_rows + oracle.backward_rows == call.passes(4, "linf") * ROWS


def test_draws_multiply_and_unknown_costs_are_none():
    from robustcli.evaluation.plan import Search

    entry = registry.attacks.get("pgd")
    assert AttackCall.of(entry, {"steps": 20}).passes(10, "linf") == 41
    assert AttackCall.of(entry, {"steps": 20}, search=Search(draws=20)).passes(10, "linf") == 820
    assert AttackCall("mine", "mine.py", entry.fn, {}).passes(10, "linf") == 0


@pytest.mark.parametrize("entry", list(registry.attacks), ids=lambda entry: entry.name)
def test_training_asks_at_most_once_less(entry):
    """There nobody looks at the last point; an attack that asks for the clean point asks once more."""
    model, x = Unbroken(5), torch.rand(ROWS, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    norm = entry.facts.norms[0]
    call, ball = AttackCall.of(entry, parameters(entry.name, "small")), Ball(norm, RADII[norm])
    criterion = Criterion(torch.zeros(ROWS, dtype=torch.int64))
    oracle = Oracle(model, x, criterion, rng=RowRandom(0, "start", torch.arange(ROWS)))
    call.fn(oracle, x, ball, **call.params)
    asked, stated = oracle.forward_rows + oracle.backward_rows, call.passes(5, norm) * ROWS
    states_the_most = entry.facts.ends_early or entry.facts.guarded
    assert stated - ROWS <= asked <= stated or states_the_most
