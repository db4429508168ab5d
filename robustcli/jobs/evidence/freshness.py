"""Whether what a run has measured is still what lies here: code, model, configuration, data, records.

Nothing is measured again. A check that cannot be made says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from robustcli.config.sections import DataConfig
from robustcli.config.threats import stated_ball
from robustcli.errors import RobustCliError
from robustcli.evaluation.alarms import state_digest
from robustcli.models.source import load_model
from robustcli.records.eval import EvalRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.contradictions import contradictions
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import code
from robustcli.reporting.page.origin import Check, State, hashes_of
from robustcli.reporting.page.words import described
from robustcli.runtime.source import code_hash
from robustcli.store.retention import resolve_checkpoint
from robustcli.store.snapshot import verify_checkpoint

_FROM_RUNS = ("run:", "guard:")


def checks_of(run: Dossier) -> list[Check]:
    """Every check that applies to a run, and to the runs inside it by theirs."""
    return [check for look in (_code, _records, _config, _model, _weights, _data) for check in look(run)]


def _code(run: Dossier) -> Iterator[Check]:
    recorded = dict(hashes_of(run)).get("code")
    if not recorded:
        return
    if recorded == code_hash():
        yield Check("code", "same", "the installed robustcli is the one that measured")
    else:
        yield Check("code", "changed", "another version of robustcli measured than the one installed here")


def _records(run: Dossier) -> Iterator[Check]:
    """Whether the lines of the samples add up to the rows, and the rows to the document."""
    if run.measured and run.rows:
        faults, worst = contradictions(run), run.eval_row("worst")
        if not faults and worst is not None and run.verb in ("eval", "attack") and not run.answers:
            yield Check("records", "unknown", f"samples.jsonl has none of the {worst.n} samples")
            return
        yield _found("records", faults, "samples, rows and summary add up")


def _config(run: Dossier) -> Iterator[Check]:
    """Whether the configuration beside the records is the one that they name."""
    row = described(run)
    if row is None:
        return
    if not run.config:
        yield Check("config", "changed", "config.resolved.yaml is not there any more")
        return
    ball, data = stated_ball(run.config.get("ball")), run.config.get("data") or {}
    pairs = [("seed", run.config.get("seed"), row.seed), ("data.name", data.get("name"), row.data)]
    if isinstance(row, EvalRow) and row.norm != "none":
        pairs += [("ball.norm", ball.get("norm"), row.norm), ("ball.eps", ball.get("eps"), row.eps)]
    faults = [
        f"{key} is {now}, and the records say {then}" for key, now, then in pairs if _differs(key, now, then)
    ]
    yield _found("config", faults, "config.resolved.yaml says what the records say")


def _differs(key: str, now: Any, then: Any) -> bool:
    """Whether a value of the configuration contradicts the records. A null was filled in for the run."""
    if now is None:
        return False
    if key == "data.name":
        return str(now).partition(":")[0] != str(then).partition(":")[0]
    return bool(now != then)


def _model(run: Dossier) -> Iterator[Check]:
    """Whether each model that a run directory holds still has the weights that were measured."""
    row = described(run)
    if row is None or run.verb == "train":
        return
    if isinstance(row, TransferRow):
        for pair in run.of(TransferRow):
            if pair.source == pair.target:
                yield _against(f"model {pair.source}", pair.source_reference, pair.hashes.get("source"))
        return
    spec = run.config.get("model") or {}
    name = str(spec.get("name", "")) if isinstance(spec, Mapping) else str(spec)
    if run.config.get("defences") or (
        isinstance(spec, Mapping) and (spec.get("plugin") or spec.get("weights"))
    ):
        yield Check("model", "unknown", "its weights cannot be proven without the code and the data it needs")
        return
    yield _against("model", name, row.hashes.get("model"))


def _against(what: str, reference: str, recorded: str | None) -> Check:
    if not recorded or not reference.startswith(_FROM_RUNS):
        return Check(what, "unknown", f"{code(reference)} is no run whose weights could be compared")
    try:
        now = state_digest(load_model(reference, say=lambda text: None))
    except RobustCliError as error:
        return Check(what, "unknown", f"{code(reference)} cannot be read from here: {error.what}")
    if now == recorded:
        return Check(what, "same", f"the weights of {code(reference)} are those that were measured")
    return Check(what, "changed", f"{code(reference)} has other weights than those that were measured")


def _weights(run: Dossier) -> Iterator[Check]:
    """Whether the checkpoint that a training calls its best is intact, byte by byte."""
    if run.verb != "train" or not run.measured:
        return
    try:
        best = resolve_checkpoint(run.path / "checkpoints", "best")
        sealed = verify_checkpoint(best)
    except RobustCliError as error:
        yield Check("weights", "changed", f"the best checkpoint is not what was saved: {error.what}")
        return
    yield Check(
        "weights", "same", f"checkpoint `{best.name}` is intact; SHA-256 of its manifest: `{sealed.sha256}`"
    )


def _data(run: Dossier) -> Iterator[Check]:
    row, spec = described(run), run.config.get("data")
    recorded = row.hashes.get("data") if row is not None else None
    if not recorded or not isinstance(spec, Mapping):
        return
    split = str(getattr(row, "split", "") or "")
    stored, _, mixed = recorded.partition("+")
    parts = [split] if split else ["train", "val"]
    try:
        now = _digest(spec, parts)
        if now != stored and spec.get("classes") is None and run.document.get("classes"):
            now = _digest({**spec, "classes": run.document["classes"]}, parts)  # in the order of the model
    except (RobustCliError, ValueError, OSError) as error:
        yield Check(
            "data", "unknown", f"the images cannot be read from here: {getattr(error, 'what', error)}"
        )
        return
    if now == stored:
        extra = "; those that were mixed in were not looked at" if mixed else ""
        yield Check("data", "same", f"the images here have the hash of those that were measured{extra}")
    else:
        yield Check("data", "changed", "the images here are not those that were measured")


def _digest(spec: Mapping[str, Any], parts: list[str]) -> str:
    from robustcli.data.datasets import load_data

    config = DataConfig.model_validate({**spec, "download": False})
    return load_data(config, parts=parts).digest


def _found(what: str, faults: list[str], well: str) -> Check:
    state: State = "changed" if faults else "same"
    return Check(what, state, "; ".join(faults) or well)
