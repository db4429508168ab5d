"""A guarded model on the disk: what `guard fit` writes and ``guard:DIR`` opens.

    DIR/guard.json            a sealed document (`store.sealed`): `GuardManifest`
    DIR/weights.safetensors   networks and defences

Nothing in it can run code. A member that a user's code makes is opened with that code alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from robustcli.errors import CheckpointError, ConfigError, NumericsError, UsageError
from robustcli.models.defended import make_defence
from robustcli.models.guarded import Defence, GuardedModel
from robustcli.models.meant import GUARD_FILE
from robustcli.models.meta import model_from_meta, model_meta
from robustcli.models.normalised import NormalisedModel
from robustcli.regular import read_regular
from robustcli.store import tensorfile
from robustcli.store.atomic import write_atomic
from robustcli.store.sealed import proof, proven, seal, unseal
from robustcli.store.state import compare_state

SCHEMA_VERSION = 1
WEIGHTS = "weights.safetensors"
_FORMAT = "robustcli-guard"
_MAX_BYTES = 16 << 20
_IN_THE_MANIFEST = ("thresholds", "spreads", "described")
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    """Part of the document: no key may be missing or unknown, and no value is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Kept(_Part):
    """One defence: its label, its registered name, and all parameters it was built with."""

    label: str = Field(min_length=1, max_length=255)
    name: str
    params: dict[str, Any]


class Calibrated(_Part):
    """How the thresholds were set.

    Args:
        n: clean images behind the quantile. spread_n: those behind the spreads.
        rank: the quantile is the `rank`-th smallest of the n values.
        alarms: of the n images, those that the guard rejects.
        interval: 95 % interval of the share of clean images that it will reject.
        source: the images, in words. digest: of the data and of the chosen images.
    """

    n: int = Field(ge=1)
    spread_n: int = Field(ge=1)
    rank: int = Field(ge=1)
    alarms: int = Field(ge=0)
    interval: list[float] = Field(min_length=2, max_length=2)
    source: str
    digest: str


class Proof(_Part):
    """Of one file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class GuardManifest(_Part):
    """What guard.json says.

    Args:
        created: time, UTC.
        members: `model_meta` of each network.
        classes: names in the order of the labels.
        defences: in order.
        detectors: labels of what gives a score, in the order of `thresholds` and `spreads`.
        scale: logits per spread.
        fpr: the share of clean images that was asked for.
        calibration: None where nothing gives a score.
        clean: label -> scores of clean images at 101 quantiles, from 0 % to 100 %.
        provenance: configuration, data and versions.
        files: what lies beside the document. aliases: tied tensors, {name: name in the file}.
    """

    created: str
    members: list[dict[str, Any]] = Field(min_length=1)
    classes: list[str]
    defences: list[Kept] = Field(min_length=1)
    detectors: list[str]
    thresholds: list[_Finite]
    spreads: list[_Positive]
    scale: _Positive
    fpr: float = Field(gt=0, lt=1)
    calibration: Calibrated | None
    clean: dict[str, list[_Finite]]
    provenance: dict[str, Any]
    files: dict[str, Proof]
    aliases: dict[str, str]


@dataclass(frozen=True)
class GuardFacts:
    """What a fit found out, as the fields of `GuardManifest` with these names."""

    classes: tuple[str, ...]
    fpr: float
    calibration: Calibrated | None
    clean: Mapping[str, list[float]]
    provenance: Mapping[str, Any]


def save_guard(folder: Path, model: GuardedModel, facts: GuardFacts) -> str:
    """Write a fitted guard; returns the hash of its manifest.

    The manifest is written last: without it there is no guard in the folder. Raises UsageError where a member
    cannot be described, ResourceError, and ValueError for a guard that is not fitted.
    """
    if not model.fitted:
        raise ValueError("a detector has no threshold")
    state = {name: value for name, value in model.state_dict().items() if name not in _IN_THE_MANIFEST}
    weights, aliases = tensorfile.encode(state)
    manifest = GuardManifest(
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        members=[_described(member, facts.classes) for member in model.members],
        classes=list(facts.classes),
        defences=[Kept(label=one.label, name=one.name, params=dict(one.params)) for one in model.defences],
        detectors=list(model.detectors),
        thresholds=model.thresholds.tolist(),
        spreads=model.spreads.tolist(),
        scale=model.scale,
        fpr=facts.fpr,
        calibration=facts.calibration,
        clean=dict(facts.clean),
        provenance=dict(facts.provenance),
        files={WEIGHTS: Proof(**proof(weights))},
        aliases=aliases,
    )
    data, sha256 = seal(manifest.model_dump(mode="json"), _FORMAT, SCHEMA_VERSION)
    write_atomic(folder / WEIGHTS, weights)
    write_atomic(folder / GUARD_FILE, data)
    return sha256


def read_guard(folder: Path) -> tuple[GuardManifest, str]:
    """(what the guard in a folder says of itself, the hash of that).

    Raises CheckpointError: E-CKPT-MISSING, E-CKPT-FORMAT, E-CKPT-HASH, or E-CKPT-META where it contradicts
    itself.
    """
    path = folder / GUARD_FILE
    where = str(path)
    data = read_regular(path, _MAX_BYTES)
    document, sha256 = unseal(data, _FORMAT, SCHEMA_VERSION, what="robustcli guard", where=where)
    try:
        manifest = GuardManifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        _unclear(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", where)
    scored = len(manifest.detectors)
    if not scored == len(manifest.thresholds) == len(manifest.spreads):
        _unclear(f"{scored} detectors, {len(manifest.thresholds)} thresholds", where)
    if set(manifest.files) != {WEIGHTS}:
        _unclear(f"files {sorted(manifest.files)}, and {WEIGHTS} is meant", where)
    return manifest, sha256


def open_guard(folder: Path, plugin: str | None = None) -> GuardedModel:
    """The guarded model in a folder, in eval mode on the CPU.

    plugin: ``FILE.py:factory``, where a member is a user's network.

    Raises CheckpointError: as `read_guard`; E-CKPT-SHAPE where tensors do not fit; E-CKPT-META for a defence
    that this version does not know; E-CKPT-ARCH where the code of a member changed or is not given.
    NumericsError for NaN among the weights.
    """
    manifest, sha256 = read_guard(folder)
    where, kept = str(folder / GUARD_FILE), manifest.files[WEIGHTS]
    data = proven(folder / WEIGHTS, kept.sha256, kept.size)
    tensors = tensorfile.decode(data, manifest.aliases, str(folder / WEIGHTS))
    if wrong := [name for name, value in tensors.items() if not _is_finite(value)]:
        raise NumericsError(f"the weights hold NaN or Inf: {', '.join(wrong[:5])}", where=where)
    members = [model_from_meta(meta, plugin=plugin, where=where) for meta in manifest.members]
    guard = _assembled(manifest, members, where)
    _load(guard, tensors, str(folder / WEIGHTS))
    guard.thresholds = torch.tensor(manifest.thresholds, dtype=torch.float32)
    guard.spreads = torch.tensor(manifest.spreads, dtype=torch.float32)
    guard.sha256, guard.fpr = sha256, manifest.fpr
    return guard.eval()


def _described(member: torch.nn.Module, classes: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(member, NormalisedModel) and member.info is not None and member.arch:
        return model_meta(member, classes)
    raise UsageError(
        f"a network of the class {type(member).__name__} cannot be written into a guard: "
        "nothing says how to build it",
        hint="load it by name, from a run, or with --plugin FILE.py:factory",
        code="E-MODEL",
    )


def _assembled(manifest: GuardManifest, members: list[NormalisedModel], where: str) -> GuardedModel:
    """The guard that the manifest describes, without its weights."""
    info = members[0].info
    assert info is not None
    shapes = {(member.info.num_classes, member.info.shape) for member in members if member.info is not None}
    if len(shapes) > 1:
        _unclear("its networks take different images or classes", where)
    try:
        defences = [_defence(one, info.shape, info.num_classes) for one in manifest.defences]
        guard = GuardedModel(members, defences, info.num_classes, scale=manifest.scale)
    except (ConfigError, ValueError) as error:
        _unclear("; ".join(getattr(error, "problems", ()) or [str(error)]), where)
    if guard.detectors != manifest.detectors:
        _unclear(f"scores of {', '.join(manifest.detectors)}, and of {', '.join(guard.detectors)}", where)
    return guard


def _defence(kept: Kept, shape: tuple[int, int, int], num_classes: int) -> Defence:
    return make_defence(kept.label, kept.name, kept.params, shape, num_classes)


def _load(guard: GuardedModel, tensors: dict[str, Tensor], where: str) -> None:
    """All tensors into the guard. A defence may take its sizes from them, a network may not."""
    inside = "modules_by_label."
    of_defences = {name: value for name, value in tensors.items() if name.startswith(inside)}
    of_members = {name: value for name, value in tensors.items() if name not in of_defences}
    expected = {name: value for name, value in guard.state_dict().items() if not name.startswith(inside)}
    compare_state(
        {name: expected[name] for name in expected if name not in _IN_THE_MANIFEST}, of_members, where=where
    )
    guard.load_state_dict(of_members, strict=False)
    given = {name.removeprefix(inside): value for name, value in of_defences.items()}
    try:
        guard.modules_by_label.load_state_dict(given, strict=True)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the tensors of a defence do not fit it: {str(error).splitlines()[-1].strip()}",
            where=where,
            code="E-CKPT-SHAPE",
        ) from error
    compare_state(guard.modules_by_label.state_dict(), given, where=where)


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _unclear(fault: str, where: str) -> NoReturn:
    raise CheckpointError(f"the guard contradicts itself: {fault}"[:500], where=where, code="E-CKPT-META")
