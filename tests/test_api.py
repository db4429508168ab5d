"""The Python API as a user calls it."""

import numpy as np
import pytest
import torch
from torch import nn

import robustcli
from robustcli.errors import DataError


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(128, classes)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1)) * 3


def data(n=40, classes=4):
    x = torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0)).float() / 255
    with torch.no_grad():
        return x, Net(classes).eval()(x).argmax(1)


def test_autoattack_gives_stages_in_order_and_the_worst_case():
    x, y = data()
    verdict = robustcli.evaluate(
        Net(), x, y, eps=0.08, attack="autoattack", version="standard", checks=0, device="cpu"
    )
    assert list(verdict.stages) == ["apgd-ce", "apgd-t", "fab-t", "square", "apgd-wide"]
    kept = list(verdict.stages.values())
    assert all(
        bool((later <= earlier).all()) for earlier, later in zip(kept, kept[1:], strict=False)
    ) and torch.equal(kept[-1], verdict.survivors)
    assert (
        verdict.robust_acc == int(verdict.survivors.sum()) / 40
        and 0 < verdict.robust_acc < 1
        and verdict.clean_acc == 1
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_two_and_three_classes_say_which_loss_was_taken(classes):
    x, y = data(classes=classes)
    said = []
    verdict = robustcli.evaluate(
        Net(classes), x, y, eps=0.05, attack="autoattack", version="rapid", say=said.append, device="cpu"
    )
    assert any(f"the model has {classes}" in line for line in said) and verdict.n == 40
    assert "too-few-classes" in [alarm.name for alarm in verdict.alarms] and verdict.reliability == "ok"


def test_any_callable_is_judged_by_us():
    x, y = data()

    def liar(x, y):
        return 1 - x  # far outside

    def honest(x, y):
        return (x + 0.05).clamp(0, 1)

    assert robustcli.evaluate(Net(), x, y, eps=0.05, attack=liar, checks=0).robust_acc == 1
    assert "outside-ball" in [
        alarm.name for alarm in robustcli.evaluate(Net(), x, y, eps=0.05, attack=liar, checks=0).alarms
    ]
    both = robustcli.evaluate(Net(), x, y, eps=0.05, attack=[honest, "pgd"], checks=0)
    assert list(both.stages) == ["honest", "pgd-10"] and both.robust_acc <= float(
        both.stages["honest"].float().mean()
    )


def test_assert_robust_passes_fails_and_refuses():
    x, y = data()
    assert robustcli.assert_robust(Net(), x, y, eps=0.001, at_least=0.5).robust_acc >= 0.5
    with pytest.raises(AssertionError, match=r"robust accuracy \d+/40 = 0\.\d+ is below 1\.0"):
        robustcli.assert_robust(Net(), x, y, eps=0.2, at_least=1.0)
    with pytest.raises(ValueError, match="at_least"):
        robustcli.assert_robust(Net(), x, y, eps=0.1, at_least=45)

    class Softmax(Net):
        def forward(self, x):
            return super().forward(x).softmax(1)

    with pytest.raises(AssertionError, match="suspect: softmax-output"):
        robustcli.assert_robust(Softmax(), x, y, eps=0.001, at_least=0.1)


def test_benchmark_has_the_signature_of_robustbench(tmp_path):
    x, y = data(60)
    np.savez(tmp_path / "set.npz", x=(x.numpy() * 255).round().astype("uint8"), y=y.numpy())
    where = f"npz:{tmp_path / 'set.npz'}"
    clean, robust = robustcli.benchmark(
        Net(), n_examples=10, dataset=where, threat_model="Linf", eps=0.2, version="rapid", device="cpu"
    )
    assert clean == 1 and 0 <= robust < 1
    with pytest.raises(ValueError, match="threat_model"):
        robustcli.benchmark(Net(), threat_model="L7")


def test_attack_returns_the_closest_success_of_a_minimal_attack():
    x, y = data()
    x_adv = robustcli.attack(Net(), x, y, name="fab", eps=0.01, norm="linf", steps=20)
    broken = Net()(x_adv).argmax(1) != y
    assert broken.float().mean() > 0.9 and torch.equal(x_adv[~broken], x[~broken])
    with pytest.raises(ValueError, match="list of attacks"):
        robustcli.attack(Net(), x, y, name="autoattack", eps=0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attack": "pdg"}, "did you mean 'pgd'"),
        ({"attack": "autoattack", "version": "fast"}, "version"),
        ({"attack": "pgd", "step": 3}, "did you mean 'steps'"),
        ({"eps": -1.0}, "eps"),
        ({"attack": ["pgd", "pgd"], "steps": 3}, "single attack"),
    ],
)
def test_bad_arguments_are_named(change, words):
    x, y = data(4)
    with pytest.raises(ValueError, match=words):
        robustcli.evaluate(Net(), x, y, **({"eps": 0.1} | change))


def test_labels_out_of_range_and_pixels_out_of_range():
    x, y = data(4)
    with pytest.raises(DataError, match="label 9"):
        robustcli.evaluate(Net(), x, torch.tensor([0, 1, 9, 2]), eps=0.1)
    with pytest.raises(DataError):
        robustcli.evaluate(Net(), x * 255, y, eps=0.1)
