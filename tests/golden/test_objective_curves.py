"""Ten steps of every objective, and of every regulariser over `madry`, against stored losses: a rewrite keeps
the numbers.

After a change that is meant to move them, or a new objective:  python tests/golden/test_objective_curves.py
It writes objective_curves.json. Say in the commit which curves moved and why.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.types import LossTerms
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

STORED = Path(__file__).with_name("objective_curves.json")
STEPS, ROWS, CLASSES = 10, 12, 3
REGISTERED = [
    *(f"objective {name}" for name in registry.objectives.names()),
    *(f"regularizer {name}" for name in registry.regularizers.names()),
]
CURVES = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}


def network(bounds=False):
    """Convolution, BatchNorm, a smooth activation: no kink where a rounding moves a gradient's sign.

    bounds: the activation has bounds, which Softplus has not.
    """
    torch.manual_seed(0)
    activation = nn.SiLU() if bounds else nn.Softplus()
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), activation, nn.Flatten(), nn.Linear(64, CLASSES)
    )


def with_term(term):
    madry = registry.objectives.get("madry").fn

    def objective(model, batch):
        terms = madry(model, batch)
        added = term(model, batch)
        return LossTerms(terms.total + added, {**terms.parts, "added": added.detach()})

    return objective


def view_of(entry):
    """What the attack sees in place of the model, with the defaults of the objective; None for the model."""
    view = entry.facts.view
    if view is None:
        return None
    defaults = {p.name: p.default for p in registry.parameters(entry.fn).values()}
    return partial(view, **{name: defaults[name] for name in registry.parameters(view)})


def curve(case):
    """[{total, parts}] of ten steps in float32 on one thread.

    The attack is PGD on whatever inner loss the objective names.
    """
    kind, _, name = case.partition(" ")
    entry = registry.objectives.get(name if kind == "objective" else "madry")
    objective = entry.fn if kind == "objective" else with_term(registry.regularizers.get(name).fn)
    g = torch.Generator().manual_seed(1)
    x, y = torch.rand(ROWS, 1, 4, 4, generator=g), torch.arange(ROWS) % CLASSES
    x[:, 0, 0] += y[:, None] * 0.4
    x.clamp_(0, 1)
    net = network(kind == "objective" and entry.facts.bounds)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        settings = StepSettings(
            net,
            objective,
            entry.facts.inner,
            lambda oracle, x, ball: pgd(oracle, x, ball, steps=3),
            Ball("linf", 0.1),
            optimizer,
            view=view_of(entry),
        )
        step = MinMax(settings)
        rows = []
        for number in range(STEPS):
            terms = step(x, y, torch.arange(ROWS), seed=0, epoch=number)
            rows.append(
                {
                    "total": float(terms.total.detach()),
                    **{part: float(value.detach()) for part, value in sorted(terms.parts.items())},
                }
            )
    finally:
        torch.set_num_threads(threads)
    return rows


@pytest.mark.parametrize("case", CURVES)
def test_the_curve_is_the_stored_one(case):
    got = curve(case)
    assert len(got) == STEPS and got == [pytest.approx(row, rel=1e-5, abs=1e-7) for row in CURVES[case]]


def test_a_method_without_a_stored_curve_descends_the_same_way_twice():
    for case in [case for case in REGISTERED if case not in CURVES]:
        got = curve(case)
        assert len(got) == STEPS and got == curve(case) and got[-1]["total"] < got[0]["total"], case


def test_the_stored_curves_are_of_registered_methods_and_tell_them_apart():
    assert set(CURVES) <= set(REGISTERED) and len(CURVES) >= 8
    ends = [rows[-1]["total"] for rows in CURVES.values()]
    assert len({round(end, 4) for end in ends}) == len(ends)
    assert all(rows[-1]["total"] < rows[0]["total"] for rows in CURVES.values())


if __name__ == "__main__":
    STORED.write_text(
        json.dumps({case: curve(case) for case in REGISTERED}, indent=1) + "\n", encoding="utf-8"
    )
