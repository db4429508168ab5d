"""Words for a threat and for shares, the same in every section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli.config.threats import is_union, members
from robustcli.proportions import Rate
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardRow
from robustcli.records.train import TrainRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import format_eps, percent
from robustcli.reporting.dossier import Dossier

#: Rows that name data, model, ball and hashes.
Described = EvalRow | CertifyRow | GuardRow | TrainRow | TransferRow
_DESCRIBED = (EvalRow, CertifyRow, GuardRow, TrainRow, TransferRow)


def change(norm: str, eps: float) -> str:
    """What an attacker may do to an image, after the words "an attacker may"."""
    radius = format_eps(eps, norm)
    if is_union(norm):
        return f"change the image within any one of the balls {listed(members(norm), 'or')}"
    if norm == "linf":
        share = f"{100 * eps:.3g} %"
        return f"change every pixel by at most {radius.partition(' (')[0]}, {share} of its range"
    if norm == "l2":
        return f"change the image by at most {radius} in Euclidean length (l2, pixels in [0, 1])"
    if norm == "l1":
        return f"change the image by at most {radius} summed over all pixels (l1, pixels in [0, 1])"
    if norm == "l0":
        return f"give {radius.removesuffix(' px')} pixels any value and must leave all others (l0)"
    return "transform the image"


def share(rate: Rate) -> str:
    """``90.5 %``."""
    return f"{percent(rate.value)} %"


def around(rate: Rate) -> str:
    """``85.6 to 93.8 %, of 200``: the 95 % Wilson interval and n."""
    low, high = rate.display
    return f"95 % interval {percent(low)} to {percent(high)} %, of {rate.n:,} images"


def described(run: Dossier) -> Described | None:
    """A row that names what was measured; None where the run has none."""
    return next((row for row in reversed(run.rows) if isinstance(row, _DESCRIBED)), None)


def ball_of(run: Dossier) -> tuple[str, float] | None:
    """(norm, eps) of the threat: of the rows, else of the configuration; None where neither says it."""
    if (worst := run.eval_row("worst")) is not None:
        return worst.norm, worst.eps
    row = described(run)
    if isinstance(row, CertifyRow):
        return row.norm, float(run.document.get("eps", row.eps))
    if row is not None and row.norm:
        return row.norm, row.eps
    for found in models_of(run).values():
        return str(found["norm"]), float(found["eps"])
    ball = run.config.get("ball")
    if isinstance(ball, Mapping) and isinstance(ball.get("eps"), (int, float)):
        return str(ball.get("norm")), float(ball["eps"])
    return None


def models_of(run: Dossier) -> dict[str, Mapping[str, Any]]:
    """Name -> document of each model of a `demo`; {} for any other run."""
    models = run.document.get("models") if run.verb == "demo" else None
    if not isinstance(models, Mapping):
        return {}
    return {str(name): found for name, found in models.items() if isinstance(found, Mapping)}


def model_of(run: Dossier) -> str:
    """The model as the configuration names it."""
    return named(run.config.get("model")) or str(run.document.get("model", "")) or "?"


def data_of(run: Dossier) -> str:
    """The data set as the configuration names it."""
    of_models = [str(found.get("data", "")) for found in models_of(run).values()]
    return named(run.config.get("data")) or next(iter(of_models), "") or "?"


def named(spec: Any) -> str:
    """The name of a spec, which is a text or a mapping with a name; "" for anything else."""
    if isinstance(spec, Mapping):
        spec = spec.get("name")
    return spec if isinstance(spec, str) else ""


def listed(names: Sequence[str], end: str = "and") -> str:
    """``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {end} {names[-1]}"
