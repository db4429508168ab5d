"""The numbers of a run as claims: each with its samples, its interval and its threat.

The model card and the bill of materials say the same, since both are made from these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustcli.claims.provenance import section
from robustcli.proportions import Rate
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardRow
from robustcli.records.sweep import SweepRow
from robustcli.records.train import TrainRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import format_eps
from robustcli.reporting.dossier import Dossier

ACCURACY, ROBUST, CERTIFIED = "accuracy", "robust_accuracy", "certified_accuracy"
SUCCESS, REJECTED, TRANSFER = "attack_success_rate", "clean_rejection_rate", "transfer_success_rate"
_TITLES = {
    ACCURACY: "Clean accuracy",
    ROBUST: "Robust accuracy",
    CERTIFIED: "Certified accuracy",
    SUCCESS: "Attack success",
    REJECTED: "Clean images rejected",
    TRANSFER: "Transfer success",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number.

    Args:
        metric: accuracy, robust_accuracy, certified_accuracy, attack_success_rate, clean_rejection_rate or
            transfer_success_rate.
        rate: k of n samples; for attack_success_rate of the samples that are right without an attack.
        data, split: names of what it was measured on.
        norm, eps: the ball, in pixel units of [0, 1]; "" and 0 without an attack.
        by: the attacks, with their target where they had one, or the method of proof; "" without.
        slice: the class that it is of; "" for all samples.
        model: its short name, where one run measured several; else "".
        seed: of all draws.
        step: whether it is one of several attacks, which met only what those before it had left standing.
    """

    metric: str
    rate: Rate
    data: str
    split: str
    norm: str = ""
    eps: float = 0.0
    by: str = ""
    slice: str = ""
    model: str = ""
    seed: int = 0
    step: bool = False

    @property
    def threat(self) -> str:
        """``linf 8/255 (0.03137), pgd-20``; "" without an attack."""
        if not self.norm:
            return ""
        return ", ".join(part for part in (f"{self.norm} {format_eps(self.eps, self.norm)}", self.by) if part)

    @property
    def title(self) -> str:
        """``Robust accuracy (linf 8/255 (0.03137), pgd-20)``, with the model where a run has several."""
        title = _TITLES[self.metric]
        if self.model:
            title = f"{self.model}: {title}"
        return f"{title} ({self.threat})" if self.threat else title


def measured(dossier: Dossier) -> list[Measured]:
    """All numbers of a run, the headline first; [] where the run measured no accuracy."""
    return list(_measured(dossier))


def _measured(dossier: Dossier) -> Iterator[Measured]:
    worst, target = dossier.eval_row("worst"), section(dossier.config, "eval").get("target")
    for row in sorted(dossier.of(EvalRow), key=_headline_first):
        yield from _evaluated(row, target)
    for proof in dossier.of(CertifyRow):
        yield from _certified(proof)
    for pair in dossier.of(TransferRow):
        yield from _transferred(pair)
    for guard in dossier.of(GuardRow):
        yield _rejected(guard)
    for sweep in dossier.of(SweepRow):
        yield from _swept(sweep, worst, target)
    yield from _trained(dossier)
    yield from _demonstrated(dossier)


def _headline_first(row: EvalRow) -> int:
    """Clean, then all attacks together, then those of each ball of a union, then each."""
    return ("clean", "worst", "threat", "attack").index(row.kind)


def _aimed(by: str, target: Any) -> str:
    """The attacks with the class that they were to reach: only to miss the true one is easier."""
    return by if target is None else f"{by}, target {target}"


def _evaluated(row: EvalRow, target: Any) -> Iterator[Measured]:
    common: dict[str, Any] = {"data": row.data, "split": row.split, "seed": row.seed}
    metric = ACCURACY
    if row.robust is not None:
        metric = ROBUST
        common |= {"norm": row.norm, "eps": row.eps, "by": _aimed(row.title, target)}
    yield Measured(metric=metric, rate=row.robust or row.clean, step=row.kind == "attack", **common)
    if row.kind == "worst" and row.success is not None:
        yield Measured(metric=SUCCESS, rate=row.success, **common)
    if row.kind in ("clean", "worst"):
        for name, (k, n) in row.per_class.items():
            if n:
                yield Measured(metric=metric, rate=Rate(k, n), slice=name, **common)


def _certified(row: CertifyRow) -> Iterator[Measured]:
    common: dict[str, Any] = {"data": row.data, "split": row.split, "seed": row.seed}
    if not row.eps:
        yield Measured(metric=ACCURACY, rate=row.robust_acc, **common)
        return
    common |= {"norm": row.norm, "eps": row.eps}
    yield Measured(metric=CERTIFIED, rate=row.certified_acc, by=row.method, **common)
    if row.attacks:
        yield Measured(metric=ROBUST, rate=row.robust_acc, by=", ".join(row.attacks), **common)


def _transferred(row: TransferRow) -> Iterator[Measured]:
    if row.rate is None:
        return
    yield Measured(
        metric=TRANSFER,
        rate=row.rate,
        data=row.data,
        split=row.split,
        norm=row.norm,
        eps=row.eps,
        by=f"{row.best or row.attack} on {row.source}",
        model=row.target,
        seed=row.seed,
    )


def _rejected(row: GuardRow) -> Measured:
    return Measured(
        metric=REJECTED, rate=row.clean_rejected, data=row.data, split=row.split, seed=row.seed
    )  # fmt: skip


def _swept(sweep: SweepRow, worst: EvalRow | None, target: Any) -> Iterator[Measured]:
    """The point of a sweep over eps, unless the evaluation itself is that point."""
    row = sweep.total
    if sweep.key != "eps" or row.robust is None or (worst is not None and worst.eps == row.eps):
        return
    yield Measured(
        metric=ROBUST,
        rate=row.robust,
        data=row.data,
        split=row.split,
        norm=row.norm,
        eps=row.eps,
        by=_aimed(row.label or row.title, target),
        seed=row.seed,
    )


def _trained(dossier: Dossier) -> Iterator[Measured]:
    """The validation that chose the checkpoint."""
    row = best_validation(dossier)
    if row is None:
        return
    common: dict[str, Any] = {"data": row.data, "split": "validation", "seed": row.seed}
    if row.clean is not None:
        yield Measured(metric=ACCURACY, rate=row.clean, **common)
    ball: dict[str, Any] = {"norm": row.norm, "eps": row.eps}
    if row.robust is not None:
        yield Measured(metric=ROBUST, rate=row.robust, by=_attack(row), **ball, **common)
    if row.verified is not None:
        yield Measured(metric=CERTIFIED, rate=row.verified, by="bounds", **ball, **common)


def best_validation(dossier: Dossier) -> TrainRow | None:
    """The validation of the checkpoint `best`; None where nothing was validated."""
    best = dossier.document.get("best") or {}
    rows = [row for row in dossier.of(TrainRow) if row.n and row.epoch == best.get("epoch")]
    return next(iter(rows), None)


def _attack(row: TrainRow) -> str:
    steps = row.params.get("steps")
    return f"{row.attack}-{steps}" if steps else row.attack


def _demonstrated(dossier: Dossier) -> Iterator[Measured]:
    """What the document of a `demo` says of each of its models."""
    models = dossier.document.get("models")
    if dossier.verb != "demo" or not isinstance(models, Mapping):
        return
    for name, numbers in sorted(models.items(), key=lambda pair: pair[0] != "robust"):
        yield from _of_model(name, numbers)


def _of_model(name: str, numbers: Mapping[str, Any]) -> Iterator[Measured]:
    n = numbers["n"]
    common: dict[str, Any] = {
        "data": numbers["data"],
        "split": numbers["split"],
        "seed": numbers["seed"],
        "model": name,
    }
    yield Measured(metric=ACCURACY, rate=Rate(round(numbers["clean_acc"] * n), n), **common)
    yield Measured(
        metric=ROBUST,
        rate=Rate(round(numbers["robust_acc"] * n), n),
        norm=numbers["norm"],
        eps=numbers["eps"],
        by=", ".join(attack["name"] for attack in numbers["attacks"]),
        **common,
    )
