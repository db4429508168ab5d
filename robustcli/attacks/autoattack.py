"""AutoAttack as data: which attacks, in which order, with which parameters; every one runs on what the ones before left standing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from robustcli.registry import ensembles


@dataclass(frozen=True)
class Stage:
    """One attack of an ensemble: its name in results, its registered name, its parameters; `draws` > 1 averages gradients (EOT)."""

    label: str
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    draws: int = 1


def _apgd(label: str, loss: str, *, restarts: int = 1, targets: int | None = None, skip: int = 0, steps: int = 100, draws: int = 1) -> Stage:
    params: dict[str, Any] = {"steps": steps, "restarts": restarts, "loss": loss}
    params |= ({} if targets is None else {"targets": targets}) | ({"skip": skip} if skip else {})
    return Stage(label, "apgd", params, draws)


def _fab(label: str, *, targeted: bool, restarts: int, targets: int = 9) -> Stage:
    return Stage(label, "fab", {"steps": 100, "restarts": restarts, "targeted": targeted, "targets": targets})


@ensembles.register("autoattack")
def autoattack(norm: str, *, version: Literal["standard", "plus", "rand", "rapid"] = "standard") -> list[Stage]:
    """Worst case per sample over a list of attacks without free parameters: `version` names the list.

    standard: apgd-ce, apgd-t (targeted DLR, 9 classes), fab-t, square (5,000 queries); l1 takes 5 restarts and 5 target classes.
    plus: apgd-ce and apgd-dlr with 5 restarts, fab with 5 restarts, square, apgd-t, fab-t. rand: apgd-ce and apgd-dlr with gradients
    averaged over 20 draws, for randomised models. rapid: our own shorter list, see docs/autoattack.md; it is no AutoAttack number.

    Args:
        norm: linf, l2 or l1; square knows linf and l2 only and is left out under l1.

    Source: Croce & Hein, ICML 2020, arXiv:2003.01690; l1: ICML 2021, arXiv:2103.01208. Parameters: fra31/auto-attack.
    """
    restarts, targets = (5, 5) if norm == "l1" else (1, 9)
    square = [] if norm == "l1" else [Stage("square", "square", {"queries": 5000})]
    if version == "standard":
        return [
            _apgd("apgd-ce", "ce", restarts=restarts),
            _apgd("apgd-t", "dlr-targeted", targets=targets),
            _fab("fab-t", targeted=True, restarts=1),
            *square,
        ]
    if version == "plus":
        return [
            _apgd("apgd-ce", "ce", restarts=5),
            _apgd("apgd-dlr", "dlr", restarts=5),
            _fab("fab", targeted=False, restarts=5),
            *square,
            _apgd("apgd-t", "dlr-targeted", targets=targets),
            _fab("fab-t", targeted=True, restarts=1),
        ]
    if version == "rand":
        return [_apgd("apgd-ce", "ce", draws=20), _apgd("apgd-dlr", "dlr", draws=20)]
    return [
        _apgd("rapid:apgd-ce", "ce", restarts=3, steps=60),
        _apgd("rapid:apgd-t3", "dlr-targeted", targets=3, steps=50),
        _apgd("rapid:apgd-t6", "dlr-targeted", targets=6, skip=3, steps=15),
    ]
