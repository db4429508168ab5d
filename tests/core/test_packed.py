"""The forward-only form equals the plain bf16 twin, packs what is proven, gives way to it in any doubt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from robustcli.core import packed
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.packed import PackedConv, PackedLinear, pack
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin

needs_operators = pytest.mark.skipif(
    not packed.available(), reason="no bf16 operators of oneDNN in this build or on this CPU"
)


def conv(i: int = 8, o: int = 8, k: Any = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **{"padding": 0 if k == 1 else 1, **more})


class Residual(nn.Module):
    """Two blocks: the shortcut of one is its input, that of the other a convolution; BatchNorm folds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, bias=False), nn.BatchNorm2d(8)
        self.a, self.na, self.b, self.nb = (
            conv(bias=False),
            nn.BatchNorm2d(8),
            conv(bias=False),
            nn.BatchNorm2d(8),
        )
        self.c, self.d, self.short = conv(8, 16, stride=2), conv(16, 16), conv(8, 16, 1, stride=2, bias=False)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.stem(x)))
        out = self.nb(self.b(F.relu(self.na(self.a(h)))))
        out += h
        h = self.relu(out)
        out = self.d(torch.relu(self.c(h)))
        return self.head((out + self.short(h)).mean((2, 3)))


def plain() -> nn.Sequential:
    convolutions = conv(3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 5))


def trained(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 3, 8, 8))
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


def shown(net: nn.Module, **options: Any) -> SearchTwin:
    """The bf16 twin after its parity check."""
    twin = SearchTwin(net, **{"dtype": torch.bfloat16, **options})
    assert twin.parity(torch.rand(32, 3, 8, 8)) == ""
    return twin


def form(twin: SearchTwin) -> Any:
    """The module that `scores` runs."""
    return getattr(twin._forward_only, "module", None)


def kinds(twin: SearchTwin) -> list[type]:
    """The packed modules that `scores` runs, in order; empty for the plain form."""
    twin.scores(torch.rand(2, 3, 8, 8))
    made = form(twin)
    return (
        [type(m) for name, m in made.named_children() if name.startswith("packed_")]
        if isinstance(made, fx.GraphModule)
        else []
    )


def agree(twin: SearchTwin, x: Tensor) -> None:
    with torch.no_grad():
        wanted = twin(x)
    got = twin.scores(x)
    assert got.dtype == torch.float32 and got.shape == wanted.shape and not got.requires_grad
    assert float((got - wanted).abs().max()) <= 2.0**-6 * float(wanted.abs().max())


@needs_operators
@pytest.mark.parametrize("channels_last", [True, False])
def test_residual_blocks_agree_and_their_sums_and_relus_vanish(channels_last: bool) -> None:
    twin = shown(trained(Residual()), channels_last=channels_last)
    assert kinds(twin) == [PackedConv] * 6 + [PackedLinear]
    made = form(twin)
    left = [
        node
        for node in made.graph.nodes
        if node.op in ("call_function", "call_method")
        or (node.op == "call_module" and "packed" not in node.target)
    ]
    assert [node.target for node in left] == ["mean"]
    for rows in (1, 2, 9, 40):
        agree(twin, torch.rand(rows, 3, 8, 8))
    agree(twin, torch.rand(3, 3, 11, 6))


@needs_operators
def test_a_plain_network_is_equal_bit_by_bit() -> None:
    twin, x = shown(trained(plain())), torch.rand(9, 3, 8, 8)
    assert kinds(twin) == [PackedConv] * 2 + [PackedLinear] * 2
    with torch.no_grad():
        assert torch.equal(twin.scores(x), twin(x)) and torch.equal(twin.scores(x[:0]), twin(x[:0]))


@needs_operators
@pytest.mark.parametrize(
    ("layer", "packs"),
    [
        (conv(groups=4), True),
        (conv(groups=8, bias=False), True),
        (conv(dilation=2, padding=2), True),
        (conv(8, 12, (3, 5), stride=(2, 1), padding=(0, 2)), True),
        (conv(8, 7, 1), True),
        (conv(padding_mode="reflect"), False),
        (conv(padding_mode="circular"), False),
        (conv(padding="same"), False),
        (nn.utils.parametrizations.weight_norm(conv()), False),
        (nn.ConvTranspose2d(8, 8, 3), False),
    ],
)
def test_any_geometry_agrees_and_what_is_not_known_stays(layer: nn.Module, packs: bool) -> None:
    net = nn.Sequential(
        conv(3, bias=False), layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5)
    )
    net(torch.rand(1, 3, 8, 8))
    twin = shown(net.eval())
    assert len(kinds(twin)) == 2 + packs
    agree(twin, torch.rand(5, 3, 8, 8))
    agree(twin, torch.rand(1, 3, 8, 8))


class Sums(nn.Module):
    """Sums that the operator cannot make, or that must not move, by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.head = kind, conv(3), conv(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        pooled, wide = h.mean((2, 3), keepdim=True), h.float()
        out = self.b(h)
        if self.kind == "itself":
            out = out + out
        elif self.kind == "alpha":
            out = torch.add(out, h, alpha=3)
        elif self.kind == "number":
            out = torch.relu(out + 2)
        elif self.kind == "broadcast":
            out = torch.relu(out + pooled)
        elif self.kind == "float":
            out = torch.relu(out + wide)
        elif self.kind == "read twice":
            out = torch.relu(out + h) * out
        elif self.kind == "into the other":
            kept = h * 1
            kept += out
            out = kept * h
        elif self.kind == "input written":
            h.mul_(3)
            out = out + h
        return self.head(out.mean((2, 3)))


@needs_operators
@pytest.mark.parametrize(
    "kind",
    ["itself", "alpha", "number", "broadcast", "float", "read twice", "into the other", "input written"],
)
def test_sums_that_are_no_shortcut_agree(kind: str) -> None:
    twin = shown(trained(Sums(kind)))
    assert kinds(twin) == [PackedConv, PackedConv, PackedLinear]
    agree(twin, torch.rand(5, 3, 8, 8))


@needs_operators
def test_gradient_passes_keep_the_plain_form() -> None:
    net, x = trained(Residual()), torch.rand(5, 3, 8, 8)
    y = torch.zeros(5, dtype=torch.int64)
    asked = []
    for used in (False, True):
        twin = shown(net)
        if used:
            assert kinds(twin)
        oracle = Oracle(
            twin, x, Criterion(y), rng=RowRandom(0, "start", torch.arange(5)), ball=Ball("linf", 0.1)
        )
        asked.append(oracle.gradient(x))
    assert (
        torch.equal(asked[0].grad, asked[1].grad)
        and torch.equal(asked[0].logits, asked[1].logits)
        and bool(asked[0].grad.any())
    )


@needs_operators
def test_only_a_search_that_remembers_asks_for_scores() -> None:
    """Training asks for the last point alone: its weights move, and nothing is laid out for it."""
    x, rng = torch.rand(5, 3, 8, 8), RowRandom(0, "start", torch.arange(5))
    for keep, used in (("last", False), ("best", True)):
        twin = shown(trained(Residual()))
        criterion = Criterion(torch.zeros(5, dtype=torch.int64))
        Oracle(twin, x, criterion, rng=rng, keep=keep).logits(x)  # type: ignore[arg-type]
        assert (twin._forward_only is not None) is used


@needs_operators
def test_new_weights_are_laid_out_again() -> None:
    net, x = trained(Residual()), torch.rand(5, 3, 8, 8)
    twin = shown(net)
    before = twin.scores(x)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
    twin.refresh()
    agree(twin, x)
    assert not torch.allclose(before, twin.scores(x), rtol=0.1)


class Untraceable(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > -1 else -x)


@pytest.mark.parametrize(
    ("net", "options"),
    [
        (Residual(), {"dtype": torch.float16}),
        (Residual(), {"fold_bn": False}),
        (Untraceable(), {}),
        (nn.Sequential(nn.Flatten(), nn.Softmax(1)), {}),
    ],
)
def test_precision_tracing_and_an_empty_graph_mean_the_plain_form(
    net: nn.Module, options: dict[str, Any]
) -> None:
    twin, x = shown(net.eval(), **options), torch.rand(5, 3, 8, 8)
    assert kinds(twin) == []
    with torch.no_grad():
        assert torch.equal(twin.scores(x), twin(x))


def test_a_compiled_twin_asks_its_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: lambda x: module(x))
    twin, x = shown(trained(Residual()), compiled=True), torch.rand(5, 3, 8, 8)
    assert kinds(twin) == [] and twin._forward_only is twin._run
    with torch.no_grad():
        assert torch.equal(twin.scores(x), twin(x))


def test_without_a_parity_check_or_after_a_failed_one_it_is_the_plain_form() -> None:
    net = trained(Residual())
    assert kinds(SearchTwin(net, dtype=torch.bfloat16)) == []
    twin = shown(net)
    with torch.no_grad():
        net.get_submodule("head").weight.mul_(-9)  # type: ignore[union-attr, operator]
    assert twin.parity(torch.rand(5, 3, 8, 8)) != "" and kinds(twin) == []


def _refused(*_: object) -> Tensor:
    raise RuntimeError("could not create a primitive")


@pytest.mark.parametrize("fault", ["absent", "no bf16", "refused", "wrong"])
def test_any_doubt_about_the_operators_means_the_plain_form(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "absent":
        monkeypatch.setattr(packed, "_OPERATORS", ("_no_such_operator",))
    elif fault == "no bf16":
        monkeypatch.setattr(packed, "available", lambda: False)
    elif fault == "refused":
        monkeypatch.setattr(PackedConv, "forward", _refused)
    else:
        monkeypatch.setattr(PackedConv, "forward", lambda self, x, other=None: -self._plain(x))
    twin, x = shown(trained(Residual())), torch.rand(5, 3, 8, 8)
    assert kinds(twin) == []
    with torch.no_grad():
        assert torch.equal(twin.scores(x), twin(x))


def test_what_is_not_a_graph_is_not_packed() -> None:
    assert pack(trained(Residual())) is None
