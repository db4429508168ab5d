"""`robustcli gate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustcli.cli.call import Call
from robustcli.cli.flags import DATA_AND_BALL, MACHINE, MODEL, OUTPUT, RUN, SAMPLE, Flag, add_flag, spellings
from robustcli.errors import UsageError

if TYPE_CHECKING:
    from robustcli.config.load import Loaded
    from robustcli.gating.threshold import Threshold
    from robustcli.jobs.evidence.posting import Posting
    from robustcli.jobs.verb_flags import EvalFlags

POSITION = 47
HELP = "May this model ship? Thresholds with a stated error, by the records of a run or by a new evaluation."
EXAMPLES = (
    "robustcli gate eval/gate --model run:runs/train/latest",
    "robustcli gate runs/eval/latest --thresholds gate.yaml --junit junit.xml",
)
WORDS = "RUN (a directory), or CONFIG (a file or a shipped name), and key=value settings."
WORDS_METAVAR = "[RUN|CONFIG] [KEY=VALUE]..."
_OWN = (
    add_flag(
        "thresholds",
        Flag("A YAML file with thresholds, in place of those of RUN or CONFIG.", metavar="FILE"),
    ),
    add_flag("baseline", Flag("Run that drops are measured against.", metavar="RUN")),
    add_flag("junit", Flag("Write JUnit XML here.", metavar="FILE")),
    add_flag("sarif", Flag("Write SARIF 2.1.0 here.", metavar="FILE")),
    add_flag("report", Flag("Write the report of the run here, whatever the verdict.", metavar="DIR")),
    add_flag("badge", Flag("Write the endpoint of a badge of shields.io here.", metavar="FILE")),
)
_MEASURE = (
    *(*MODEL, *DATA_AND_BALL, "attack", "steps", "target", *SAMPLE, *MACHINE, *RUN),
    *("skip", "sweep", "surrogate", "attack_plugin", "allow_pickle_weights", "smoke", "dry_run", "no_report"),
)
FLAGS = ("set", *_OWN, *_MEASURE, "strict", *OUTPUT)


def run(call: Call) -> dict[str, Any] | None:
    """Judge a run, or measure and judge."""
    from robustcli.gating.verdict import Outcome
    from robustcli.jobs.evidence.posting import GateFiles, Posting

    if call.on("dry_run"):
        from robustcli.jobs.evidence.gate_config import gate_plan

        loaded, thresholds = _of_config(call)
        return gate_plan(loaded, thresholds, call.console, _eval_flags(call))
    files = GateFiles(**{name: call.text(name) for name in ("junit", "sarif", "badge", "report")})
    with Posting(files, Outcome(()), call.console) as posting:
        return _judge(call, posting)


def _judge(call: Call, posting: Posting) -> dict[str, Any]:
    path = _run_directory(call.source())
    if path is not None:
        from robustcli.jobs.evidence.gate import gate_run

        return gate_run(path, _of_run(call, path), call.console, posting)
    from robustcli.jobs.evidence.gate_config import gate_config

    loaded, thresholds = _of_config(call)
    return gate_config(loaded, thresholds, call.console, _eval_flags(call), posting)


def _run_directory(source: str | None) -> Path | None:
    """The run that the command names; None for a configuration. Raises UsageError for another directory."""
    from robustcli.store.identity import identity_of
    from robustcli.store.latest import resolve_run

    path = None if source is None else resolve_run(Path(source))
    if path is None or not path.is_dir():
        return None
    if identity_of(path) is None:
        raise UsageError("no run of robustcli", where=str(path), hint="name a run directory, or a CONFIG")
    return path


def _of_run(call: Call, path: Path) -> list[Threshold]:
    """The thresholds for a run: of --thresholds, else of its own configuration."""
    from robustcli.gating.asked import check_asked
    from robustcli.gating.threshold import thresholds_of
    from robustcli.reporting.dossier import Dossier

    for name in _MEASURE:
        if call.values.get(name):
            what = f"a run is judged by its records, and {spellings(name)[0]} would measure"
            raise UsageError(what, hint=f"drop it, or give a CONFIG in place of {path}")
    for item in call.overrides():
        if not item.key.startswith("thresholds"):
            raise UsageError(f"{item.key} changes nothing of a run that is done", hint="drop it")
    own = path / "config.resolved.yaml"  # which a `demo` has not: its runs lie inside
    source = call.text("thresholds") or (str(own) if own.is_file() else None)
    loaded = _read(call, source)
    thresholds = thresholds_of(loaded, call.text("baseline"))
    if source != str(own):
        check_asked(Dossier.read(path), loaded, thresholds)
    return thresholds


def _of_config(call: Call) -> tuple[Loaded, list[Threshold]]:
    from robustcli.gating.threshold import thresholds_of

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("a gate is one process", hint="start it without torchrun")
    loaded = call.load()
    named = call.text("thresholds")
    judged = loaded if named is None else _read(call, named)
    return loaded, thresholds_of(judged, call.text("baseline"))


def _read(call: Call, source: str | None) -> Loaded:
    """A file with thresholds, and what the command line changes of them."""
    from robustcli.config.load import load_config

    changes = [item for item in call.overrides() if item.key.startswith("thresholds")]
    return load_config(source, changes, bind=False)


def _eval_flags(call: Call) -> EvalFlags:
    from robustcli.jobs.verb_flags import EvalFlags

    return EvalFlags(
        overwrite=call.on("overwrite"),
        plugin=call.plugin(),
        allow_pickle=call.on("allow_pickle_weights"),
        surrogates=call.texts("surrogate"),
        attack_plugin=call.text("attack_plugin"),
        report=call.reports(),
    )
