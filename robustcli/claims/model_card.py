"""A Hugging Face model card: what a run claims, as `model-index` for machines and as sections for people.

Source of the format: https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from robustcli.claims import words
from robustcli.claims.measured import CERTIFIED, Measured, measured
from robustcli.claims.provenance import Provenance
from robustcli.errors import printable
from robustcli.reporting.cells import digest_name
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import code
from robustcli.reporting.page.limits import limits, untested
from robustcli.reporting.tables import Table

TASK = {"type": "image-classification", "name": "Image classification"}
_TAGS = ("image-classification", "adversarial-robustness", "robustcli")
#: Of env.json, in this order; the hash of the code stands with the other hashes.
_ENVIRONMENT = ("robustcli", "torch", "torchvision", "numpy", "python", "platform", "cpu", "cuda", "gpus")


def model_card(dossier: Dossier) -> str:
    """The model card of one run: YAML front matter, then markdown.

    A run that has not ended well, and an invalid evaluation, claim no number: their card has no
    `model-index`, and says why on top.
    """
    provenance, numbers = Provenance.of(dossier), measured(dossier)
    front = yaml.safe_dump(front_matter(provenance, numbers), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{front}---\n\n{_body(provenance, numbers)}"


def front_matter(provenance: Provenance, numbers: Sequence[Measured]) -> dict[str, Any]:
    """The YAML header as a tree."""
    head: dict[str, Any] = {"tags": list(_TAGS), "pipeline_tag": TASK["type"]}
    claimed = [number for number in numbers if not (number.slice or number.step)]
    if words.unfit(provenance) or not claimed:
        return head
    results = _results(provenance, claimed)
    metrics = list(dict.fromkeys(number.metric for number in claimed))
    return {**head, "metrics": metrics, "model-index": [{"name": provenance.name, "results": results}]}


def _results(provenance: Provenance, numbers: Sequence[Measured]) -> list[dict[str, Any]]:
    """One entry per threat, clean images first: what is attacked must not be read as what is clean."""
    groups: dict[tuple[str, str, str, float], list[Measured]] = {}
    for number in numbers:
        groups.setdefault((number.data, number.split, number.norm, number.eps), []).append(number)
    digest = provenance.hashes.get("data")
    return [
        {"task": dict(TASK), "dataset": _dataset(group[0], digest), "metrics": [*map(_metric, group)]}
        for group in groups.values()
    ]


def _dataset(number: Measured, digest: str | None) -> dict[str, Any]:
    attacked = f", attacked within {number.norm} {number.eps:.6g}" if number.norm else ""
    entry: dict[str, Any] = {
        "type": number.data or "unknown",
        "name": f"{number.data or 'unknown'} ({number.split or 'unknown split'}{attacked})",
        "split": number.split or "unknown",
    }
    return {**entry, "args": {"sha256": digest}} if digest else entry


def _metric(number: Measured) -> dict[str, Any]:
    low, high = number.rate.exact
    args: dict[str, Any] = {
        "n": number.rate.n,
        "k": number.rate.k,
        "interval": [low, high],
        "confidence": 0.95,
        "seed": number.seed,
    }
    if number.norm:
        by = "method" if number.metric == CERTIFIED else "attack"
        args |= {"norm": number.norm, "eps": number.eps, by: number.by}
    if number.model:
        args["model"] = number.model
    return {"type": number.metric, "value": number.rate.value, "name": number.title, "args": args}


def _body(provenance: Provenance, numbers: Sequence[Measured]) -> str:
    dossier = provenance.dossier
    unfit = words.unfit(provenance)
    lines = [f"# {code(provenance.name)}", ""]
    if unfit:
        lines += [f"> **No claim:** {unfit}.", ""]
    elif dossier.reliability == "suspect":
        lines += ["> **Suspect:** an alarm casts doubt on these numbers; see Reliability.", ""]
    lines += [f"Written from the records of `robustcli {dossier.verb}`; nothing was measured again.", ""]
    sections = {
        "Intended use": _list(words.intended_use(provenance)),
        "Trained on": _list(words.training(provenance)),
        "Threat model": _list(words.threat(provenance, numbers)),
        "Results": _results_table(numbers),
        "Reliability": _list(words.reliability(provenance)),
        "Limits": _list(limits(provenance.dossier)),
        "Not tested": _list(untested(provenance.dossier)),
        "Environment": _list(_environment(dossier.environment)),
        "Hashes (SHA-256)": _list(_hashes(provenance)),
        "How to reproduce": ["```bash", provenance.command, "```"],
        "Citations": _list(_citations(provenance)),
    }
    for title, content in sections.items():
        lines += [f"## {title}", "", *content, ""]
    return "\n".join(lines).rstrip() + "\n"


def _results_table(numbers: Sequence[Measured]) -> list[str]:
    """Of all samples, then of each class."""
    whole = [number for number in numbers if not number.slice]
    if not whole:
        return ["This run measured no accuracy."]
    rows = [(number.title, number.data, number.split, number.rate) for number in whole]
    note = "Brackets: 95 % Wilson interval; `model-index` has that of Clopper and Pearson."
    if any(number.step for number in whole):
        note += " Each attack runs on the samples that the attacks above it left standing."
    text = Table("", ("number", "data", "split", "value"), rows, note).markdown()
    classes = [(number.slice, number.title, number.rate) for number in numbers if number.slice]
    if classes:
        text += "\n" + Table("per class", ("class", "number", "value"), classes).markdown()
    return [text.rstrip()]


def _environment(environment: Mapping[str, Any]) -> list[str]:
    """What it ran on."""
    found = [(name, environment[name]) for name in _ENVIRONMENT if environment.get(name)]
    if not found:
        return ["Not recorded."]
    return [f"{name}: {code(value if isinstance(value, str) else _plain(value))}" for name, value in found]


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _hashes(provenance: Provenance) -> list[str]:
    found = {**provenance.hashes, **provenance.weights}
    if not found:
        return ["Not recorded."]
    return [f"{printable(digest_name(name, value))}: {code(value)}" for name, value in found.items()]


def _citations(provenance: Provenance) -> list[str]:
    methods = [f"{code(name)}: {paper}" for name, paper in provenance.papers.items()]
    intervals = "Wilson, JASA 22, 1927 (here); Clopper and Pearson, Biometrika 26, 1934 (`model-index`)."
    return [*methods, f"intervals: {intervals}"]


def _list(lines: Sequence[str]) -> list[str]:
    return [f"- {printable(line)}" for line in lines] or ["- None."]
