"""The section `thresholds`: metric -> what it must reach, and the faults that a type alone does not find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from robustcli.config.number import Number, Text, format_number, parse_number
from robustcli.config.sections import LARGEST, wrong_radius
from robustcli.config.spec import Section
from robustcli.config.threats import UNION
from robustcli.config.tree import Fault
from robustcli.config.wording import shown
from robustcli.registry import suggestion

Bound = Literal["min", "max"]
SECTION = "thresholds"


@dataclass(frozen=True)
class Metric:
    """What may be judged.

    Args:
        bound: how its limit is written: min for what should be high, max for what should be low.
        radius: whether `@NORM:EPS` never, may or must follow its name.
        what: one line for the documentation.
        drop: whether it is a difference to a baseline, on the same samples.
        any_class: whether it counts what attacks break that want any wrong class.
    """

    bound: Bound
    radius: Literal["never", "may", "must"]
    what: str
    drop: bool = False
    any_class: bool = False


METRICS: Mapping[str, Metric] = {
    "clean_acc": Metric("min", "never", "right on the clean image"),
    "robust_acc": Metric("min", "may", "right, and broken by no attack", any_class=True),
    "worst_class_clean_acc": Metric("min", "never", "`clean_acc` of the class that has least of it"),
    "worst_class_robust_acc": Metric(
        "min", "may", "`robust_acc` of the class that has least of it", any_class=True
    ),
    "certified_acc": Metric("min", "must", "proven to be right at the radius (`certify`)"),
    "adaptive": Metric("min", "never", "robust accuracy of a guard that the attacker knows (`guard eval`)"),
    "attack_success": Metric(
        "max", "may", "broken, of the samples that are right on the clean image", any_class=True
    ),
    "clean_rejected": Metric("max", "never", "clean images that a guard rejects (`guard eval`)"),
    "clean_acc_drop": Metric("max", "never", "`clean_acc` of the baseline less that of the run", drop=True),
    "robust_acc_drop": Metric("max", "never", "the same of `robust_acc`", drop=True, any_class=True),
}


@dataclass(frozen=True)
class Quantity:
    """A metric, and the radius where it is asked for; norm and eps are None for that of the records."""

    metric: str
    norm: str | None = None
    eps: float | None = None

    @property
    def about(self) -> Metric:
        """What the metric is."""
        return METRICS[self.metric]

    @property
    def name(self) -> str:
        """As it is written in YAML: `robust_acc@linf:8/255`."""
        if self.eps is None:
            return self.metric
        if self.norm == UNION:
            return f"{self.metric}@{self.norm}"
        return f"{self.metric}@{self.norm}:{format_number(self.eps)}"


class ThresholdConfig(Section):
    """What one metric must reach."""

    min: Number | None = Field(default=None, ge=0, le=1, description="smallest share that passes")
    max: Number | None = Field(default=None, ge=0, le=1, description="largest share that passes")
    mode: Literal["evidence", "prove", "point"] = Field(
        default="evidence",
        description="evidence fails where the limit is surely missed; prove passes where it is surely "
        "reached; point compares the measured share",
    )
    baseline: Text | None = Field(
        default=None, min_length=1, description="run that a drop is measured against: runs/eval/main"
    )


def parse_quantity(text: str) -> Quantity:
    """`robust_acc`, or `robust_acc@linf:8/255`. Raises ValueError for a metric or a radius that is none."""
    name, at, radius = text.partition("@")
    if name not in METRICS:
        hint = suggestion(name[:80], list(METRICS))
        raise ValueError(f"unknown metric {shown(name)}; {hint}known: {', '.join(METRICS)}")
    rule = METRICS[name].radius
    if not at and rule == "must":
        raise ValueError(f"say at which radius: {name}@linf:2/255")
    if not at:
        return Quantity(name)
    if rule == "never":
        raise ValueError(f"{name} takes no radius; write {name}")
    return Quantity(name, *_radius(radius))


def _radius(text: str) -> tuple[str, float]:
    """(norm, eps) of `linf:8/255`; of the union of all balls ("union", 0). Raises ValueError."""
    if text == UNION:
        return text, 0.0
    norm, colon, number = text.partition(":")
    if norm not in LARGEST or not colon:
        raise ValueError(f"expected @NORM:EPS such as @linf:8/255, got {shown('@' + text)}")
    eps = parse_number(number)
    if not eps > 0:
        raise ValueError(f"a radius must be > 0, got {shown(number)}")
    if what := wrong_radius("eps", eps, norm):
        raise ValueError(what)
    return norm, eps


def key_path(key: str) -> list[str]:
    """The parts of a dotted key: `thresholds.robust_acc@linf:0.1.min` has a metric with a dot in it."""
    parts = key.split(".")
    if parts[0] != SECTION or len(parts) < 3:
        return parts
    if parts[-1] in ThresholdConfig.model_fields:
        return [SECTION, ".".join(parts[1:-1]), parts[-1]]
    return [SECTION, ".".join(parts[1:])]


def threshold_faults(data: Any) -> list[Fault]:
    """What is wrong with the thresholds in a config as plain data; their types are the schema's to check."""
    section = data.get(SECTION)
    if not isinstance(section, dict):
        return []
    return [fault for name, written in section.items() for fault in _faults(name, written)]


def _faults(name: str, written: Any) -> Iterator[Fault]:
    at = f"{SECTION}.{name}"
    try:
        metric = parse_quantity(name).about
    except ValueError as error:
        yield Fault(at, str(error))
        return
    if not isinstance(written, dict):
        return
    bound: Bound = metric.bound
    other = "max" if bound == "min" else "min"
    if written.get(other) is not None:
        reason = {"min": "higher is better", "max": "lower is better"}[bound]
        yield Fault(f"{at}.{other}", f"{name} is judged by {bound}: {reason}")
    elif written.get(bound) is None:
        yield Fault(at, f"says no limit; write {{{bound}: ...}}")
    if written.get("baseline") is not None and not metric.drop:
        drops = " and ".join(key for key, each in METRICS.items() if each.drop)
        yield Fault(f"{at}.baseline", f"only {drops} have a baseline")
