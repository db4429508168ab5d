"""`robustcli.certify`: proof and attack of the same tensors in one call."""

from pathlib import Path

import pytest
import torch
from torch import nn

import robustcli
from robustcli.certificates.smoothing import Smoothing
from robustcli.errors import UnreliableError


class Halves(nn.Module):
    """Class 1 where the mean of 4 pixels is above 1/2: its boundary is |mean - 1/2| away in linf."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)
        with torch.no_grad():
            self.net.weight.copy_(torch.tensor([[-5.0], [5.0]]).expand(2, 4))
            self.net.bias.copy_(torch.tensor([10.0, -10.0]))

    def forward(self, x):
        return self.net(x.flatten(1))


DISTANCES = (0.015, 0.03, 0.06, 0.2)


def images():
    x = (0.5 + torch.tensor(DISTANCES))[:, None, None, None].expand(4, 1, 2, 2).contiguous()
    return x, torch.ones(4, dtype=torch.int64)


def test_bounds_of_a_linear_network_are_exact():
    found = robustcli.certify(Halves(), *images(), eps=0.1, radii=[0.02, 0.05], device="cpu")
    assert found.method == "cascade" and found.radii == (0.02, 0.05, 0.1)
    assert "CertificateRow" not in repr(found)  # a notebook shows it
    assert found.certified_acc == found.attacked_acc == [0.75, 0.5, 0.25]
    assert found.robust_acc == 0.25 and found.clean_acc == 1 and found.reliability == "ok"
    assert found.acr == pytest.approx((0.02 + 0.05 + 0.1) / 4)
    assert [row.status for row in found.rows] == ["falsified"] * 3 + ["verified"]


def last(z):
    """The only logit of each image, [B]."""
    return z[:, 1] - z[:, 0]


@pytest.mark.parametrize(
    "head", [lambda z: {"logits": z, "seen": 1}, last, lambda z: (last(z) + 9).relu() - 9]
)
def test_a_network_that_answers_in_its_own_way_has_bounds(head):
    class Wrapped(Halves):
        def forward(self, x):
            return head(super().forward(x))

    found = robustcli.certify(Wrapped(), *images(), eps=0.1, radii=[0.02, 0.05], device="cpu")
    assert found.method == "cascade" and found.certified_acc == [0.75, 0.5, 0.25]


def test_sigma_means_smoothing_and_l1_has_uniform_noise():
    few = {"n": 500, "n0": 50, "steps": 2, "device": "cpu"}
    for norm, length in (("l2", 2.0), ("l1", 4.0)):
        found = robustcli.certify(Halves(), *images(), eps=0.1, norm=norm, radii=[0.05], sigma=0.1, **few)
        assert found.method == "smoothing" and found.norm == norm
        for row, distance in zip(found.rows, DISTANCES, strict=True):
            assert row.radius <= length * distance
        assert found.rows[3].status == "verified" and found.certified_acc <= found.attacked_acc


def test_an_inversion_is_an_error(monkeypatch):
    monkeypatch.setattr(Smoothing, "radius", lambda plan, lower: 5.0)
    with pytest.raises(UnreliableError, match=r"sample 1 \(certified to l2 5, broken at"):
        robustcli.certify(
            Halves(), *images(), eps=0.4, norm="l2", sigma=0.05, n=100, n0=20, steps=3, device="cpu"
        )


def test_an_attack_that_leaves_the_ball_refutes_nothing():
    with pytest.raises(ValueError, match="spatial leaves the ball"):
        robustcli.certify(Halves(), *images(), eps=0.1, attack="spatial", device="cpu")


def test_no_name_of_the_api_is_that_of_a_package():
    """Importing a part of such a package would make the name mean the package."""
    package = Path(robustcli.__file__).parent
    assert not [name for name in robustcli.__all__ if (package / name).exists()]
