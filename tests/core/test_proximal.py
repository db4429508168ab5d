"""The proximal operators in a diagonal metric: nothing near them is better, and their ends are right."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.core.proximal import shrink

ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
NORMS = tuple(ORDER)


def value(z, r, h, c, norm):
    z, r, h, c = (t.double() for t in (z, r, h, c))
    return c[..., 0] * torch.linalg.vector_norm(z, ord=ORDER[norm], dim=-1) + 0.5 * (
        h * (z - r).square()
    ).sum(-1)


@settings(max_examples=60, deadline=None)
@given(norm=st.sampled_from(NORMS), seed=st.integers(0, 10**6), n=st.integers(1, 6))
def test_no_point_near_it_is_better(norm, seed, n):
    g = torch.Generator().manual_seed(seed)
    r, h = torch.randn(1, n, generator=g), 10 ** torch.randn(1, n, generator=g)
    c = 3 * torch.rand(1, 1, generator=g)
    z = shrink(r, h, c, norm)
    others = z + torch.cat([s * torch.randn(200, n, generator=g) for s in (0.3, 0.03, 0.003)])
    best = value(z, r, h, c, norm)
    assert (value(others, r, h, c, norm) >= best - 1e-5 * (1 + best)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_pulls_and_too_much_pulls(norm):
    r, h = torch.tensor([[0.5, -2.0, 0.0]]), torch.tensor([[1.0, 3.0, 2.0]])
    assert torch.allclose(shrink(r, h, torch.zeros(1, 1), norm), r)
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    edge = torch.linalg.vector_norm(h * r, ord=dual, dim=1, keepdim=True)
    assert torch.equal(shrink(r, h, 1.001 * edge, norm).abs(), torch.zeros(1, 3))
    assert shrink(r, h, 0.99 * edge, norm).abs().amax() > 0


@pytest.mark.parametrize("norm", NORMS)
def test_one_metric_for_all_has_the_textbook_answer(norm):
    r, c = torch.tensor([[3.0, -4.0]]), torch.tensor([[1.0]])
    expected = {"linf": [3.0, -3.0], "l2": [2.4, -3.2], "l1": [2.0, -3.0]}[norm]
    assert shrink(r, torch.ones(1, 2), c, norm)[0].tolist() == pytest.approx(expected, abs=1e-5)
