"""Our verdict beside that of the AutoAttack authors' own code, sample by sample, on two stored models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from wider import REFERENCE, STAGES, network

import robustcli
from robustcli.runtime.precision import bf16_native

MODELS = {"cifar_at": 8 / 255, "mnist_at": 0.3}
BF16 = bf16_native(torch.device("cpu"))
#: Of the suite; `make test-slow` has them all, and `standard`, which takes minutes. Without bf16 CIFAR-10
#: takes five times as long, and is slow too.
FEW = 10
CIFAR = pytest.param("cifar_at", marks=() if BF16 else (pytest.mark.slow,))

pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="no reference models here; ROBUSTCLI_REFERENCE names their directory"
)


def verdicts(name, n, version, seed=0, search="auto", **more):
    """(our verdict, the reference's stages as bool tensors) over n samples spread over the stored ones."""
    stored = np.load(REFERENCE / f"{name}.survivors.npz")
    rows = np.linspace(0, len(stored["y"]) - 1, n).astype(int)
    x, y = torch.from_numpy(stored["x"][rows]).float() / 255, torch.from_numpy(stored["y"][rows]).long()
    found = robustcli.evaluate(
        network(name),
        x,
        y,
        eps=MODELS[name],
        attack="autoattack",
        version=version,
        seed=seed,
        search=search,
        device="cpu",
        **more,
    )
    return found, {
        stage: torch.from_numpy(stored[stage][rows])
        for stage in ("clean", "apgd-ce", "apgd-t", "fab-t", "square")
    }


def check(name, n, version, **more):
    found, reference = verdicts(name, n, version, **more)
    assert found.reliability == "ok", [alarm.to_json() for alarm in found.alarms]
    assert round(found.clean_acc * n) == int(reference["clean"].sum())
    assert int(found.survivors.sum()) <= int(reference["square"].sum()) + 1
    return found, reference


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_standard_is_never_more_than_one_sample_above_the_reference(name):
    found, reference = check(name, 40, "standard")
    assert list(found.stages) == [*STAGES, "apgd-wide"]
    for stage in STAGES:
        assert int(found.stages[stage].sum()) <= int(reference[stage].sum()) + 2, stage


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_rapid_is_close_to_the_reference(name):
    check(name, 40, "rapid")


@pytest.mark.parametrize("name", [CIFAR, "mnist_at"])
def test_rapid_is_close_to_the_reference_on_a_few(name):
    found, reference = check(name, FEW, "rapid", audit=0)
    assert all(stage.startswith("rapid:") for stage in found.stages)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_agreement_on_200(name):
    check(name, 200, "standard")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_exact_search_agrees_too(name):
    check(name, 40, "standard", search="fp32")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_no_stage_is_above_the_reference_by_more_than_two_deviations_of_our_seeds(name):
    counts, reference = [], {}
    for seed in range(5):
        found, reference = verdicts(name, 60, "standard", seed=seed)
        counts.append({stage: float(kept.sum()) for stage, kept in found.stages.items()})
    for stage in counts[0]:
        ours = torch.tensor([count[stage] for count in counts])
        assert float(ours.mean()) <= int(reference[stage].sum()) + 2 * float(ours.std().clamp_min(0.5)), (
            stage,
            ours.tolist(),
        )
