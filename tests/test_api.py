"""The Python API as a user calls it."""

import numpy as np
import pytest
import torch
from torch import nn

import robustcli
from robustcli.errors import DataError, UsageError


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


@pytest.mark.parametrize("call", [robustcli.evaluate, robustcli.attack])
def test_numbers_below_one_are_named(call):
    x, y = data(4)
    for size in (0, -3):
        with pytest.raises(ValueError, match=f"batch_size must be >= 1, got {size}"):
            call(Net(), x, y, eps=0.1, batch_size=size)
        with pytest.raises(ValueError, match=f"n_examples must be >= 1, got {size}"):
            robustcli.benchmark(Net(), n_examples=size, dataset="digits")


def test_a_function_answers_with_labels():
    x, y = data(4)
    with pytest.raises(UsageError, match="not one class number each"):
        robustcli.evaluate(lambda x: x.mean((2, 3)), x, y, eps=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_any_float_type_are_taken(dtype):
    x, y = data()
    x = (x * 8).round() / 8  # exact in all of them
    expected = robustcli.evaluate(Net(), x, y, eps=0.05, steps=3, checks=0)
    found = robustcli.evaluate(Net(), x.to(dtype), y, eps=0.05, steps=3, checks=0)
    assert torch.equal(found.survivors, expected.survivors) and found.clean_acc == expected.clean_acc
    with pytest.raises(DataError, match=r"pixels in \[0, 2\]"):
        robustcli.evaluate(Net(), 2 * x.to(dtype), y, eps=0.05)


def test_inference_mode_around_the_call_the_images_or_the_model():
    x, y = data()
    expected = robustcli.evaluate(Net(), x, y, eps=0.05, steps=3, checks=0).survivors
    with torch.inference_mode():
        net, images, labels = Net().eval(), x.clone(), y.clone()
        inside = robustcli.evaluate(net, images, labels, eps=0.05, steps=3, checks=2)
        assert torch.equal(robustcli.attack(net, images, labels, eps=0.05) != images, x != x) is False
        assert torch.is_inference_mode_enabled()
    outside = robustcli.evaluate(net, images, labels, eps=0.05, steps=3, checks=0)
    assert torch.equal(inside.survivors, expected) and torch.equal(outside.survivors, expected)


class Wrapper(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class OwnDropout(Wrapper):
    def forward(self, x):
        return self.net(torch.nn.functional.dropout(x, training=self.training))


def test_train_mode_is_noted_where_something_behaves_otherwise_in_it():
    x, y = data()
    norm = nn.Sequential(nn.BatchNorm2d(1), Net()).eval()

    def noted(net):
        alarms = robustcli.evaluate(net, x, y, eps=0.01, steps=2, checks=2).alarms
        return [alarm.evidence for alarm in alarms if alarm.name == "train-mode"]

    assert noted(Wrapper(norm)) == [] and noted(Wrapper(Net())) == [] and noted(OwnDropout(norm).eval()) == []
    assert "(BatchNorm2d)" in noted(Wrapper(norm).train())[0]
    assert "(OwnDropout)" in noted(OwnDropout(Net()))[0]


def test_one_class_is_two_classes_of_one_logit():
    x, _ = data()
    y = torch.zeros(40, dtype=torch.int64)
    for name in ("deepfool", "pgd", "fab", "apgd", "square"):
        assert robustcli.attack(Net(1), x, y, name=name, eps=0.1, device="cpu").shape == x.shape
