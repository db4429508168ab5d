"""The names of balls and of their unions, in records, tables and thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustcli.config.number import format_number, parse_number
from robustcli.config.sections import LARGEST

#: A metric of a union of balls: `robust_acc@union`.
UNION = "union"
_PLUS = "+"


def threat_name(norm: str, eps: float) -> str:
    """``linf:8/255``, as a threshold names the radius of a metric."""
    return f"{norm}:{format_number(eps)}"


def union_norm(balls: Mapping[str, float]) -> str:
    """``linf:8/255+l2:0.5``: what stands for the norm in the records of a union; balls: norm -> eps.

    Records of one such norm are of one threat. The order of the balls does not matter.
    """
    return _PLUS.join(threat_name(norm, balls[norm]) for norm in sorted(balls, key=list(LARGEST).index))


def stated_ball(ball: Any) -> Mapping[str, Any]:
    """The section `ball` of a stored configuration as {norm, eps}, of a union as its records name it.

    A union with a radius that the data set filled in has no name here: {}.
    """
    if not isinstance(ball, list):
        return ball if isinstance(ball, Mapping) else {}
    radii = {each["norm"]: each["eps"] for each in ball}
    if None in radii.values():
        return {}
    return {"norm": union_norm({norm: parse_number(eps) for norm, eps in radii.items()}), "eps": 0.0}


def is_union(norm: str) -> bool:
    """Whether the norm of a record is that of a union."""
    return _PLUS in norm


def members(norm: str) -> Sequence[str]:
    """The names of the balls of a union."""
    return norm.split(_PLUS)
