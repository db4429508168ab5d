"""SurFree: near the exact distance on a plane, never more queries than stated, directions as published."""

import pytest
import torch
from deciding import exact, far, median_after, searched

from robustcli.attacks.surfree import _cosines, _lowest, surfree
from robustcli.core.geometry import Ball


def test_it_comes_near_the_plane():
    oracle, x, x_adv, net, passes = searched("surfree", "l2", 500, share=1.0)
    ratio = far(x, x_adv, "l2") / exact(net, x, "l2")
    assert (ratio >= 0.9999).all() and (ratio < 1.3).all(), ratio
    assert passes <= 500 and oracle.passes == passes * 4
    assert median_after(oracle, 100) > median_after(oracle, 500)


@pytest.mark.parametrize("queries", [2, 3, 20, 57, 120])
def test_no_budget_is_exceeded_by_any_row(queries):
    oracle, *_, passes = searched("surfree", "l2", queries)
    assert passes <= queries
    assert all(int(spent.max()) <= queries - 1 for _, spent, _ in oracle.trace)


def test_rows_fall_alone():
    _, x, x_adv, _, passes = searched(
        "surfree", "l2", 600, eps=0.5, share=1.0, watch=lambda rows, points: torch.ones_like(rows) > 0
    )
    assert (far(x, x_adv, "l2") <= 0.5 * (1 + 1e-5)).all() and passes < 500


def test_a_row_alone_takes_the_same_way():
    together, alone = searched("surfree", "l2", 150)[2], searched("surfree", "l2", 150, rows=1)[2]
    assert torch.allclose(alone[0], together[0], atol=1e-4)


def test_the_transform_is_orthonormal_and_its_first_row_flat():
    table = _cosines(7, torch.zeros(1))
    assert torch.allclose(table @ table.T, torch.eye(7), atol=1e-6)
    assert table[0].std() < 1e-6
    mask = _lowest(0.5, torch.zeros(1, 1, 6, 6))
    assert mask.sum() == 18 and mask[0, :5].all() and not mask[5, 2:].any()


def test_bad_numbers_are_refused():
    for bad in ({"queries": 1}, {"angle": 61.0}, {"rho": 0.0}, {"share": 2.0}, {"past": -1}, {"widen": -1}):
        with pytest.raises(ValueError, match="outside its bounds"):
            surfree(None, torch.rand(1, 1, 2, 2), Ball("l2", 1), **bad)
