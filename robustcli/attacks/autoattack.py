"""AutoAttack as data: which attacks, in which order, with which parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from robustcli.registry import ensembles

Version = Literal["standard", "plus", "rand", "rapid"]


@dataclass(frozen=True)
class Stage:
    """One attack of an ensemble. It runs on the samples that the stages before it left standing.

    Args:
        label: its name in results.
        name: its registered name.
        params: its parameters.
        draws: model passes over which each gradient is averaged (EOT), >= 1.
    """

    label: str
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    draws: int = 1


@dataclass(frozen=True)
class Audit:
    """How a short list is checked: some of its survivors meet other attacks.

    Args:
        norm: linf, l2 or l1.
        samples: how many survivors meet `short_forms`.
        escalation: the attacks that all survivors meet when two of those samples fall.
    """

    norm: str
    samples: int
    escalation: list[Stage]

    def short_forms(self, passes: int) -> list[Stage]:
        """APGD (l1 alone), FAB and Square, which share at most `passes` passes on a sample that stands.

        l1: half of the passes go to restarts of APGD, because each start ends elsewhere. FAB and Square share
        the rest.
        linf: FAB gets a quarter, because it breaks little that gradients do not. Square gets three quarters.
        l2, l1: FAB gets half of what is left and Square the other half. FAB leaves out the likeliest class,
        which rapid has tried. Under l2 every second linearisation belongs to searches from random points.
        """
        stages, climb = [], passes // 2 if self.norm == "l1" else 0
        if climb:
            restarts = max(1, climb // (2 * (100 + 3) + 1))
            # A restart also asks for the first points of three balls, two passes each, and the last point.
            steps = (climb // restarts - 1) // 2 - 3
            stages.append(_apgd("rapid:audit-apgd", "ce", steps=max(1, min(100, steps)), restarts=restarts))
        share, skip = (4, 0) if self.norm == "linf" else (2, 1)
        linearisations = max(1, (passes - climb) // (3 * share))
        scattered = linearisations // 2 if self.norm == "l2" else 0
        stages.append(_next_classes(linearisations - scattered, skip))
        if scattered:
            stages.append(_scattered(scattered))
        # The last passes are FAB's last points, and Square's first and last.
        spent = sum(3 * _searched(stage) + 1 for stage in stages if stage.name == "fab")
        queries = max(1, passes - climb - spent - 2)
        return [*stages, Stage("rapid:audit-square", "square", {"queries": queries, "rescale": True})]


def _searched(fab: Stage) -> int:
    """Linearisations of a stage of FAB on a sample that stands."""
    params = fab.params
    return int(params["steps"] * params["targets"] * params.get("restarts", 1))


def _next_classes(linearisations: int, skip: int) -> Stage:
    """FAB towards up to 8 classes behind the first `skip`, with at least some 60 linearisations for each."""
    targets = max(1, min(8, linearisations // 60))
    params = {"steps": min(100, linearisations // targets), "targets": targets, "skip": skip}
    return Stage("rapid:audit-fab", "fab", params)


def _scattered(linearisations: int) -> Stage:
    """FAB from random points towards the two likeliest classes, up to 50 linearisations in each search."""
    steps = min(50, linearisations)
    searches = linearisations // steps
    targets = min(2, searches)
    params = {"steps": steps, "restarts": searches // targets, "targets": targets, "start": "random"}
    return Stage("rapid:audit-fab-random", "fab", params)


def _apgd(
    label: str,
    loss: str,
    *,
    restarts: int = 1,
    targets: int | None = None,
    skip: int = 0,
    steps: int = 100,
    draws: int = 1,
) -> Stage:
    params: dict[str, Any] = {"steps": steps, "restarts": restarts, "loss": loss}
    params |= ({} if targets is None else {"targets": targets}) | ({"skip": skip} if skip else {})
    return Stage(label, "apgd", params, draws)


def _wide(label: str, *, steps: int) -> Stage:
    """APGD on the margin, in a ball that shrinks from radius 3 * eps to eps.

    Where gradients are masked, it finds points that a search inside the ball misses.
    """
    return Stage(label, "apgd", {"steps": steps, "restarts": 1, "loss": "margin", "widest": 3.0})


def _fab(label: str, *, targeted: bool, restarts: int, targets: int = 9) -> Stage:
    return Stage(label, "fab", {"steps": 100, "restarts": restarts, "targeted": targeted, "targets": targets})


def _restarted(label: str) -> Stage:
    """FAB towards the two likeliest classes, from four random points each.

    Under l2 a masked gradient at the clean image sends the one search of fab-t astray. Many short searches
    from elsewhere find more than a few long ones.
    """
    return Stage(label, "fab", {"steps": 50, "restarts": 4, "targets": 2, "start": "random"})


def audit(norm: str, *, version: Version = "standard", audit: int = 64) -> Audit | None:
    """The audit of `autoattack`: for rapid the attacks that rapid leaves out, for other versions None."""
    return Audit(norm, audit, autoattack(norm)) if version == "rapid" else None


@ensembles.register("autoattack", audit=audit, use="the number that others report")
def autoattack(
    norm: str, *, version: Version = "standard", audit: Annotated[int, Ge(0), Le(4096)] = 64
) -> list[Stage]:
    """Worst case per sample over a list of attacks without free parameters: `version` names the list.

    standard: apgd-ce, apgd-t (targeted DLR, 9 classes), fab-t, square (5,000 queries): the authors' list.
    Ours goes on with apgd-wide (linf, l2) and fab-random (l2). Under l1 apgd-ce takes 12 restarts (the
    authors: 5, whose verdict on masked models moves by several samples from seed to seed), and apgd-t 5
    target classes.
    plus: apgd-ce and apgd-dlr with 5 restarts, fab with 5 restarts, square, apgd-t, fab-t. rand: apgd-ce and
    apgd-dlr with gradients averaged over 20 draws, for randomised models. rapid: our own shorter list, see
    docs/autoattack.md; it is no AutoAttack number.

    Args:
        norm: linf, l2 or l1.
        audit: survivors of rapid that meet short forms of FAB and Square afterwards; 0 = none, and the record
            says so.

    Source: Croce & Hein, ICML 2020, arXiv:2003.01690; l1: ICML 2021, arXiv:2103.01208. Parameters:
        fra31/auto-attack.
    """
    restarts, targets = (12, 5) if norm == "l1" else (1, 9)
    square = Stage("square", "square", {"queries": 5000})
    if version == "standard":
        published = [
            _apgd("apgd-ce", "ce", restarts=restarts),
            _apgd("apgd-t", "dlr-targeted", targets=targets),
            _fab("fab-t", targeted=True, restarts=1),
            square,
        ]
        wide, restarted = [_wide("apgd-wide", steps=100)], [_restarted("fab-random")]
        return published + {"linf": wide, "l2": wide + restarted, "l1": []}[norm]
    if version == "plus":
        return [
            _apgd("apgd-ce", "ce", restarts=5),
            _apgd("apgd-dlr", "dlr", restarts=5),
            _fab("fab", targeted=False, restarts=5),
            square,
            _apgd("apgd-t", "dlr-targeted", targets=targets),
            _fab("fab-t", targeted=True, restarts=1),
        ]
    if version == "rand":
        return [_apgd("apgd-ce", "ce", draws=20), _apgd("apgd-dlr", "dlr", draws=20)]
    return _rapid(norm)


def _rapid(norm: str) -> list[Stage]:
    """The stages of version rapid.

    apgd-wide is there for masked gradients, see `_wide`. fab-1 is there under l2 and l1, where a minimal-norm
    search finds more.
    """
    nearest = Stage("rapid:fab-1", "fab", {"steps": 98, "restarts": 1, "targeted": True, "targets": 1})
    if norm == "l1":  # apgd begins in a wider ball by itself there, and a short run does not reach the end
        return [
            _apgd("rapid:apgd-ce", "ce", restarts=3, steps=100),
            _apgd("rapid:apgd-t2", "dlr-targeted", targets=2, steps=60),
            nearest,
        ]
    near, far = (70, 22) if norm == "linf" else (50, 15)
    towards = [
        _apgd("rapid:apgd-t3", "dlr-targeted", targets=3, steps=near),
        _apgd("rapid:apgd-t6", "dlr-targeted", targets=6, skip=3, steps=far),
    ]
    plain = _apgd("rapid:apgd-ce", "ce", restarts=2, steps=60)
    if norm == "linf":
        return [plain, _wide("rapid:apgd-wide", steps=100), *towards]
    return [plain, _wide("rapid:apgd-wide", steps=60), *towards, nearest]
