"""One line of `thresholds`, with the place where it is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from robustcli.config.load import Loaded
from robustcli.config.thresholds import SECTION, Bound, Quantity, parse_quantity
from robustcli.config.tree import Fault, config_error
from robustcli.errors import UsageError


@dataclass(frozen=True)
class Threshold:
    """What one quantity must reach.

    Args:
        quantity: what is judged. limit: in [0, 1]. mode: evidence, prove or point.
        baseline: path of a run, for a drop. where: file:line, or the flag that it came from.
    """

    quantity: Quantity
    limit: float
    mode: str = "evidence"
    baseline: str | None = None
    where: str = ""

    @property
    def name(self) -> str:
        """As YAML has it: `robust_acc@linf:8/255`."""
        return self.quantity.name

    @property
    def bound(self) -> Bound:
        """min or max."""
        return self.quantity.about.bound

    @property
    def place(self) -> tuple[str, int] | None:
        """(file, line) where it is written; None on the command line."""
        file, colon, line = self.where.rpartition(":")
        return (file, int(line)) if colon and line.isdigit() else None

    @property
    def words(self) -> str:
        """`robust_acc@linf:8/255 >= 0.45`."""
        sign = ">=" if self.bound == "min" else "<="
        return f"{self.name} {sign} {self.limit:.4g}"


def thresholds_of(loaded: Loaded, baseline: str | None = None) -> list[Threshold]:
    """The thresholds of a configuration. baseline: a run for all drops, in place of what they name.

    Raises UsageError where there is none, and for a baseline that no drop is measured against. Raises
    ConfigError for a drop that names no baseline.
    """
    found = list(_read(loaded, baseline))
    if not found:
        raise UsageError(
            "no thresholds: nothing would be judged",
            where=str(loaded.path or "command line"),
            hint="write thresholds: {robust_acc: {min: 0.45}} into the configuration, or --thresholds FILE",
        )
    if baseline is not None and not any(each.quantity.about.drop for each in found):
        raise UsageError(
            "no drop is judged: nothing would be compared with the baseline",
            where=baseline,
            hint="write thresholds: {robust_acc_drop: {max: 0.02}}, or leave the baseline out",
        )
    lost = [each for each in found if each.quantity.about.drop and each.baseline is None]
    if lost:
        what = "a drop is measured against a run; write {baseline: runs/eval/...}, or --baseline RUN"
        raise config_error([Fault(f"{SECTION}.{each.name}", what, each.where) for each in lost])
    return found


def _read(loaded: Loaded, baseline: str | None) -> Iterator[Threshold]:
    for name, written in loaded.config.thresholds.items():
        quantity = parse_quantity(name)
        bound = quantity.about.bound
        limit = getattr(written, bound)
        assert limit is not None, name  # `threshold_faults` refuses it
        against = (baseline or written.baseline) if quantity.about.drop else None
        where = loaded.origins.get(f"{SECTION}.{name}.{bound}", "")
        yield Threshold(quantity, limit, written.mode, against, where)
