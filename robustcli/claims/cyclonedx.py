"""A bill of materials with the claims of a run: CycloneDX 1.6, an ML-BOM.

Source of the format: https://cyclonedx.org/docs/1.6/json/ (ECMA-424).
The same records give the same document.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from robustcli.claims.bom_card import Tree, card_of, properties
from robustcli.claims.measured import Measured, measured
from robustcli.claims.provenance import Provenance, section
from robustcli.records.transfer import TransferRow
from robustcli.regular import read_bytes
from robustcli.reporting.dossier import Dossier

SPEC_VERSION = "1.6"
FILE_NAME = "bom.cdx.json"
_LIBRARIES = ("torch", "torchvision", "numpy", "safetensors")  # keys of env.json, which are names on PyPI
#: Files of a run that the claims rest on -> what CycloneDX calls such a file.
_EVIDENCE = {
    "config.resolved.yaml": "configuration",
    "env.json": "build-meta",
    "metrics.jsonl": "evidence",
    "samples.jsonl": "evidence",
    "summary.json": "evidence",
}
_LIMIT = 1 << 32  # bytes of one file
_STATE = "names, shapes and values of its tensors"


def cyclonedx(dossier: Dossier) -> Tree:
    """The document for one run; `metadata` names the tool, `components` holds models, data and libraries.

    A run that has not ended well, and an invalid evaluation, claim no number: `performanceMetrics` is empty.
    Raises OSError where a file of the run cannot be read.
    """
    provenance, numbers = Provenance.of(dossier), measured(dossier)
    data = _data(provenance, numbers)
    libraries = list(_libraries(dossier.environment))
    models = [_model(provenance, name, numbers, data) for name in _names(numbers)]
    needed = [component["bom-ref"] for component in (*data, *libraries)]
    document: Tree = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {"tools": {"components": [_tool(dossier.environment)]}, "properties": _about(dossier)},
        "components": [*models, *data, *libraries],
        "externalReferences": list(_evidence(dossier)),
        "dependencies": [{"ref": model["bom-ref"], "dependsOn": needed} for model in models],
    }
    return {"$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json", **_numbered(document)}


def _numbered(document: Tree) -> Tree:
    """The document with its serial number: a name-based UUID of all it says."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=True)
    number = uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(text.encode()).hexdigest())
    return {**document, "serialNumber": number.urn}


def _names(numbers: Sequence[Measured]) -> list[str]:
    """Short names of the models that the run measured; [""] where it measured one."""
    return list(dict.fromkeys(number.model for number in numbers)) or [""]


def _tool(environment: Mapping[str, Any]) -> Tree:
    return {"type": "application", "name": "robustcli", "version": str(environment.get("robustcli", ""))}


def _about(dossier: Dossier) -> list[Tree]:
    own = {"verb": dossier.verb, "run": dossier.id, "state": dossier.state}
    return properties({**own, "code": dossier.environment.get("code")})


def _evidence(dossier: Dossier) -> Iterator[Tree]:
    """The files of the run that the claims rest on, each with its hash."""
    for name, kind in _EVIDENCE.items():
        path = dossier.path / name
        if path.is_file():
            digest = hashlib.sha256(read_bytes(path, _LIMIT)).hexdigest()
            yield {"type": kind, "url": name, "hashes": _hashes([digest])}


def _model(provenance: Provenance, name: str, numbers: Sequence[Measured], data: Sequence[Tree]) -> Tree:
    own = [number for number in numbers if number.model == name]
    state, files = _state(provenance, name), _weights(provenance, name)
    hashed = _STATE if state else ", ".join(files)
    guard = provenance.hashes.get("guard")
    if guard and not state:  # it was fitted, and is not yet measured
        state, hashed = guard, "guard.json"
    reference = f"model:{name or provenance.name}"
    component: Tree = {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": name or provenance.name,
        "hashes": _hashes([state] if state else files.values()),
        "modelCard": card_of(provenance, own, [component["bom-ref"] for component in data]),
        "properties": properties({"reference": provenance.model, "hash-of": hashed}),
    }
    if files:
        component["components"] = [_file(reference, path, sha256) for path, sha256 in files.items()]
    return component


def _file(model: str, path: str, sha256: str) -> Tree:
    return {"type": "file", "bom-ref": f"{model}/{path}", "name": path, "hashes": _hashes([sha256])}


def _state(provenance: Provenance, name: str) -> str:
    """SHA-256 of the state of a model when it was measured; "" where no row has it."""
    if not name:
        return provenance.hashes.get("model", "")
    rows = (row for row in provenance.dossier.of(TransferRow) if row.target == name)
    return next((row.hashes.get("target", "") for row in rows), "")


def _weights(provenance: Provenance, name: str) -> dict[str, str]:
    """Path -> SHA-256 of the files of weights; {} where they are not known to be those of this model."""
    part = provenance.dossier.parts.get(name)
    if part is not None:
        return Provenance.of(part).weights
    return {} if name else provenance.weights


def _data(provenance: Provenance, numbers: Sequence[Measured]) -> list[Tree]:
    """The data set of the numbers and that of the training: one entry where they are the same."""
    named = {number.data: f"measured on its {number.split} split" for number in reversed(numbers)}
    training = provenance.training
    if training is not None:
        name = str(section(training.config, "data").get("name", ""))
        named[name] = ", ".join(filter(None, ("trained on its train split", named.get(name))))
    digest = provenance.hashes.get("data", "")
    measured_on = {number.data for number in numbers}
    return [
        {
            "type": "data",
            "bom-ref": f"data:{name}",
            "name": name,
            "hashes": _hashes(digest.split("+")) if name in measured_on else [],
            "data": [{"type": "dataset", "name": name, "description": told}],
        }
        for name, told in named.items()
        if name
    ]


def _libraries(environment: Mapping[str, Any]) -> Iterator[Tree]:
    for name in _LIBRARIES:
        version = environment.get(name)
        if isinstance(version, str):
            purl = f"pkg:pypi/{name}@{quote(version, safe='.-_')}"
            yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _hashes(digests: Any) -> list[Tree]:
    """Entries for SHA-256 digests; what is no whole one is left out."""
    return [{"alg": "SHA-256", "content": digest} for digest in digests if len(digest) == 64]
