"""Which attacks a run was made with, and their papers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from robustcli import registry
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.summary import source_of


def attacks_of(dossier: Dossier) -> list[str]:
    """Registered names of the attacks of a run; what is not registered is left out."""
    named = dict.fromkeys(name for text in _texts(dossier) for name in (text, text.rpartition("-")[0]))
    return [name for name in named if name in registry.attacks]


def papers_of(dossier: Dossier) -> dict[str, str]:
    """Name -> paper, of the lists of attacks that the configuration names, then of the attacks."""
    named = [str(spec.get("name")) for spec in _listed(dossier.config.get("attacks"))]
    lists = [registry.ensembles.get(name) for name in named if name in registry.ensembles]
    attacks = [registry.attacks.get(name) for name in attacks_of(dossier)]
    papers = {entry.name: source_of(entry.fn) for entry in lists}
    papers |= {entry.name: source_of(entry.fn) for entry in attacks}
    return {name: paper for name, paper in papers.items() if paper}


def _texts(dossier: Dossier) -> Iterator[str]:
    """Names, and labels such as ``pgd-20`` where a record has no more."""
    yield from (row.attack for row in dossier.of(EvalRow))
    yield from (label for row in dossier.of(CertifyRow) for label in row.attacks)
    yield from (str(spec.get("name")) for row in dossier.of(TransferRow) for spec in row.params)
    if dossier.verb == "train":
        train = dossier.config.get("train") or {}
        yield from (str(spec.get("name")) for spec in _listed([train.get("val_attack")]))
    models = dossier.document.get("models")
    parts = models.values() if isinstance(models, Mapping) else ()
    yield from (str(spec.get("name")) for part in _listed(parts) for spec in _listed(part.get("attacks")))


def _listed(entries: Any) -> list[Mapping[str, Any]]:
    """The mappings among some entries."""
    return [entry for entry in entries or () if isinstance(entry, Mapping)]
