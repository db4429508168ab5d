"""Training for smoothing: formulas in numpy float64, the limit without noise, and which noise is whose."""

import numpy as np
import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.noisy import Smoothed, noise, noisy, soft_vote
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch
from robustcli.evaluation.plan import Search
from robustcli.objectives.consistency import consistency
from robustcli.objectives.denoise import denoise
from robustcli.objectives.gaussian import gaussian
from robustcli.objectives.madry import madry
from robustcli.objectives.natural import natural
from robustcli.objectives.smoothadv import smoothadv
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

IDS = torch.arange(6)
Y = np.arange(6) % 3
NOISY = {"gaussian": gaussian, "smoothadv": smoothadv, "consistency": consistency}


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    return net


def batch(epoch=0, stream="objective"):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 2, 2, generator=g, dtype=torch.float64)
    rng = RowRandom(0, stream, IDS, epoch=epoch)
    return Batch(x, IDS % 3, (x + 0.1).clamp(0, 1), IDS, Ball("l2", 0.4), rng)


def value(terms):
    return float(terms.total.detach())


def log_p(net, x, sigma, copies, b):
    """log softmax f(x + sigma n_m), numpy float64 [M, 6, 3], with the noise of `b`."""
    drawn = noise(b.x, b.rng, sigma=sigma, copies=copies)
    z = np.stack([net(x + n).detach().numpy() for n in drawn])
    return z - np.log(np.exp(z).sum(2, keepdims=True))


def ce(logs, label):
    return -(label * logs).sum(2).mean()


def test_gaussian_by_hand():
    net, b = network(), batch()
    label = 0.9 * np.eye(3)[Y] + 0.1 / 3
    got = gaussian(net, b, sigma=0.3, label_smoothing=0.1)
    assert value(got) == pytest.approx(ce(log_p(net, b.x, 0.3, 1, b), label), rel=1e-12)


def test_smoothadv_by_hand():
    net, b = network(), batch()
    got = smoothadv(net, b, sigma=0.3, copies=4)
    assert value(got) == pytest.approx(ce(log_p(net, b.x_adv, 0.3, 4, b), np.eye(3)[Y]), rel=1e-12)


def test_consistency_by_hand():
    net, b = network(), batch()
    logs = log_p(net, b.x, 0.5, 3, b)
    q = np.exp(logs).mean(0)
    kl = (q * (np.log(q) - logs)).sum(2).mean()
    doubt = -(q * np.log(q)).sum(1).mean()
    assert kl > 1e-2
    got = consistency(net, b, sigma=0.5, copies=3, weight=7.0, entropy=0.4)
    expected = ce(logs, np.eye(3)[Y]) + 7 * kl + 0.4 * doubt
    assert value(got) == pytest.approx(expected, rel=1e-12)
    assert float(got.parts["consistency"]) == pytest.approx(kl, rel=1e-12)
    assert float(got.parts["entropy"]) == pytest.approx(doubt, rel=1e-12)


def test_without_noise_they_are_plain_training():
    net, b = network(), batch()
    plain, attacked = value(natural(net, b)), value(madry(net, b))
    assert value(gaussian(net, b, sigma=0)) == plain
    assert value(smoothadv(net, b, sigma=0, copies=1)) == attacked
    assert value(smoothadv(net, b, sigma=0, copies=5)) == pytest.approx(attacked, rel=1e-12)
    assert value(consistency(net, b, sigma=0, copies=1, entropy=0)) == plain
    assert float(consistency(net, b, sigma=0, copies=4).parts["consistency"]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_that_of_sample_and_epoch(name):
    """The same at each call, whatever stream the batch brings and whoever stands beside; new each epoch."""
    net, objective, b = network(), NOISY[name], batch()
    once = value(objective(net, b))
    assert value(objective(net, b)) == once == value(objective(net, batch(stream="start")))
    assert value(objective(net, batch(epoch=1))) != once
    apart = []
    for k in (slice(0, 2), slice(2, 6)):
        part = Batch(b.x[k], b.y[k], b.x_adv[k], b.ids[k], b.ball, b.rng.rows(k))
        apart.append(value(objective(net, part)) * len(part.y) / 6)
    assert sum(apart) == pytest.approx(once, rel=1e-12)


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("sigma", [-0.1, float("nan")])
def test_a_noise_without_meaning_is_named(name, sigma):
    with pytest.raises(ValueError, match="sigma"):
        NOISY[name](network(), batch(), sigma=sigma)
    if name != "gaussian":
        with pytest.raises(ValueError, match="copies"):
            NOISY[name](network(), batch(), copies=0)


def test_noise_is_normal_and_not_cut():
    x = torch.zeros(200, 1, 10, 10)
    drawn = noise(x, RowRandom(3, "start", torch.arange(200)), sigma=0.5, copies=4)
    every = torch.stack(drawn)
    assert every.mean().abs() < 0.01 and float(every.std()) == pytest.approx(0.5, rel=0.01)
    assert not torch.equal(drawn[0], drawn[1]) and noisy(x, drawn).min() < -1


def test_the_smoothed_classifier_averages_probabilities():
    """Of a linear network with two classes the mean over the noise is known: E sigmoid by quadrature."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[3.0], [-3.0]]))
    x, ids = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    view = Smoothed(net, x, RowRandom(0, "start", ids), sigma=0.5, copies=1000)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    exact = (weights / (1 + np.exp(-6 * (0.3 + 0.5 * nodes)))).sum() / weights.sum()
    assert float(view(x).detach().exp()[0, 0]) == pytest.approx(exact, abs=0.03)
    assert torch.equal(view(x), view(x))
    extreme = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert torch.isfinite(soft_vote(extreme, 2)).all()


class Fronted(nn.Module):
    """A classifier f behind D, which scales the pixels."""

    def __init__(self):
        super().__init__()
        self.net, self.front = network(), Scaled()

    def bare(self, x):
        return self.net(x)

    def forward(self, x):
        return self.bare(self.front(x))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize(("stability", "mse"), [(1.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_denoise_by_hand(stability, mse):
    """The label is what the bare classifier says of the clean image; the batch's own labels are not used."""
    model, b = Fronted(), batch()
    b = Batch(b.x, (b.y + 1) % 3, b.x_adv, b.ids, b.ball, b.rng)
    (drawn,) = noise(b.x, b.rng, sigma=0.3, copies=1)
    own = model.net(b.x).argmax(1).numpy()
    left = 0.7 * (b.x + drawn).numpy()
    z = model.net(torch.from_numpy(left)).detach().numpy()
    logs = z - np.log(np.exp(z).sum(1, keepdims=True))
    cross, square = -logs[range(6), own].mean(), ((left - b.x.numpy()) ** 2).mean()
    got = denoise(model, b, sigma=0.3, stability=stability, mse=mse)
    assert value(got) == pytest.approx(stability * cross + mse * square, rel=1e-12)
    assert set(got.parts) == {name for name, w in (("stability", stability), ("mse", mse)) if w}
    (grad,) = torch.autograd.grad(got.total, [model.front.factor])
    assert float(grad) != 0


@pytest.mark.parametrize("weights", [{"stability": 0.0}, {"stability": -1.0}, {"mse": float("nan")}])
def test_denoise_without_a_weight_is_refused(weights):
    with pytest.raises(ValueError, match="stability and mse"):
        denoise(Fronted(), batch(), **weights)


class Recorder(nn.Module):
    """Linear, and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net, self.shown = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), []

    def forward(self, x):
        self.shown.append(x.detach().clone())
        return self.net(x)


def smoothed_step(net, sigma=0.5, copies=3, **attack_and_more):
    """A step of `smoothadv` whose attack takes two steps of pgd from the image, unless told otherwise."""
    entry, told = registry.objectives.get("smoothadv"), {"steps": 2} | attack_and_more
    micro = told.pop("micro_batch", None)
    settings = StepSettings(
        net,
        lambda model, batch: entry.fn(model, batch, sigma=sigma, copies=copies),
        entry.facts.inner,
        lambda oracle, x, ball: pgd(oracle, x, ball, start="zero", **told),
        Ball("l2", 0.4),
        torch.optim.SGD(net.parameters(), lr=0.1),
        search=Search().exact(),
        view=lambda model, x, rng: entry.facts.view(model, x, rng, sigma=sigma, copies=copies),
        micro_batch=micro,
    )
    return MinMax(settings)


@pytest.mark.parametrize("micro", [None, 4])
def test_attack_and_loss_share_the_noise_over_all_steps(micro):
    net, x = Recorder(), batch().x.float()
    smoothed_step(net, micro_batch=micro)(x, IDS % 3, IDS, seed=0, epoch=2)
    drawn = noise(x, RowRandom(0, "any", IDS, epoch=2), sigma=0.5, copies=3)
    rows = slice(0, micro or 6)
    passes = 1 if micro is None else 2
    shown = net.shown[2:]  # behind the two passes of the look for hidden slopes
    assert len(shown) == 3 * passes  # two steps of the attack and the loss
    asked = [shown[0], shown[1], shown[-passes]]
    found = [torch.stack(seen.chunk(3)) - torch.stack(drawn)[:, rows] for seen in asked]
    for point in found:  # one point under each noise
        assert torch.allclose(point, point[:1].expand_as(point), atol=1e-6)
    assert torch.allclose(found[0][0], x[rows], atol=1e-6)
    assert (found[1][0] - found[0][0]).norm() > 0.1 and (found[2][0] - found[1][0]).norm() > 1e-3


def test_the_attack_ascends_the_loss_of_the_smoothed_classifier():
    """One step from the image goes along the gradient of -log mean_m p_y, by the whole step size."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = (0.4 + 0.2 * batch().x).float(), IDS % 3
    start = RowRandom(0, "start", IDS)
    found = smoothed_step(net, steps=1, step_size=0.05).adversarial(x, y, start)
    drawn = noise(x, RowRandom(0, "any", IDS), sigma=0.5, copies=3)
    point = x.clone().requires_grad_(True)
    mean = torch.stack([net(point + n).softmax(1) for n in drawn]).mean(0)
    (grad,) = torch.autograd.grad(-mean[torch.arange(6), y].log().sum(), point)
    direction = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(found - x, 0.05 * direction, atol=1e-5)
    plain = smoothed_step(net, sigma=0.0, steps=1, step_size=0.05).adversarial(x, y, start)
    assert not torch.allclose(found, plain, atol=1e-3)
