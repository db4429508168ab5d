"""summary.md: what was measured, how, and whom to cite."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from robustcli import registry
from robustcli.errors import printable
from robustcli.records.eval import EvalRow
from robustcli.records.train import TrainRow
from robustcli.reporting.cells import format_eps, format_rate
from robustcli.reporting.tables import class_table, eval_table, train_table


def eval_summary(
    config: Mapping[str, Any], rows: Sequence[EvalRow], alarms: Sequence[Mapping[str, str]] = ()
) -> str:
    """The report of an evaluation or an attack, as markdown.

    config: the resolved configuration as a tree. rows: clean, attacks, worst case. alarms: name, level, evidence, remedy.
    """
    lines = [f"# Evaluation: {_code(config.get('name', 'run'))}", "", *_setting(config), ""]
    worst = rows[-1] if rows else None
    if worst is not None and worst.robust is not None:
        radius = f"{worst.norm}, eps {format_eps(worst.eps, worst.norm)}"
        success = (
            "no sample was right to begin with"
            if worst.success is None
            else f"attack success {format_rate(worst.success)} initially correct samples"
        )
        lines += [
            f"Clean accuracy {format_rate(worst.clean)}; robust accuracy {format_rate(worst.robust)} samples; {success} ({radius}).",
            "",
        ]
    lines += [eval_table(rows).markdown(), _alarms(alarms)]
    if any(row.per_class for row in rows):
        lines += ["## Per class", "", class_table([row for row in rows if row.kind != "attack"]).markdown()]
    lines += _provenance(rows[-1:]) + _citations(config, ("attacks", "model"))
    return "\n".join(lines).rstrip() + "\n"


def train_summary(
    config: Mapping[str, Any],
    best: Mapping[str, Any],
    last: Mapping[str, Any],
    rows: Sequence[TrainRow],
    alarms: Sequence[str] = (),
) -> str:
    """The report of a training run, as markdown. best, last: {"step": ...} of the best and the last validation, or empty. alarms: one line each."""
    lines = [f"# Training: {_code(config.get('name', 'run'))}", "", *_setting(config), ""]
    lines += [train_table(rows, best_step=best.get("step")).markdown()]
    if best and last:
        lines += [
            f"The best checkpoint is that of step {best['step']}, the last that of step {last['step']}.",
            "",
        ]
    if alarms:
        lines += ["## Alarms", "", *(f"- {printable(text)}" for text in alarms), ""]
    lines += [
        "These are validation numbers, and validation chose the checkpoint: report the test split, measured with `robustcli eval`.",
        "",
    ]
    lines += _provenance(rows[-1:]) + _citations(
        config, ("objective", "adversary", "train.val_attack", "model")
    )
    return "\n".join(lines).rstrip() + "\n"


def sources(config: Mapping[str, Any], paths: Sequence[str]) -> dict[str, str]:
    """name -> the papers that its docstring names after "Source:", for the methods at these paths of a configuration.

    Only what is registered by now is found: a report that is made from records alone cites nothing that it cannot know.
    """
    found: dict[str, str] = {}
    for path in paths:
        value: Any = config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        kind = _KINDS[path]
        for spec in value if isinstance(value, list) else [value]:
            name = spec.get("name") if isinstance(spec, Mapping) else spec
            if isinstance(name, str) and name in kind and (text := source_of(kind.get(name).fn)):
                found[name] = text
    return found


def source_of(function: Any) -> str:
    """What follows "Source:" in a docstring, to the end of its paragraph, on one line; empty when there is none."""
    _, mark, rest = (inspect.getdoc(function) or "").partition("Source:")
    return " ".join(rest.partition("\n\n")[0].split()) if mark else ""


_KINDS: dict[str, registry.Registry[Any]] = {
    "attacks": registry.attacks,
    "adversary": registry.attacks,
    "train.val_attack": registry.attacks,
    "objective": registry.objectives,
    "model": registry.models,
}


def _setting(config: Mapping[str, Any]) -> list[str]:
    """Data and model in a sentence, and how to run it again."""
    data, model = config.get("data") or {}, config.get("model") or {}
    lines = [
        f"Data {_code(data.get('name', '?'))}, model {_code(model.get('name', '?'))}, seed {config.get('seed', 0)}."
    ]
    return [
        *lines,
        "The same again: the resolved configuration `config.resolved.yaml` beside this file, with `env.json` for the versions.",
    ]


def _alarms(alarms: Sequence[Mapping[str, str]]) -> str:
    if not alarms:
        return "No alarm was raised about this evaluation.\n"
    lines = [
        f"- **{printable(alarm['level'])}** {_code(alarm['name'])}: {printable(alarm['evidence'])}; {printable(alarm['remedy'])}"
        for alarm in alarms
    ]
    return "\n".join(["## Alarms", "", *lines, ""])


def _provenance(rows: Sequence[EvalRow | TrainRow]) -> list[str]:
    """Hashes of what the numbers belong to."""
    hashes = [
        f"- {printable(name)}: {_code(value)}" for row in rows for name, value in row.hashes.items() if value
    ]
    return ["## What these numbers belong to (SHA-256)", "", *hashes, ""] if hashes else []


def _citations(config: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    found = sources(config, paths)
    intervals = (
        "- intervals: Wilson, JASA 22, 1927 (here); Clopper and Pearson, Biometrika 26, 1934 (JSON and CSV)."
    )
    return ["## Please cite", "", *(f"- {_code(name)}: {text}" for name, text in found.items()), intervals]


def _code(text: Any) -> str:
    """A name as code, whatever it holds."""
    return f"`{printable(str(text)).replace('`', ' ')}`"
