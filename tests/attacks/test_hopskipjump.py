"""HopSkipJump: near the exact distance on a plane, never more queries than stated, rows apart."""

import pytest
import torch
from deciding import exact, far, images, median_after, searched

from robustcli.attacks.hopskipjump import hopskipjump
from robustcli.core.geometry import Ball


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_comes_near_the_plane_in_both_norms(norm):
    oracle, x, x_adv, net, passes = searched("hopskipjump", norm, 1500)
    ratio = far(x, x_adv, norm) / exact(net, x, norm)
    assert (ratio >= 0.9999).all() and (ratio < 1.12).all(), ratio
    assert passes <= 1500 and oracle.passes == passes * 4
    assert median_after(oracle, 100) > median_after(oracle, 1500)


@pytest.mark.parametrize("queries", [2, 3, 20, 57, 120])
def test_no_budget_is_exceeded_by_any_row(queries):
    oracle, *_, passes = searched("hopskipjump", "l2", queries)
    assert passes <= queries
    assert all(int(spent.max()) <= queries - 1 for _, spent, _ in oracle.trace)


def test_rows_wait_for_nobody_and_fall_alone():
    fallen = []

    def watch(rows, points):
        fallen.extend(rows.tolist())
        return torch.ones(len(rows), dtype=torch.bool)

    _, x, x_adv, net, passes = searched("hopskipjump", "l2", 400, eps=0.4, watch=watch)
    assert sorted(fallen) == [0, 1, 2, 3] and passes < 250
    assert (far(x, x_adv, "l2") <= 0.4 * (1 + 1e-5)).all() and (
        net(x_adv).argmax(1) != net(x).argmax(1)
    ).all()


def test_a_row_alone_takes_the_same_way():
    together = searched("hopskipjump", "l2", 150)[2]
    net, x, y = images()
    alone = searched("hopskipjump", "l2", 150, rows=1)[2]
    assert torch.allclose(alone[0], together[0], atol=1e-4)


def test_bad_numbers_are_refused():
    for bad in ({"queries": 1}, {"first": 0}, {"gamma": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            hopskipjump(None, torch.rand(1, 1, 2, 2), Ball("l2", 1), **bad)
