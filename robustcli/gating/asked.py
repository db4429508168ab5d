"""A file that says what is to be measured, and a run that has measured something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from robustcli.config.load import Loaded
from robustcli.config.schema import Config
from robustcli.config.threats import union_norm
from robustcli.errors import UsageError
from robustcli.gating.measured import same_radius
from robustcli.gating.threshold import Threshold
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardRow
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.paired import threat

_DEFAULT = "default"


def check_asked(run: Dossier, loaded: Loaded, thresholds: Sequence[Threshold]) -> None:
    """Raises UsageError where the file with the thresholds names other data, another split or another ball.

    What the file leaves at its default says nothing. The ball counts where a threshold names no radius, which
    then is that of the run.
    """
    open_radius = any(
        each.quantity.about.radius == "may" and each.quantity.eps is None for each in thresholds
    )
    for key, asked, measured in _pairs(run, loaded, ball=open_radius):
        if loaded.origins.get(key, _DEFAULT) != _DEFAULT and not _same(key, asked, measured):
            raise UsageError(
                f"{key} is {asked}, and the run has measured {measured}",
                where=loaded.origins[key],
                hint="judge a run of this configuration, or keep the thresholds in a file of their own",
            )


def _pairs(run: Dossier, loaded: Loaded, *, ball: bool) -> Iterator[tuple[str, Any, Any]]:
    """(key, what the file asks for, what the run has measured), as far as both say it."""
    config = loaded.config
    row = next((row for row in run.rows if isinstance(row, (EvalRow, CertifyRow, GuardRow))), None)
    if row is not None:
        yield "data.name", config.data.name, row.data
        yield "eval.split", config.eval.split, row.split
    measured = threat(run)
    if ball and measured is not None:
        yield from _balls(config, *measured)


def _balls(config: Config, norm: str, eps: float) -> Iterator[tuple[str, Any, Any]]:
    """The threat that the file asks for, and the measured one. Of a union the radii are part of its name."""
    if not isinstance(config.ball, list):
        yield "ball.norm", config.ball.norm, norm
        yield "ball.eps", config.ball.eps, eps
    elif all(ball.eps is not None for ball in config.ball):
        yield "ball.0.norm", union_norm({ball.norm: ball.eps or 0.0 for ball in config.ball}), norm


def _same(key: str, asked: Any, measured: Any) -> bool:
    """Whether both mean the same. A path of images may be written in several ways: its kind counts."""
    if asked is None or measured == "":
        return True
    if key == "ball.eps":
        return same_radius("", asked, "", measured)
    if key == "data.name":
        return str(asked).partition(":")[0] == str(measured).partition(":")[0]
    return bool(asked == measured)
