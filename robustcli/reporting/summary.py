"""summary.md: what was measured, how, and whom to cite."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from robustcli import registry
from robustcli.config.spec import ModelConfig
from robustcli.config.threats import is_union, members
from robustcli.errors import printable
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.train import TrainRow
from robustcli.reporting.cells import digest_name, format_eps, format_rate
from robustcli.reporting.record_tables import class_table, eval_table, train_table, union_table, validated
from robustcli.reporting.tables import Table

#: Path in a configuration -> where the methods that stand there are registered.
_REGISTRIES: dict[str, tuple[registry.Registry[Any, Any], ...]] = {
    "attacks": (registry.ensembles, registry.attacks),
    "adversary": (registry.attacks,),
    "train.val_attack": (registry.attacks,),
    "objective": (registry.objectives,),
    "model": (registry.models,),
    "defences": (registry.defences,),
}


def eval_summary(
    config: Mapping[str, Any], rows: Sequence[EvalRow], alarms: Sequence[Mapping[str, str]] = ()
) -> str:
    """The report of an evaluation or an attack, as markdown.

    Args:
        config: the resolved configuration as a tree.
        rows: clean, attacks, worst case.
        alarms: each with name, level, evidence and remedy.
    """
    lines = [f"# Evaluation: {_code(config.get('name', 'run'))}", "", *_setting(config), ""]
    by_ball = union_table(rows)
    tables = [eval_table(rows).markdown(), *([] if by_ball is None else [by_ball.markdown()])]
    lines += [*_headline(rows), *tables, _alarms(alarms)]
    if any(row.per_class for row in rows):
        lines += ["## Per class", "", class_table([row for row in rows if row.kind != "attack"]).markdown()]
    lines += _provenance(rows) + _citations(config, ("attacks", "model", "defences"))
    return "\n".join(lines).rstrip() + "\n"


def train_summary(
    config: Mapping[str, Any],
    best: Mapping[str, Any],
    last: Mapping[str, Any],
    rows: Sequence[TrainRow],
    alarms: Sequence[str] = (),
) -> str:
    """The report of a training run, as markdown.

    Args:
        config: the resolved configuration as a tree.
        best, last: {"step": number} of the best and of the last validation; empty without one.
        rows: one per validation.
        alarms: one line each.
    """
    lines = [f"# Training: {_code(config.get('name', 'run'))}", "", *_setting(config), ""]
    lines += [train_table(rows, best_step=best.get("step")).markdown()]
    if best and last:
        steps = f"that of step {best['step']}, the last that of step {last['step']}"
        lines += [f"The best checkpoint is {steps}.", ""]
    if alarms:
        lines += ["## Alarms", "", *(f"- {printable(text)}" for text in alarms), ""]
    lines += [_advice(rows), ""]
    cited = ("objective", "adversary", "train.val_attack", "model")
    lines += _provenance(rows) + _citations(config, cited)
    return "\n".join(lines).rstrip() + "\n"


def fit_summary(config: Mapping[str, Any], table: Table, defences: Sequence[str], sha256: str) -> str:
    """The report of a fitted guard, as markdown.

    Args:
        config: the resolved configuration as a tree.
        table: thresholds, calibration and test images.
        defences: labels, in the order in which they stand.
        sha256: of the manifest.
    """
    lines = [f"# Guard: {_code(config.get('name', 'run'))}", "", *_setting(config), ""]
    lines += [f"Defences: {', '.join(map(_code, defences))}. SHA-256 of the manifest: {_code(sha256)}.", ""]
    lines += [
        table.markdown(),
        "What an attack that knows the guard leaves is said by `robustcli guard eval`.",
    ]
    lines += ["", *_citations(config, ("defences", "model"))]
    return "\n".join(lines).rstrip() + "\n"


def certify_summary(
    config: Mapping[str, Any],
    rows: Sequence[CertifyRow],
    tables: Sequence[Table],
    facts: Sequence[str],
    papers: Mapping[str, str],
    alarms: Sequence[Mapping[str, str]] = (),
) -> str:
    """The report of a certification, as markdown.

    Args:
        config: the resolved configuration as a tree.
        rows: one per radius.
        tables: shown below the sentences `facts`.
        papers: method of proof -> its paper.
        alarms: each with name, level, evidence and remedy.
    """
    lines = [f"# Certification: {_code(config.get('name', 'run'))}", "", *_setting(config), ""]
    lines += [*facts, "", *(table.markdown() for table in tables), _alarms(alarms)]
    lines += _provenance(rows) + _citations(config, ("attacks", "model"), papers)
    return "\n".join(lines).rstrip() + "\n"


def _advice(rows: Sequence[TrainRow]) -> str:
    """Which numbers to report: none of a training run."""
    report = "report the test split, measured with `robustcli eval`."
    if not validated(rows):
        return f"Nothing was validated: {report}"
    return f"These are validation numbers, and validation chose the checkpoint: {report}"


def sources(config: Mapping[str, Any], paths: Sequence[str]) -> dict[str, str]:
    """name -> the papers that its docstring names after "Source:", for the methods at `paths` in `config`.

    A method that is not registered by now is left out: whoever has only records cannot know its papers.
    """
    papers: dict[str, str] = {}
    for path in paths:
        for name in _names_at(config, path):
            for methods in _REGISTRIES[path]:
                if name in methods and (source := source_of(methods.get(name).fn)):
                    papers[name] = source
    return papers


def source_of(function: Any) -> str:
    """What follows "Source:" in a docstring, to the end of the paragraph, on one line; empty without one."""
    _, _, rest = (inspect.getdoc(function) or "").partition("Source:")
    paragraph, _, _ = rest.partition("\n\n")
    return " ".join(paragraph.split())


def _names_at(config: Mapping[str, Any], path: str) -> list[str]:
    """Names of the one method, or of the list of methods, at a dotted path."""
    value: Any = config
    for key in path.split("."):
        value = _entry(value, key)
    specs = value if isinstance(value, list) else [value]
    names = [_entry(spec, "name") or spec for spec in specs]
    return [name for name in names if isinstance(name, str)]


def _entry(tree: Any, key: str) -> Any:
    """The entry of a mapping; None where there is none, or no mapping."""
    if not isinstance(tree, Mapping):
        return None
    return tree.get(key)


def _setting(config: Mapping[str, Any]) -> list[str]:
    """Data and model in a sentence, and how to run it again."""
    data, model = config.get("data") or {}, ModelConfig.model_validate(config.get("model") or "?")
    code = ""
    if model.plugin is not None:
        code = f" with {_code(f'--plugin {model.plugin.spec}')} of sha256 {_code(model.plugin.sha256)},"
    names = f"Data {_code(data.get('name', '?'))}, model {_code(model.label)}"
    return [
        f"{names}, seed {config.get('seed', 0)}.",
        f"The same again: the resolved configuration `config.resolved.yaml` beside this file,{code} "
        "with `env.json` for the versions.",
    ]


def _headline(rows: Sequence[EvalRow]) -> list[str]:
    """Clean accuracy, robust accuracy and attack success of the worst case, when there is one."""
    worst = rows[-1] if rows else None
    if worst is None or worst.robust is None:
        return []
    success = "no sample was right to begin with"
    if worst.success is not None:
        success = f"attack success {format_rate(worst.success)} initially correct samples"
    clean, robust = format_rate(worst.clean), format_rate(worst.robust)
    radius = f"{worst.norm}, eps {format_eps(worst.eps, worst.norm)}"
    if is_union(worst.norm):
        radius = "in all of " + ", ".join(members(worst.norm))
    return [f"Clean accuracy {clean}; robust accuracy {robust} samples; {success} ({radius}).", ""]


def _alarms(alarms: Sequence[Mapping[str, str]]) -> str:
    if not alarms:
        return "No alarm was raised about this evaluation.\n"
    return "\n".join(["## Alarms", "", *map(_alarm, alarms), ""])


def _alarm(alarm: Mapping[str, str]) -> str:
    finding = f"{printable(alarm['evidence'])}; {printable(alarm['remedy'])}"
    return f"- **{printable(alarm['level'])}** {_code(alarm['name'])}: {finding}"


def _provenance(rows: Sequence[EvalRow | TrainRow | CertifyRow]) -> list[str]:
    """Hashes of what the numbers of the last row belong to."""
    if not rows:
        return []
    hashes = [(name, value) for name, value in rows[-1].hashes.items() if value]
    lines = [f"- {printable(digest_name(name, value))}: {_code(value)}" for name, value in hashes]
    if not lines:
        return []
    return ["## What these numbers belong to (SHA-256)", "", *lines, ""]


def _citations(
    config: Mapping[str, Any], paths: Sequence[str], more: Mapping[str, str] | None = None
) -> list[str]:
    """The papers of the methods at `paths`, and `more`: name -> paper."""
    papers = {**(more or {}), **sources(config, paths)}
    methods = [f"- {_code(name)}: {source}" for name, source in papers.items()]
    intervals = (
        "- intervals: Wilson, JASA 22, 1927 (here); Clopper and Pearson, Biometrika 26, 1934 (JSON and CSV)."
    )
    return ["## Please cite", "", *methods, intervals]


def _code(text: Any) -> str:
    """A name as code, whatever it holds."""
    return f"`{printable(str(text)).replace('`', ' ')}`"
