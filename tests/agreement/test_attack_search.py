"""`robustcli.attack` on the stored models: a search on the copy breaks no fewer than one on the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from wider import REFERENCE, network

import robustcli
from robustcli.core.twin import SearchTwin
from robustcli.runtime.precision import bf16_native

MODELS = {"cifar_at": 8 / 255, "mnist_at": 0.3}
NATIVE = bf16_native(torch.device("cpu"))
EMULATED = () if NATIVE else pytest.mark.slow

pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="no reference models here; ROBUSTCLI_REFERENCE names their directory"
)


@pytest.mark.parametrize(
    ("search", "n"),
    [("fp32", 24), pytest.param("bf16", 24, marks=EMULATED)],
)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore:bf16 is emulated")
def test_no_fewer_are_broken_than_by_a_search_on_the_model(model, search, n, monkeypatch):
    stored = np.load(REFERENCE / f"{model}.survivors.npz")
    rows = np.linspace(0, len(stored["y"]) - 1, n).astype(int)
    x, y = torch.from_numpy(stored["x"][rows]).float() / 255, torch.from_numpy(stored["y"][rows]).long()
    net = network(model)

    def broken(search):
        x_adv = robustcli.attack(net, x, y, eps=MODELS[model], steps=10, search=search, device="cpu")
        with torch.no_grad():
            return int((net(x_adv).argmax(1) != y).sum())

    by_copy = broken(search)
    monkeypatch.setattr(SearchTwin, "difference", lambda self, x: "refused")  # now the model itself
    assert by_copy >= broken("fp32") > 0
