"""What an evaluation will not measure, said before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.assembly.ranges import parse_sweep
from robustcli.config.schema import Config
from robustcli.config.threats import UNION, threat_name
from robustcli.errors import UsageError
from robustcli.gating.measured import check_goal, hint_for, same_radius
from robustcli.gating.threshold import Threshold

_NOT_OF_EVAL = ("certified_acc", "adaptive", "clean_rejected")


def check_measurable(config: Config, thresholds: Sequence[Threshold]) -> None:
    """Raises UsageError for a quantity that `eval` with this configuration has no record of."""
    for threshold in thresholds:
        quantity = threshold.quantity
        check_goal(config.eval.target, threshold)
        if quantity.metric in _NOT_OF_EVAL:
            what = f"{quantity.name} is not measured by `eval`"
            raise UsageError(what, where=threshold.where, hint=hint_for(quantity))
        if quantity.eps is not None and not _will_be_measured(config, threshold):
            what = f"{quantity.name} will not be measured: the ball is {_ball(config)}"
            raise UsageError(what, where=threshold.where, hint=hint_for(quantity))


def _ball(config: Config) -> str:
    """`linf:8/255`; the norm alone where the radius is the preset of a data set; several with their union."""
    named = [ball.norm if ball.eps is None else threat_name(ball.norm, ball.eps) for ball in config.balls]
    return ", ".join([*named, UNION] if config.union else named)


def _will_be_measured(config: Config, threshold: Threshold) -> bool:
    """Whether the radius is that of the ball, or a point of the sweep. That of a preset is not known yet."""
    norm, eps = threshold.quantity.norm, threshold.quantity.eps
    if norm == UNION:
        return config.union
    ball = next((ball for ball in config.balls if ball.norm == norm), None)
    if ball is None or eps is None or ball.eps is None:
        return ball is not None
    sweep = parse_sweep(config.eval.sweep) if config.eval.sweep else None
    points = [ball.eps, *(sweep.values if sweep is not None and sweep.key == "eps" else ())]
    return any(same_radius(ball.norm, point, norm, eps) for point in points)
