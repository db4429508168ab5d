"""A certificate on the disk: what it holds, and that no other file is taken for one."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustcli.certificates.answer import ABSTAIN, Answer
from robustcli.errors import DataError
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.certificates.document import (
    Certificate,
    Provenance,
    image_digest,
    read_certificate,
    save_certificate,
)
from robustcli.store.atomic import strict_json

X = torch.tensor([[[0.0, 0.25], [1.0, 1 / 3]]])
PARAMETERS = {"crown": {}, "smoothing": {"sigma": 0.25}}


def answer(**changed: Any) -> Answer:
    usual = {
        "label": 3,
        "radius": 0.1,
        "status": "verified",
        "stage": "crown",
        "seconds": 1.0,
        "evidence": {"margin": 0.5},
    }
    return Answer(**{**usual, **changed})


def certificate(**changed: Any) -> Certificate | None:
    provenance = Provenance.of(nn.Linear(2, 2), "linf", PARAMETERS)
    return provenance.certificate(answer(**changed), X, 17)


def test_a_certificate_reads_back_as_it_was_written(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    made = Provenance.of(model, "linf", PARAMETERS).certificate(answer(), X, 17)
    assert made is not None
    path = save_certificate(tmp_path, made)
    first = path.read_bytes()
    assert path == tmp_path / "certificates" / "17.json" and read_certificate(path) == made
    assert save_certificate(tmp_path, made).read_bytes() == first  # no time, no machine in it
    plain = json.loads(first)
    pixels = struct.pack("<4f", 0.0, 0.25, 1.0, 1 / 3)
    assert plain["image"] == {"sha256": hashlib.sha256(pixels).hexdigest(), "shape": [1, 2, 2]}
    assert plain["model"] == state_digest(model) and plain["schema_version"] == 1
    assert (plain["method"], plain["seed"], plain["radius"]) == ("crown", None, 0.1)
    assert plain["versions"]["torch"] == str(torch.__version__)


def test_the_stage_is_not_always_the_method() -> None:
    made = certificate(stage="unknown", evidence={"method": "crown", "margin": 1.0})
    assert made is not None and made.method == "crown" and made.evidence == {"margin": 1.0}


@pytest.mark.parametrize(
    "changed",
    [{"radius": 0.0}, {"label": ABSTAIN}, {"radius": math.inf}],
    ids=["nothing", "abstained", "inf"],
)
def test_nothing_proven_gives_no_certificate(changed: dict[str, Any]) -> None:
    assert certificate(**changed) is None


def test_the_digest_is_that_of_the_pixels_alone() -> None:
    strided = X.transpose(1, 2).contiguous().transpose(1, 2)
    assert image_digest(strided) == image_digest(X) == image_digest(X.double())
    assert image_digest(X) != image_digest(X.transpose(1, 2))


def forged(path: Path, key: str, value: Any) -> None:
    """Change one value and seal the file again, as its writer would."""
    document = json.loads(path.read_bytes())
    document[key] = value
    document.pop("sha256")
    sha256 = hashlib.sha256(strict_json(document, indent=1).encode() + b"\n").hexdigest()
    path.write_bytes(strict_json({**document, "sha256": sha256}, indent=1).encode() + b"\n")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "robustcli-guard"),
        ("schema_version", 2),
        ("id", -1),
        ("model", "abc"),
        ("label", "3"),
        ("label", ABSTAIN),
        ("radius", 0),
        ("radius", "0.1"),
        ("norm", "l3"),
        ("image", {"sha256": "0" * 64}),
        ("seed", 0.5),
        ("evidence", None),
        ("more", 1),
    ],
)
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    made = certificate()
    assert made is not None
    path = save_certificate(tmp_path, made)
    forged(path, "id", 18)
    assert read_certificate(path).id == 18  # a forger can seal: the check finds what is false
    forged(path, key, value)
    with pytest.raises(DataError, match="does not hold") as found:
        read_certificate(path)
    assert found.value.exit_code == 3 and found.value.code == "E-CERTIFICATE"


def test_a_file_that_is_cut_or_changed_is_refused(tmp_path: Path) -> None:
    made = certificate()
    assert made is not None
    path = save_certificate(tmp_path, made)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        for broken in (whole[:place], whole[:place] + b"~" + whole[place + 1 :]):
            path.write_bytes(broken)
            with pytest.raises(DataError):
                read_certificate(path)
    path.write_bytes(whole.replace(b'"radius": 0.1', b'"radius": 0.2'))
    with pytest.raises(DataError, match="changed after it was sealed"):
        read_certificate(path)
    with pytest.raises(DataError, match="no such certificate") as found:
        read_certificate(tmp_path / "none.json")
    assert found.value.code == "E-FILE"
