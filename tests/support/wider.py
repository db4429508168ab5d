"""The wider reference: small networks, threats and the verdicts of the AutoAttack authors' code.

See tests/agreement/wider/README.md.
"""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
import zoo
from torch import nn

import robustcli

FOLDER = Path(__file__).resolve().parents[1] / "agreement" / "wider"
REFERENCE = Path(
    os.environ.get("ROBUSTCLI_REFERENCE", Path(__file__).resolve().parents[3] / "shared" / "reference")
)
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
CLASSES = {"digits_two": [3, 8], "digits_three": [3, 8, 9]}
STORED = {"mnist_at": "mnist_cnn", "cifar_at": "cifar_vgg"}


class Case:
    """One network under one threat: `stages[name]` bool [n], who stands in the authors' code after each."""

    def __init__(self, line):
        self.model, self.norm, self.text, self.rows = (
            line["model"],
            line["norm"],
            line["eps"],
            torch.tensor(line["rows"]),
        )
        top, _, bottom = self.text.partition("/")
        self.eps = float(top) / float(bottom or 1)
        self.stages = {
            name: torch.tensor([digit == "1" for digit in line[name]]) for name in ("clean", *STAGES)
        }

    def __str__(self):
        return f"{self.model}-{self.norm}-{self.text.replace('/', '_')}"

    @property
    def here(self):
        """Whether its images and weights are on this machine."""
        return self.model.startswith("digits") or REFERENCE.is_dir()

    def some(self, n):
        """(model, x, y, stages) of n samples spread over all."""
        at = torch.linspace(0, len(self.rows) - 1, min(n, len(self.rows))).long()
        x, y = images(self.model, self.rows[at])
        return network(self.model), x, y, {name: kept[at] for name, kept in self.stages.items()}


@cache
def cases():
    return [Case(line) for line in json.loads((FOLDER / "verdicts.json").read_text(encoding="utf-8"))]


def case(name):
    return next(one for one in cases() if str(one) == name)


def images(model, rows):
    """(x float32 [n, C, H, W], y int64 [n]) of these rows."""
    if not model.startswith("digits"):
        stored = np.load(REFERENCE / f"{'cifar' if model.startswith('cifar') else 'mnist'}_at.survivors.npz")
        return torch.from_numpy(stored["x"][rows]).float() / 255, torch.from_numpy(stored["y"][rows]).long()
    x, y = (part[rows] for part in zoo.digits())
    return x, torch.tensor([CLASSES[model].index(int(label)) for label in y]) if model in CLASSES else y


class Scaled(nn.Module):
    """Logits times 100: honest, and beyond what cross-entropy in float32 can climb."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return 100 * self.net(x)


def _digits(classes=10, norm=nn.Identity):
    first, second = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    return nn.Sequential(
        first, norm(16), nn.ReLU(), second, norm(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, classes)
    )


def _mnist():
    first, second = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 32, 5, padding=2)
    pooled = (first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*pooled, nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10))


def _cifar():
    layers = []
    for into, out, stride in ((3, 24, 2), (24, 48, 1), (48, 48, 2), (48, 96, 1)):
        layers += [nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


@cache
def network(model):
    """The trained network, pixels -> logits."""
    if model in STORED:
        return robustcli.load_model(
            f"{REFERENCE / 'models.py'}:{STORED[model]}", weights=REFERENCE / f"{model}.npz"
        )
    stem = "digits_madry" if model == "digits_scaled" else model
    if model.startswith("digits"):
        net = _digits(
            len(CLASSES.get(model, range(10))), nn.BatchNorm2d if model == "digits_natural" else nn.Identity
        )
    else:
        net = _mnist() if model.startswith("mnist") else _cifar()
    stored = np.load(FOLDER / f"{stem}.npz")
    tensors = {name: torch.from_numpy(stored[name]) for name in stored}
    net.load_state_dict(
        {
            name: tensor.float() if tensor.dtype == torch.float16 else tensor
            for name, tensor in tensors.items()
        }
    )
    net = net.eval().requires_grad_(False)
    return Scaled(net).eval() if model == "digits_scaled" else net
