"""A certificate of one image on the disk: ``certificates/ID.json``.

It is a sealed document (`store.sealed`). It names the model, the image and the method by what a stranger can
compute again. The seal finds damage, not forgery: that is found by `evaluation.certificates.check`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from robustcli.certificates.answer import ABSTAIN, Answer
from robustcli.errors import CheckpointError, DataError
from robustcli.evaluation.alarms import state_digest
from robustcli.regular import read_regular
from robustcli.runtime.seed import environment
from robustcli.store.atomic import write_atomic
from robustcli.store.sealed import seal, unseal

FOLDER: Final = "certificates"
#: Keys of an answer's evidence: what proved the radius where that is not the stage; and whether a bound of
#: plain CROWN was looser than that of IBP. In a certificate the first has a key of its own.
METHOD: Final = "method"
LOOSER: Final = "crown_looser"
SCHEMA_VERSION: Final = 1
_FORMAT = "robustcli-certificate"
_MAX_BYTES = 1 << 20
_VERSIONS = ("robustcli", "code", "python", "torch", "numpy")
_Sha = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """Part of the document: no key may be missing or unknown, and no value is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Image(_Part):
    """The certified image.

    Args:
        sha256: `image_digest`.
        shape: C, H, W.
    """

    sha256: _Sha
    shape: list[int] = Field(min_length=3, max_length=3)


class Certificate(_Part):
    """The class `label` stands for every change of the image that is shorter than `radius`.

    Args:
        id: of the sample in its stored split.
        model: `state_digest` of the network, normalisation included.
        image: what was certified.
        label: the class that is proven.
        norm: linf, l2 or l1; translation for noise that moves images.
        radius: in pixel units of [0, 1]; in pixels of displacement for translations.
        method: ibp, crown-ibp, crown, alpha-crown or smoothing. All but the last speak of images in [0, 1].
        parameters: of the method, all of them.
        seed: of its draws; None for a method without.
        evidence: what the method found: the least margin in logits, or the counts of a sample.
        versions: of what computed it.
    """

    id: int = Field(ge=0)
    model: _Sha
    image: Image
    label: int = Field(ge=0)
    norm: Literal["linf", "l2", "l1", "translation"]
    radius: float = Field(gt=0, allow_inf_nan=False)
    method: str = Field(min_length=1, max_length=64)
    parameters: dict[str, Any]
    seed: int | None
    evidence: dict[str, Any]
    versions: dict[str, str | None]


@dataclass(frozen=True)
class Provenance:
    """What all certificates of one run share.

    Args:
        model: `state_digest` of the network.
        norm: of all radii.
        parameters: name of a method -> its parameters.
        seed: of all draws; None for methods without.
        versions: of what computes them.
    """

    model: str
    norm: str
    parameters: Mapping[str, Mapping[str, Any]]
    seed: int | None
    versions: Mapping[str, str | None] = field(default_factory=lambda: versions())

    @classmethod
    def of(
        cls, model: nn.Module, norm: str, parameters: Mapping[str, Mapping[str, Any]], seed: int | None = None
    ) -> Provenance:
        """Of a run that certifies `model`."""
        return cls(state_digest(model), norm, parameters, seed)

    def certificate(self, answer: Answer, x: Tensor, sample: int) -> Certificate | None:
        """The certificate of one answer, or None where nothing is proven.

        Args:
            answer: its evidence may have the keys `METHOD` and `LOOSER`.
            x: pixels [C, H, W] of the image.
            sample: its id.
        """
        if answer.label == ABSTAIN or not answer.radius > 0 or math.isinf(answer.radius):
            return None
        evidence = {key: value for key, value in answer.evidence.items() if key not in (METHOD, LOOSER)}
        method = str(answer.evidence.get(METHOD, answer.stage))
        return Certificate(
            id=sample,
            model=self.model,
            image=Image(sha256=image_digest(x), shape=list(x.shape)),
            label=answer.label,
            norm=self.norm,  # type: ignore[arg-type]  # pydantic checks it
            radius=float(answer.radius),
            method=method,
            parameters=dict(self.parameters.get(method, {})),
            seed=self.seed,
            evidence=evidence,
            versions=dict(self.versions),
        )


def image_digest(x: Tensor) -> str:
    """SHA-256 in hex over the pixels [C, H, W] as little-endian float32, row by row."""
    pixels = x.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(pixels.numpy().astype("<f4").tobytes()).hexdigest()


def versions() -> dict[str, str | None]:
    """What computed a certificate: robustcli and the hash of its source, Python, torch and numpy."""
    known = environment()
    return {name: known[name] for name in _VERSIONS}


def save_certificate(folder: Path, certificate: Certificate) -> Path:
    """Write ``certificates/ID.json`` below `folder`, all or nothing. Raises ResourceError."""
    path = folder / FOLDER / f"{certificate.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    data, _ = seal(certificate.model_dump(mode="json"), _FORMAT, SCHEMA_VERSION)
    write_atomic(path, data)
    return path


def read_certificate(path: Path) -> Certificate:
    """The certificate in a file.

    Raises DataError: E-FILE where there is none, E-CERTIFICATE for any other file, a changed one too.
    """
    try:
        data = read_regular(path, _MAX_BYTES)
        document, _ = unseal(data, _FORMAT, SCHEMA_VERSION, what="certificate of robustcli", where=str(path))
        return Certificate.model_validate(document)
    except CheckpointError as error:
        raise _unread(error, path) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise refused(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", str(path)) from error


def _unread(error: CheckpointError, path: Path) -> DataError:
    """What a sealed file that cannot be read is as a certificate."""
    if error.code == "E-CKPT-MISSING":
        hint = "give certificates/ID.json of a run of certify, or the run"
        return DataError("no such certificate", where=str(path), hint=hint, code="E-FILE")
    if error.code == "E-CKPT-HASH":
        return refused("the file was changed after it was sealed", str(path))
    return refused(error.what, str(path))


def refused(what: str, where: str) -> DataError:
    """The error of a certificate that does not hold."""
    return DataError(
        f"the certificate does not hold: {what}",
        where=where,
        hint="certify the sample again with the model and the data that it is about",
        code="E-CERTIFICATE",
    )
