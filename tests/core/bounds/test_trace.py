"""What has no bounds is named, with its place in the user's code and with what to use instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from robustcli.core.bounds import UnsupportedOperation, trace
from robustcli.core.bounds.trace import forward
from robustcli.models.build import build_model
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import NormalisedModel
from robustcli.registry import models


class Net(nn.Module):
    """A head behind any function of the flat image."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x.flatten(1)))


class Ends(Net):
    """A network whose answer is changed last."""

    def forward(self, x: Tensor) -> Any:
        return self.body(self.head(x.flatten(1)))


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 15).round() / 15


REFUSED = {
    "round": (Net(torch.round), "round has no bounds", "have bounds"),
    "own function": (Net(Rounded.apply), "Tensor.round has no bounds", "have bounds"),
    "square": (Net(lambda x: x * x), "operator.mul has no bounds", "have bounds"),
    "softmax": (Ends(lambda z: F.softmax(z, 1)), "softmax has no bounds", "return logits"),
    "branch": (Net(lambda x: x if x.sum() > 0 else -x), "cannot be read", "same path"),
    "length": (Net(lambda x: x.view(len(x), -1)), "cannot be read", "x.shape[0]"),
    "batch": (Net(lambda x: x - x.mean(0)), "mixes the images", "have bounds"),
    "sizes": (Net(lambda x: x.view(3, -1)), "has no bounds: ", "have bounds"),
    "rows": (Net(lambda x: x[1:]), "mixes the images", "have bounds"),
    "places": (Net(lambda x: x[[0, 1, 2, 3, 4]]), "getitem has no bounds", "have bounds"),
    "tuple": (Ends(lambda z: (z, z)), "no tensor of logits", "have bounds"),
    "too long": (Ends(lambda z: z[:, :, None]), "no tensor of logits", "have bounds"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_without_bounds_is_named(name: str) -> None:
    net, what, hint = REFUSED[name]
    with pytest.raises(UnsupportedOperation) as caught:
        trace(net, (1, 4, 4))
    assert what in caught.value.what and hint in caught.value.hint and caught.value.exit_code == 2
    if name not in ("tuple", "too long"):
        assert "test_trace.py:" in caught.value.where


@pytest.mark.parametrize(
    ("last", "hint"), [(nn.Softmax(1), "return logits"), (nn.LayerNorm(3), "BatchNorm2d"), (nn.ELU(), "SiLU")]
)
def test_a_module_without_bounds_is_named_by_its_path(last: nn.Module, hint: str) -> None:
    with pytest.raises(UnsupportedOperation, match=f"nn.{type(last).__name__} has no bounds") as caught:
        trace(nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(16, 3), last)), (1, 4, 4))
    assert caught.value.where.endswith("module 1.1") and hint in caught.value.hint


def test_our_own_lines_are_not_the_users() -> None:
    net = NormalisedModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softmax(1)), (0.5,), (0.5,))
    with pytest.raises(UnsupportedOperation) as caught:
        trace(net, (1, 4, 4))
    assert caught.value.where == "module backbone.2"


def test_what_a_graph_does_not_show_is_refused() -> None:
    hooked = Net(torch.relu)
    hooked.head.register_forward_hook(lambda *given: None)
    with pytest.raises(UnsupportedOperation, match="module head has a hook"):
        trace(hooked, (1, 4, 4))

    def in_place(x: Tensor) -> Tensor:
        return x.relu_() + x

    for body in (lambda x: x + torch.rand(16), lambda x: in_place(x - 0.5)):
        with pytest.raises(UnsupportedOperation, match="its graph does not show"):
            trace(Net(body), (1, 4, 4))


def test_the_network_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    trace(net.train(), (1, 4, 4))
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_subclasses_and_parametrised_weights() -> None:
    class Mine(nn.Conv2d):
        """Traced through: its weight is scaled."""

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, 2 * self.weight, self.bias, padding=1)

    net = nn.Sequential(Mine(1, 2, 3), nn.ReLU(), nn.Flatten(), weight_norm(nn.Linear(32, 3))).eval()
    x = torch.rand(2, 1, 4, 4)
    assert torch.allclose(forward(trace(net, (1, 4, 4)), x), net(x), atol=1e-5)


@pytest.mark.parametrize("name", ["lenet", "mlp", "preact_resnet18", "resnet18", "small_cnn", "wide_resnet"])
def test_our_architectures_have_bounds(name: str) -> None:
    info = ModelInfo(3, 3, 8, (0.5,) * 3, (0.25,) * 3)
    net, x = build_model(name, models.get(name).facts.tiny, info, seed=0).eval(), torch.rand(2, 3, 8, 8)
    assert torch.allclose(forward(trace(net, (3, 8, 8)), x), net(x), atol=1e-4)


def test_a_grey_image_that_is_shown_as_colour() -> None:
    net = build_model("small_cnn", {}, ModelInfo(3, 1, 8, (0.5,) * 3, (0.25,) * 3), seed=0).eval()
    x = torch.rand(2, 1, 8, 8)
    assert torch.allclose(forward(trace(net, (1, 8, 8)), x), net(x), atol=1e-4)
