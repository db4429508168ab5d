"""The search twin equals its model, follows its training, and is refused when in doubt."""

import threading

import pytest
import torch
from foreign import OwnNorm
from torch import nn

from robustcli.core.twin import SearchTwin
from robustcli.evaluation.plan import Search


class Residual(nn.Module):
    """conv-bn pairs that fold; a BatchNorm after a sum and a convolution read twice that must not."""

    def __init__(self):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b3, self.c4, self.b4 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        h = torch.relu(self.b1(self.c1(x)))
        h = torch.relu(self.b3(h + self.b2(self.c2(h))))
        twice = self.c4(h)
        return self.head((self.b4(twice) + twice).mean((2, 3)))


def trained(net, seed=0):
    torch.manual_seed(seed)
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 3, 8, 8))
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


@pytest.mark.parametrize("channels_last", [False, True])
def test_folds_only_what_is_proven_and_agrees(channels_last):
    net, x = trained(Residual()), torch.rand(5, 3, 8, 8)
    twin = SearchTwin(net, channels_last=channels_last)
    assert len(twin.folded) == 2
    assert torch.allclose(twin(x), net(x), atol=1e-5) and twin.parity(x) == ""


def test_input_gradients_agree():
    net, x = trained(Residual()), torch.rand(5, 3, 8, 8, requires_grad=True)
    (a,) = torch.autograd.grad(net(x).square().sum(), x)
    (b,) = torch.autograd.grad(SearchTwin(net)(x).square().sum(), x)
    assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()))


def test_refresh_follows_training_and_the_original_is_untouched():
    net, x = trained(Residual()), torch.rand(5, 3, 8, 8)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    twin = SearchTwin(net)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items()) and all(
        p.requires_grad for p in net.parameters()
    )
    trained(net, seed=1)
    assert twin.parity(x) != ""
    twin.refresh()
    assert twin.parity(x) == ""


def test_bf16_is_close_and_returns_float32():
    net, x = trained(Residual()), torch.rand(5, 3, 8, 8)
    twin = SearchTwin(net, dtype=torch.bfloat16)
    assert twin(x).dtype == torch.float32 and twin.parity(x) == ""


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.bn(self.conv(x))
        if h.mean() > 1e9:  # depends on the data
            h = h * 0
        return self.head(h.mean((2, 3)))


def test_an_untraceable_model_keeps_its_batchnorm_and_agrees():
    net, x = trained(Untraceable()), torch.rand(5, 3, 8, 8)
    twin = SearchTwin(net, dtype=torch.bfloat16)
    assert twin.folded == [] and twin.parity(x) == ""


class Noisy(Untraceable):
    def forward(self, x):
        return super().forward(x + 0.5 * torch.rand_like(x))


class Gate(nn.Module):
    """A branch that tracing freezes at whatever held while it traced."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 3)

    def forward(self, x):
        return self.head(x.flatten(1)) * (1 if torch.is_grad_enabled() else -1)


@pytest.mark.parametrize("net", [Noisy(), Gate()])
def test_doubt_means_the_plain_model(net):
    assert SearchTwin(net.eval()).parity(torch.rand(5, 3, 8, 8)) != ""


def test_the_twin_of_a_norm_written_by_hand_follows_its_statistics():
    """A trace would keep the square root of the variance as it was when the trace was made."""
    net, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3), OwnNorm(4), nn.Flatten(), nn.Linear(144, 3)).eval(),
        torch.rand(5, 3, 8, 8),
    )
    twin = SearchTwin(net)
    assert twin.parity(x) == ""
    net[1].var, net[1].mean = torch.full((4,), 25.0), torch.full((4,), 3.0)
    twin.refresh()
    with torch.no_grad():
        torch.testing.assert_close(twin(x), net(x), rtol=1e-4, atol=1e-5)


def test_no_trace_runs_through_a_users_hook():
    net, seen = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).eval(),
        [],
    )
    net[1].register_forward_hook(lambda module, args, out: seen.append(type(out)))
    twin = SearchTwin(net)
    assert seen == [] and twin.folded == [] and twin.parity(torch.rand(5, 3, 8, 8)) == ""
    assert set(seen) == {torch.Tensor}


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("can't allocate memory"), MemoryError()]
)
def test_a_batch_too_large_for_the_copy_says_nothing_of_the_copy(error, monkeypatch):
    """The batch is halved then, and the copy is asked again."""
    twin = SearchTwin(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).eval()
    )

    def full(x):
        raise error

    monkeypatch.setattr(twin, "_run", full)
    with pytest.raises(type(error)):
        twin.parity(torch.rand(2, 3, 8, 8))


class Meeting(nn.Module):
    """While it is traced, another thread uses a network and traces one of its own."""

    def __init__(self, meanwhile):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.meanwhile = meanwhile

    def __deepcopy__(self, memo):
        return Meeting(self.meanwhile)

    def forward(self, x):
        if isinstance(x, torch.fx.Proxy):
            self.meanwhile()
        return self.bn(self.conv(x)).mean((2, 3))


def test_a_trace_sees_its_own_thread_alone():
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten()).eval()
    x = torch.rand(2, 1, 4, 4)
    wanted, got, folded, late = other(x), [], [], []

    def work():
        got.append(other(x))
        late.append(threading.Thread(target=lambda: folded.append(SearchTwin(other).folded)))
        late[0].start()

    def meanwhile():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(30)

    calls = nn.Module.__call__, nn.Module.__getattr__
    twin = SearchTwin(Meeting(meanwhile))
    late[0].join(30)
    assert len(got) == 1 and torch.equal(got[0], wanted)
    assert twin.folded == [("conv", "bn")] and folded == [[("0", "1")]]
    assert (nn.Module.__call__, nn.Module.__getattr__) == calls


class _Rounded(torch.autograd.Function):
    """Rounding, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return (x * 3).round() / 3

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_a_trace_that_loses_a_backward_pass_is_refused_and_the_copy_without_it_is_taken():
    """torch.fx runs the forward pass of an autograd function: the traced rounding would have no slope."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))

        def forward(self, x):
            return self.body(_Rounded.apply(x))

    net, x = Net().eval(), torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    assert "gradients" in SearchTwin(net).parity(x)
    twin, _ = Search().faithful(net, x)
    point = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(twin(point)[:, 0].sum(), point)
    assert (grad != 0).any()


class Quantised(nn.Module):
    """Rounds bright images, with the gradient of the identity; stretches dark ones."""

    def __init__(self, bad):
        super().__init__()
        torch.manual_seed(1)
        self.bad = bad
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3)
        )

    def forward(self, x):
        if self.bad == "nan":  # the gradient of a root at 0
            return self.body(_Rounded.apply(x)) + 1e-6 * (x * x).sum((1, 2, 3))[:, None].sqrt()
        dark = (x.mean((1, 2, 3), keepdim=True) < 0.3).float()
        return self.body(dark * x * 30 + (1 - dark) * _Rounded.apply(x))


@pytest.mark.parametrize("bad", ["nan", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lost_backward_pass_is_seen_beside_a_gradient_of_nan_and_beside_rows_of_large_gradients(bad, dtype):
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x[::2] *= 0.0 if bad == "nan" else 0.3
    assert "gradients" in SearchTwin(Quantised(bad).eval(), dtype=dtype).parity(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("small", [1.0, 1e-6, 1e-20])
def test_rows_of_small_gradients_and_ties_refuse_no_healthy_copy(dtype, small):
    """A black image ties all windows of the pooling and all ReLUs."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32, 3)),
    )
    with torch.no_grad():
        net(torch.rand(16, 1, 8, 8))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            bright = (x.mean((1, 2, 3)) > 0.5).float()[:, None]
            return self.net(x) * (bright * small + (1 - bright))

    x = torch.rand(16, 1, 8, 8)
    x[0], x[1], x[2] = 0, 1, 0.5
    twin = SearchTwin(Scaled().eval(), dtype=dtype)
    assert twin.folded and twin.parity(x) == ""


class Tied(nn.Module):
    """Weights that two layers share; the trace meets the one that is named last first."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.b.weight = self.a.weight
        self.first, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 4)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

    def forward(self, x):
        h = torch.relu(self.b(torch.relu(self.first(x))))
        return self.head(self.norms[0](self.a(self.norms[1](h) + h)).flatten(1))


def test_tied_weights_follow_training_also_where_one_of_them_is_folded():
    net, x = Tied().eval(), torch.rand(5, 3, 8, 8)
    twin = SearchTwin(net)
    assert twin.parity(x) == "" and twin.folded == [("a", "norms.0")]
    trained(net, seed=1)
    twin.refresh()
    assert twin.parity(x) == ""


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_first_convolution_on_eight_channels_answers_the_same_and_follows_the_weights(channels, dtype):
    """Traps: zeros that training fills; a second convolution widened."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, stride=2, padding=1, bias=False),
        *(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        *(nn.Flatten(), nn.Linear(16, 3)),
    ).eval()
    plain, wide = (SearchTwin(net, dtype=dtype, wide=wide) for wide in (False, True))
    x = torch.rand(5, channels, 8, 8, requires_grad=True)
    for _ in range(2):
        answers = [twin(x) for twin in (plain, wide)]
        slopes = [torch.autograd.grad(answer[:, 0].sum(), x)[0] for answer in answers]
        for got, wanted in (answers, slopes):
            assert torch.allclose(got, wanted, atol=1e-5 if dtype is torch.float32 else 2e-2)
        with torch.no_grad():
            net[0].weight.mul_(1.5)
            net[1].running_var.add_(0.5)
        plain.refresh(), wide.refresh()
    shapes = {name: tuple(p.shape[:2]) for name, p in wide.copied.named_parameters() if p.dim() == 4}
    assert shapes == {"0.weight": (6, 8), "3.weight": (8, 3), "5.weight": (4, 8)}
    assert not wide.copied.get_submodule("0").weight[:, channels:].any()
