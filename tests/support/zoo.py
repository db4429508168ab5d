"""Eight fake defences around one small trained network, and four honest models.

Alarms must find the former and leave the latter alone.
"""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

EPS = 0.1


@cache
def digits():
    """(x float32 [1797, 1, 8, 8] in [0, 1], y int64), shuffled by a fixed seed."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    order = torch.randperm(len(stored.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(stored.images, dtype=torch.float32)[order][:, None] / 16, torch.tensor(stored.target)[
        order
    ]


def conv(norm=nn.Identity):
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), norm(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), norm(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    )


def trained(net, steps=120, adversarial=0):
    """`steps` of Adam on the first 1,400 digits, against PGD with `adversarial` steps; frozen afterwards."""
    x, y = (part[:1400] for part in digits())
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=generator)
        point = x[rows]
        for _ in range(adversarial):
            point = point.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(F.cross_entropy(net(point), y[rows]), point)
            point = (point + 0.5 * EPS * grad.sign()).clamp(x[rows] - EPS, x[rows] + EPS).clamp(0, 1).detach()
        optimizer.zero_grad()
        F.cross_entropy(net(point), y[rows]).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


@cache
def honest(name):
    """conv, mlp, bn (conv with BatchNorm) or robust (conv, adversarially trained)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        if name == "mlp":
            return trained(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
        return trained(
            conv(nn.BatchNorm2d if name == "bn" else nn.Identity), adversarial=5 if name == "robust" else 0
        )


class Fake(nn.Module):
    """The honest network with a transformation before or behind it."""

    def __init__(self, before=lambda x: x, after=lambda z: z, net="conv"):
        super().__init__()
        self.net, self.before, self.after = honest(net), before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


class Signs(nn.Module):
    """sign as the first activation, the last layer solved by least squares."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.first, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16 * 64, 10)
        x, y = (part[:1400] for part in digits())
        with torch.no_grad():
            h = self.features(x)
            gram = h.T @ h + 100 * torch.eye(h.shape[1])
            self.head.weight.copy_(torch.linalg.solve(gram, h.T @ (F.one_hot(y, 10).float() - 0.1)).T * 10)
            self.head.bias.zero_()
        self.requires_grad_(False)

    def features(self, x):
        return torch.sign(self.first(x) - self.first.bias[:, None, None]).flatten(1)

    def forward(self, x):
        return self.head(self.features(x))


def resize(x):
    """Each image scaled to a random side of 6 to 8 pixels, then padded at a random place."""
    return torch.cat([_resized(image[None], int(torch.randint(6, 9, ()))) for image in x]) if len(x) else x


def _resized(x, side):
    top, left = (int(torch.randint(0, 9 - side, ())) for _ in range(2))
    return F.pad(
        F.interpolate(x, size=(side, side), mode="bilinear"), (left, 8 - side - left, top, 8 - side - top)
    )


class Purifier(nn.Module):
    """Climbs down from the input to where the network is surer of itself, then classifies."""

    def __init__(self):
        super().__init__()
        self.net = honest("conv")

    def forward(self, x):
        z = x
        with torch.enable_grad():
            for _ in range(4):
                z = z.detach().requires_grad_(True)
                logits = self.net(z)
                (grad,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), z)
                z = (z - 0.25 * EPS * grad.sign()).clamp(0, 1)
        return self.net(z.detach())


class BatchStatistics(nn.Module):
    """BatchNorm that puts itself back into train mode in every pass."""

    def __init__(self):
        super().__init__()
        self.net = honest("bn")

    def forward(self, x):
        for module in self.net.modules():
            module.training = isinstance(module, nn.BatchNorm2d)
        return self.net(x)


#: name -> (maker, the alarm it must raise, escalations it must ask for; of rescale, bpda and eot no others)
FAKES = {
    "softmax": (lambda: Fake(after=lambda z: z.softmax(1)), "softmax-output", {"rescale"}),
    "scaled": (lambda: Fake(after=lambda z: 1e4 * z), "saturated-loss", {"rescale"}),
    "quantised": (lambda: Fake(lambda x: (x * 2).round() / 2), "zero-gradient", {"bpda", "square"}),
    "signs": (Signs, "zero-gradient", {"bpda", "square"}),
    "resized": (lambda: Fake(resize), "random-forward", {"eot"}),
    "one-hot": (
        lambda: Fake(after=lambda z: F.one_hot(z.argmax(1), 10).float()),
        "zero-gradient",
        {"bpda", "square"},
    ),
    "purifier": (Purifier, "optimisation-at-inference", {"square", "transfer"}),
    "batch": (BatchStatistics, "batch-dependent", set()),
}
HONEST = ("conv", "mlp", "bn", "robust")


def correct(model, n=64):
    """(x, y, ids) of the first n held-out digits that the model classifies correctly in one pass."""
    x, y = (part[1400:] for part in digits())
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero()[:n, 0]
    return x[right], y[right], right + 1400
