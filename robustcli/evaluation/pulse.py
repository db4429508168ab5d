"""Where an evaluation is inside a batch, told some times a second.

Inside an attack all that is told is known on the host already: a look at the clock before each model pass,
and never at the device. Where somebody listens, the rows that stand are counted before and after an attack.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from robustcli.core.oracle import Oracle
from robustcli.evaluation.plan import AttackCall

EVERY = 0.5  # seconds between two beats, at least


@dataclass(frozen=True)
class Beat:
    """One moment of the work on a batch.

    Args:
        label: of the attack that runs, or what else is done.
        step: (k, of) of its iterations, roughly; None where nobody knows.
        rows: of the batch; 0 before the first one.
        standing: of them, right on the clean image and not broken so far.
        share: of the batch's work that is done, in [0, 1]. Rows that will break make it a pessimist.
        seconds: spent on the batch so far.
    """

    label: str
    step: tuple[int, int] | None = None
    rows: int = 0
    standing: int = 0
    share: float = 0.0
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """``pgd-20 step 7/20``: what is done now."""
        if self.step is None:
            return self.label
        return f"{self.label} step {self.step[0]}/{self.step[1]}"


@dataclass(frozen=True)
class Costs:
    """What the attacks of a plan cost on a row that stands to the end.

    Args:
        passes: model passes of each attack, 0 where nobody knows.
        steps: iterations of each attack, 0 where it has none.
    """

    passes: Sequence[int]
    steps: Sequence[int]

    @classmethod
    def of(cls, calls: Sequence[AttackCall], spent: Sequence[int], classes: int, norm: str) -> Costs:
        """Costs of `calls`; spent: model passes of each, see `evaluation.draws.spent`."""
        return cls(spent, [_steps(call, call.passes(classes, norm)) for call in calls])


def _steps(call: AttackCall, passes: int) -> int:
    """Iterations over all restarts and targets, from the cost of one: forward and backward, or forward."""
    per_run = call.given.get("steps") or call.given.get("queries")
    if not isinstance(per_run, int) or not passes:
        return 0
    per_step = 2 if call.needs == "gradient" else 1
    return per_run * max(1, round(passes / (per_run * per_step)))


class Pulse:
    """Called before every model pass; tells `show` now and then where the work is.

    Args:
        stop: called each time; raises to interrupt.
        show: takes a beat; None = nobody listens.
    """

    def __init__(self, stop: Callable[[], None] | None, show: Callable[[Beat], None] | None) -> None:
        self._stop, self._show = stop, show
        self._label = ""
        self._costs, self._place = Costs((), ()), 0
        self._rows = self._standing = self._apart = 0
        self._spent = 0  # model passes of the batch's finished attacks, over all rows
        self._seen, self._alive, self._depth = 0, 0, 0.0
        self._began = time.monotonic()  # the batch
        self._due = self._began + EVERY
        self._oracle: Oracle | None = None

    def __call__(self) -> None:
        """Before a model pass: let `stop` interrupt, and tell where the work is when that is due."""
        if self._stop is not None:
            self._stop()
        if self._show is None:
            return
        self._follow()
        now = time.monotonic()
        if now >= self._due:
            self._due = now + EVERY
            self._show(self._beat())

    def phase(self, label: str) -> None:
        """Work outside all batches begins."""
        self._label, self._oracle, self._rows = label, None, 0

    def batch(
        self, rows: int, calls: Sequence[AttackCall], spent: Sequence[int], classes: int, norm: str
    ) -> None:
        """The attacks on a batch begin; arguments as in `Costs.of`."""
        if self._show is None:
            return
        self._rows = self._standing = rows
        self._costs, self._spent, self._oracle = Costs.of(calls, spent, classes, norm), 0, None
        self._label, self._began = "clean images", time.monotonic()

    def stage(self, place: int, label: str, oracle: Oracle, standing: Tensor) -> None:
        """Attack number `place` begins, and asks this oracle. standing: bool [B], who stands now."""
        if self._show is None:
            return
        self._place, self._label, self._oracle = place, label, oracle
        self._standing = int(standing.sum())
        self._apart = self._standing - oracle.standing
        self._seen, self._alive, self._depth = self._passed(), oracle.standing, 0.0

    def staged(self, standing: Tensor) -> None:
        """The attack is over. standing: bool [B], who stands."""
        if self._show is None:
            return
        self._follow()
        self._spent, self._standing = self._spent + self._passed(), int(standing.sum())
        self._place, self._oracle = self._place + 1, None

    def _passed(self) -> int:
        """Model passes that the oracle has counted, over all rows."""
        if self._oracle is None:
            return 0
        return self._oracle.passes

    def _follow(self) -> None:
        """Count how many passes a row in play has gone through."""
        if self._oracle is None:
            return
        passed = self._passed()
        self._depth += (passed - self._seen) / max(1, self._alive)
        self._seen, self._alive = passed, self._oracle.standing

    def _beat(self) -> Beat:
        if not self._rows:
            return Beat(self._label)
        standing = self._standing
        if self._oracle is not None:
            standing = self._apart + self._oracle.standing
        seconds = time.monotonic() - self._began
        return Beat(self._label, self._step(), self._rows, standing, self._share(standing), seconds)

    def _step(self) -> tuple[int, int] | None:
        """(k, of) of the running attack's iterations; None where it has none."""
        if self._oracle is None or not self._costs.steps[self._place]:
            return None
        of = self._costs.steps[self._place]
        return min(of, int(of * self._depth / self._costs.passes[self._place])), of

    def _share(self, standing: int) -> float:
        """Passes made over passes made and to come, if nothing else breaks."""
        done = self._spent + self._passed()
        if not done:
            return 0.0
        here = max(0.0, sum(self._costs.passes[self._place : self._place + 1]) - self._depth)
        to_come = standing * (here + sum(self._costs.passes[self._place + 1 :]))
        return done / (done + to_come)
