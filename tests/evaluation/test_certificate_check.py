"""A stranger's check: what is true holds, and every forgery of a claim ends with 3."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.certificates.answer import Answer
from robustcli.certificates.binomial import lower_bound
from robustcli.certificates.smoothing import Smoothed, Smoothing
from robustcli.core.geometry import Ball
from robustcli.data.split import MemorySplit
from robustcli.errors import DataError
from robustcli.evaluation.certificates.bounds import Bounds, Least
from robustcli.evaluation.certificates.deterministic import Effort, deterministic
from robustcli.evaluation.certificates.document import (
    Certificate,
    Provenance,
    read_certificate,
    save_certificate,
)
from robustcli.jobs.certify.check import check
from robustcli.models.normalised import NormalisedModel
from robustcli.store.atomic import strict_json
from robustcli.terminal.console import Console

CPU, SHAPE = torch.device("cpu"), (1, 3, 3)
PLAN = Smoothing(sigma=0.5, n0=20, n=2000, alpha=0.001, seed=5)


def network(seed: int = 0) -> NormalisedModel:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 3))
    return NormalisedModel(layers, [0.5], [0.5]).eval()


MODEL = network()
PIXELS = torch.randint(0, 256, (12, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    LABELS = MODEL(PIXELS.float() / 255).argmax(1)
SPLIT = MemorySplit(PIXELS, LABELS, ("a", "b", "c"), ids=torch.arange(100, 112))


def smoothed(x: Tensor, ids: Tensor, plan: Smoothing = PLAN) -> list[Answer]:
    """What CERTIFY says of each image."""
    found = Smoothed(MODEL, 3, plan).certify(x, ids)
    return [
        Answer(
            label=int(found.label[k]),
            radius=float(found.radius[k]),
            status="verified",
            stage="smoothing",
            seconds=0.0,
            evidence={
                "counts": found.counts[k].tolist(),
                "draws": int(found.draws[k]),
                "chosen": int(found.chosen[k]),
                "lower": float(found.lower[k]),
            },
        )
        for k in range(len(x))
    ]


@cache
def proven(method: str, norm: str) -> list[Certificate]:
    """The certificates of all samples that a method proves."""
    x, y, ids = next(iter(SPLIT.stream([torch.arange(12)], CPU)))
    if method == "smoothing":
        answers = smoothed(x, ids)
        parameters = {"smoothing": {k: v for k, v in vars(PLAN).items() if k != "seed"}}
        provenance = Provenance.of(MODEL, "l2", parameters, PLAN.seed)
    else:
        effort, radii = Effort(alpha_steps=3), [0.01, 0.02, 0.03]
        made = deterministic(MODEL, Ball(norm, 0.02), radii, method, shape=SHAPE, device=CPU, effort=effort)
        answers = made(x, y, ids)
        provenance = Provenance.of(MODEL, norm, made.parameters)
    given = zip(answers, x, ids.tolist(), strict=True)
    certificates = [provenance.certificate(answer, image, sample) for answer, image, sample in given]
    return [one for one in certificates if one is not None]


def written(folder: Path, method: str, norm: str = "linf") -> list[Path]:
    return [save_certificate(folder, one) for one in proven(method, norm)]


def holds(path: Path, model: nn.Module = MODEL, split: MemorySplit = SPLIT) -> dict[str, Any]:
    return check(path, model, split, Console(quiet=True), device=CPU)


def forge(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a document and seal it again."""
    document = json.loads(path.read_bytes())
    document.pop("sha256")
    change(document)
    sha256 = hashlib.sha256(strict_json(document, indent=1).encode() + b"\n").hexdigest()
    path.write_bytes(strict_json({**document, "sha256": sha256}, indent=1).encode() + b"\n")


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "alpha-crown", "smoothing"])
def test_a_true_certificate_holds(tmp_path: Path, method: str) -> None:
    paths = written(tmp_path, method)
    assert len(paths) >= 6
    for path in paths[:3]:
        (one,) = holds(path)["checked"]
        assert (one["file"], one["method"]) == (str(path), method) and one["radius"] > 0
    assert len(holds(tmp_path)["checked"]) == min(10, len(paths))  # of the folder a random part
    assert len(holds(tmp_path / "certificates")["checked"]) == min(10, len(paths))


@pytest.mark.parametrize("method", ["ibp", "alpha-crown", "smoothing"])
@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(id=d["id"] + 1),
        lambda d: d.update(id=5),
        lambda d: d.update(model="0" * 64),
        lambda d: d["image"].update(sha256="0" * 64),
        lambda d: d["image"].update(shape=[1, 9, 1]),
        lambda d: d.update(label=(d["label"] + 1) % 3),
        lambda d: d.update(label=7),
        lambda d: d.update(norm="l1"),
        lambda d: d.update(norm="translation"),
        lambda d: d.update(radius=d["radius"] * 1.001),
        lambda d: d.update(radius=9.0),
        lambda d: d.update(method="magic"),
        lambda d: d.update(method="crown"),
        lambda d: d.update(parameters={"sigma": -1}),
        lambda d: d.update(evidence={}),
    ],
    ids=["id", "no-id", "model", "image", "shape", "label", "no-class", "norm", "translation"]
    + ["radius", "large", "no-method", "method", "parameters", "evidence"],
)
def test_a_forged_claim_does_not_hold(tmp_path: Path, method: str, change: Callable[[dict], None]) -> None:
    path = written(tmp_path, method)[0]
    forge(path, change)
    with pytest.raises(DataError, match="does not hold") as found:
        holds(path)
    assert (found.value.exit_code, found.value.code) == (3, "E-CERTIFICATE")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(radius=d["radius"] * 0.9),  # true, but not what was found
        lambda d: d.update(seed=1),
        lambda d: d["evidence"].update(margin=d["evidence"]["margin"] * 1.01),
        lambda d: d["evidence"].update(margin="much"),
        lambda d: d["parameters"].update(alpha_steps=10**9),
        lambda d: d["parameters"].update(more=1),
    ],
)
def test_a_bound_must_be_the_one_that_was_found(tmp_path: Path, change: Callable[[dict], None]) -> None:
    path = written(tmp_path, "alpha-crown")[0]
    forge(path, change)
    with pytest.raises(DataError, match="does not hold"):
        holds(path)


def test_another_version_may_prove_more(tmp_path: Path) -> None:
    path = written(tmp_path, "ibp")[0]
    forge(path, lambda d: d["evidence"].update(margin=d["evidence"]["margin"] / 2))
    forge(path, lambda d: d["versions"].update(code="0" * 64))
    assert holds(path)["holds"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["evidence"].update(counts=[1, 2]),
        lambda d: d["evidence"].update(counts=[True, 2, 3]),
        lambda d: d["evidence"].update(draws=1),
        lambda d: d["evidence"].update(chosen=(d["label"] + 1) % 3),
        lambda d: d["evidence"].update(lower=1.0),
        lambda d: d["evidence"].update(lower=None),
        lambda d: d["parameters"].update(n=4000),  # fewer draws, and nothing that would end them
        lambda d: d["evidence"].update(draws=10**9, counts=[10**9, 0, 0]),
        lambda d: d["parameters"].update(n=10),
        lambda d: d["parameters"].update(noise="pink"),
        lambda d: d["parameters"].update(more=1),
        lambda d: d["parameters"].pop("sigma"),
    ],
)
def test_counts_must_be_possible(tmp_path: Path, change: Callable[[dict], None]) -> None:
    path = written(tmp_path, "smoothing")[0]
    forge(path, change)
    with pytest.raises(DataError, match="does not hold"):
        holds(path)


def test_fresh_draws_contradict_counts_that_were_made_up(tmp_path: Path) -> None:
    """All draws for one class, with the radius that follows: only the network can say that it is false."""
    paths = written(tmp_path, "smoothing")
    claims = [read_certificate(path) for path in paths]
    path, claim = min(zip(paths, claims, strict=True), key=lambda pair: pair[1].radius)
    counts = [PLAN.n * (k == claim.label) for k in range(3)]
    lower = float(lower_bound(PLAN.n, PLAN.n, PLAN.level))
    forge(path, lambda d: d.update(radius=PLAN.radius(lower)))
    forge(path, lambda d: d["evidence"].update(counts=counts, draws=PLAN.n, lower=lower))
    with pytest.raises(DataError, match="fresh draws"):
        holds(path)


def test_sampling_that_ended_early_holds_with_what_it_proved(tmp_path: Path) -> None:
    plan = replace(PLAN, n=4000, enough=0.15)
    x, y, ids = next(iter(SPLIT.stream([torch.arange(12)], CPU)))
    parameters = {"smoothing": {k: v for k, v in vars(plan).items() if k != "seed"}}
    answers = zip(smoothed(x, ids, plan), x, ids.tolist(), strict=True)
    made = [Provenance.of(MODEL, "l2", parameters, 5).certificate(a, image, one) for a, image, one in answers]
    early = [one for one in made if one is not None and one.evidence["draws"] < plan.n]
    assert len(early) >= 3
    for one in early[:3]:
        assert holds(save_certificate(tmp_path, one))["holds"]
    path = save_certificate(tmp_path, early[0])
    forge(path, lambda d: d["parameters"].update(enough=None))
    with pytest.raises(DataError, match="does not end with a claim"):
        holds(path)


def test_another_model_and_another_image(tmp_path: Path) -> None:
    path = written(tmp_path, "crown")[0]
    other = copy.deepcopy(MODEL)
    other.mean += 0.001  # the normalisation belongs to the model
    with pytest.raises(DataError, match="another model"):
        holds(path, other)
    pixels = PIXELS.clone()
    pixels[:, 0, 0, 0] ^= 1
    with pytest.raises(DataError, match="another image"):
        holds(path, split=MemorySplit(pixels, LABELS, SPLIT.classes, ids=SPLIT.ids))


def test_random_points_are_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that prove everything are contradicted by the network itself."""
    path = written(tmp_path, "ibp")[0]
    forge(path, lambda d: d.update(radius=1.0))
    margin = read_certificate(path).evidence["margin"]
    monkeypatch.setattr(
        Bounds, "least", lambda *args: Least(torch.tensor([margin]), torch.tensor([margin]), set())
    )
    with pytest.raises(DataError, match="random points are of another class"):
        holds(path)


def test_a_folder_without_certificates(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no certificates lie there"):
        holds(tmp_path)
