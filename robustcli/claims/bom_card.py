"""The model card inside a bill of materials: parameters, numbers with their intervals, considerations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli.claims import words
from robustcli.claims.measured import Measured
from robustcli.claims.provenance import Provenance, section
from robustcli.reporting.page.limits import limits, untested

Tree = dict[str, Any]


def card_of(provenance: Provenance, numbers: Sequence[Measured], data: Sequence[str]) -> Tree:
    """The `modelCard` of one model.

    Args:
        numbers: those of this model. data: the references of the data sets in the document.
    """
    training = provenance.training
    architecture = provenance.model if training is None else section(training.config, "model").get("name", "")
    unfit = words.unfit(provenance)
    told = {"reliability": provenance.dossier.reliability, "command": provenance.command}
    claimed = [] if unfit else [number for number in numbers if not number.step]
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "image-classification",
            "modelArchitecture": str(architecture),
            "datasets": [{"ref": reference} for reference in data],
            "inputs": [{"format": "image, pixels in [0, 1]"}],
            "outputs": [{"format": "logits"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": [_metric(number) for number in claimed]},
        "considerations": _considerations(provenance, numbers, unfit),
        "properties": properties(told),
    }


def _metric(number: Measured) -> Tree:
    low, high = number.rate.exact
    attacked = f"@{number.norm}:{number.eps:.6g}" if number.norm else ""
    parts = (f"{number.data}/{number.split}", number.by, f"class {number.slice}" if number.slice else "")
    return {
        "type": f"{number.metric}{attacked}",
        "value": repr(number.rate.value),
        "slice": "; ".join(filter(None, (*parts, f"n={number.rate.n}"))),
        "confidenceInterval": {"lowerBound": repr(low), "upperBound": repr(high)},
    }


def _considerations(provenance: Provenance, numbers: Sequence[Measured], unfit: str) -> Tree:
    told = [f"No claim: {unfit}."] if unfit else []
    told += [alarm.line() for alarm in provenance.dossier.alarms]
    told += limits(provenance.dossier)
    told += [f"Not tested: {line}" for line in untested(provenance.dossier)]
    threat = " ".join(words.threat(provenance, numbers))
    return {
        "useCases": words.intended_use(provenance),
        "technicalLimitations": told,
        "ethicalConsiderations": [
            {
                "name": f"Evasion (MITRE ATLAS AML.T0015). {threat}",
                "mitigationStrategy": " ".join(words.training(provenance)),
            }
        ],
    }


def properties(values: Mapping[str, Any]) -> list[Tree]:
    """Names under our prefix; without those that have no value."""
    return [{"name": f"robustcli:{name}", "value": str(value)} for name, value in values.items() if value]
