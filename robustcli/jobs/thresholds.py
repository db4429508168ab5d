"""`--fail-under METRIC=VALUE`: the smallest value of a metric that passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustcli.errors import UsageError

_METRICS = ("clean_acc", "robust_acc", "attack_success")


def check_metrics(fail_under: Mapping[str, float]) -> None:
    """Raises UsageError for a metric that no evaluation has. It is called before any work."""
    for name in fail_under:
        if name not in _METRICS:
            raise UsageError(
                f"--fail-under: unknown metric {name!r}",
                where="eval.fail_under",
                hint=f"known: {', '.join(_METRICS)}",
            )


def verdicts(document: Mapping[str, Any], fail_under: Mapping[str, float]) -> list[dict[str, Any]]:
    """One verdict per threshold: it passes when the value is >= the threshold."""
    least = {name: float(value) for name, value in fail_under.items()}
    return [
        {"metric": name, "min": low, "value": document[name], "passed": bool(document[name] >= low)}
        for name, low in least.items()
    ]
