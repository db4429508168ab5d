"""`robustcli report --sign` and `--verify`: a run, its report and its weights under one signature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustcli.claims.signing import Verified, sign, signer_of, verify
from robustcli.errors import PolicyError, UsageError
from robustcli.records.document import Document
from robustcli.reporting.dossier import Dossier
from robustcli.store.latest import resolve_run
from robustcli.terminal.console import Console


def signer_for(runs: Sequence[str], out: str | None, key: str | None) -> Any:
    """What signs, for a request to sign. Raises UsageError where it cannot be met, and as `signer_of`."""
    if key is None:
        raise UsageError("--sign needs a key", where="--sign", hint="add --private-key KEY")
    if out is not None or len(runs) != 1:
        hint = "robustcli report RUN --sign --private-key KEY"
        raise UsageError("a signature is over one run with its report inside", where="--sign", hint=hint)
    return signer_of(Path(key))


def sign_report(run: Path, signer: Any, stale: Sequence[str]) -> dict[str, Any]:
    """Sign a run whose report was just written; returns what its document gains.

    stale: what no longer matches the records. A newer robustcli is no obstacle, and the report says it.
    Raises PolicyError (exit 9) where anything else has changed, and as `claims.signing.sign`.
    """
    changed = [line for line in stale if not line.startswith("code:")]
    if changed:
        told = f"the records no longer match what lies here: {changed[0]}"
        raise PolicyError(told, where=str(run), hint="measure again, then sign")
    return {"signature": str(sign(Dossier.read(run), signer))}


def verify_report(runs: Sequence[str], key: str | None, console: Console) -> dict[str, Any]:
    """Check the signatures of runs; the document has a gate for each, which is met where all is as signed.

    Raises UsageError without a run or a key, and as `claims.signing.verify`.
    """
    document = Document("report")
    if not runs or key is None:
        hint = "robustcli report --verify RUN --public-key PUB"
        raise UsageError("--verify needs a run and a key", where="--verify", hint=hint)
    gates, found = [], []
    for folder in (resolve_run(Path(run)) for run in runs):
        answer = verify(folder, Path(key))
        gates.append({"metric": f"signature of {folder}", "value": answer.words, "passed": answer.holds})
        found.append(_entry(folder, answer))
        if answer.holds:
            console.result(f"signature of {folder} is {answer.words}")
    return document.finish(None, {"verified": found, "gate": gates})


def _entry(folder: Path, answer: Verified) -> dict[str, Any]:
    difference = answer.difference
    return {
        "run": str(folder),
        "holds": answer.holds,
        "signed": answer.signed,
        "broken": answer.broken or None,
        **{name: getattr(difference, name, []) for name in ("changed", "missing", "added")},
    }
