"""Every objective: formula by hand, reductions, bad parameters, BatchNorm left in train mode."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch

ENTRIES = list(registry.objectives)
NET = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def batch(y_soft=None):
    g = torch.Generator().manual_seed(0)
    x, ids = torch.rand(6, 1, 2, 2, generator=g), torch.arange(6)
    return Batch(
        x, ids % 3, (x + 0.2).clamp(0, 1), ids, Ball("linf", 0.2), RowRandom(0, "start", ids), y_soft
    )


def ce(x):
    return F.cross_entropy(NET(x), batch().y)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_contract(entry):
    terms = entry.fn(NET, batch())
    assert terms.total.shape == () and terms.total.requires_grad and torch.isfinite(terms.total)
    assert all(not part.requires_grad for part in terms.parts.values())
    assert entry.facts.inner is None or entry.facts.inner in registry.losses
    assert re.search(r"Source: .*(arXiv:\d{4}\.\d{5}|openreview\.net/forum)", entry.fn.__doc__, re.DOTALL)
    soft = F.one_hot(batch().y, 3).float()
    assert torch.allclose(entry.fn(NET, batch(soft)).total, terms.total)


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if "label_smoothing" in registry.parameters(e.fn)], ids=lambda e: e.name
)
def test_label_smoothing_out_of_range_is_named(entry):
    with pytest.raises(ValueError, match="label_smoothing"):
        entry.fn(NET, batch(), label_smoothing=1.0)


def test_formulas():
    b = batch()
    assert torch.allclose(registry.objectives.get("natural").fn(NET, b).total, ce(b.x))
    assert torch.allclose(registry.objectives.get("madry").fn(NET, b).total, ce(b.x_adv))
    mixed = registry.objectives.get("mixed").fn
    assert torch.allclose(mixed(NET, b).total, (ce(b.x) + ce(b.x_adv)) / 2)
    assert torch.allclose(mixed(NET, b, clean_weight=1.0).total, ce(b.x))
    assert torch.allclose(mixed(NET, b, clean_weight=0.0).total, ce(b.x_adv))
    with pytest.raises(ValueError, match="clean_weight"):
        mixed(NET, b, clean_weight=1.5)
