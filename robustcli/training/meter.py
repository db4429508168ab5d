"""The speed of a training between two records, and how a budget in seconds is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le, Len, Lt

from robustcli.runtime.distributed import Ranks

if TYPE_CHECKING:
    from robustcli.training.trainplan import Progress

Seconds = Annotated[float, Ge(0), Lt(1e12)]
Share = Annotated[float, Ge(0), Le(1)]

#: Weight of the newest step in the estimate of all, and the most by which it counts: a stall is no new pace.
_NEWEST, _STALL = 0.05, 3.0
#: Points at which the cost of the steps that are left is read from the curve.
_READ = 8


class Meter:
    """Counts since the last `clear`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Set all counts to 0."""
        self._seconds = self._waited = 0.0
        self._images = 0

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        """Time one training step on `images` images of all ranks. A step that raises is not counted."""
        began = time.perf_counter()
        yield
        self._images += images
        self._seconds += time.perf_counter() - began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for the next batch."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @property
    def rate(self) -> float:
        """Images per second."""
        return self._images / max(self._seconds, 1e-9)

    @property
    def waiting_share(self) -> float:
        """Share of the time that was spent waiting for data, in [0, 1]."""
        return self._waited / max(self._seconds, 1e-9)


@dataclass
class Pace:
    """How a budget in seconds is spent, and how many steps it still holds; plain JSON.

    The plan is made anew after each step: n steps and the validations between them fill what is left. Each of
    them is 1/n of the share of the run that is left, so at an even pace the k-th of N steps is at k/N.

    Attributes:
        budget: seconds of the whole run.
        spent: seconds so far: probe, steps, validations and checkpoints.
        costs: seconds of a step at the middles of equal parts of the run, as probed; a curriculum moves them.
        scale: seconds of a step now, over what the probe has seen.
        validation: seconds of one validation and of what is saved with it.
        done: share of the run that is done, in [0, 1]; it never falls.
        last: share of the run in the middle of the last step.
    """

    budget: Annotated[float, Gt(0), Lt(1e12)]
    spent: Seconds = 0.0
    costs: Annotated[list[Annotated[float, Gt(0), Lt(1e12)]], Len(1, 100)] = field(
        default_factory=lambda: [1.0]
    )
    scale: Annotated[float, Gt(0), Lt(1e12)] = 1.0
    validation: Seconds = 0.0
    done: Share = 0.0
    last: Share = 0.0

    def share(self, ahead: int, left: int) -> float:
        """t in (0, 1] in the middle of a step: the last one (`ahead` < 0), or the next of `left`."""
        if ahead < 0:
            return self.last
        return min(1.0, self.done + (1 - self.done) * 0.5 / max(left, 1))

    def stepped(self, seconds: float, left: int) -> None:
        """A step that took so long is done; it was the first of `left`."""
        self.last = self.share(0, left)
        self.done = 1.0 if left <= 1 else self.done + (1 - self.done) / left
        seen = min(seconds / self._cost(self.last), _STALL * self.scale)
        self.scale = max(1e-9, self.scale + _NEWEST * (seen - self.scale))

    def left(self, step: int, every: int, *, due: bool) -> int:
        """n >= 0, the steps after `step` that fit before the last validation.

        n c + v m <= what is left without the last validation, for steps of c seconds and m validations of v
        between them, one after each `every` steps. due: one more comes before the next step.
        """
        room = self.budget - self.spent - self.validation * (1 + due)
        if self.done >= 1 or room <= 0:
            return 0
        one = self.scale * sum(self._cost(t) for t in self._ahead()) / _READ
        between, found = max(0, int(room / (one + self.validation / every) / every) - 2), 0
        while True:
            fit = int((room - between * self.validation) / one * (1 + 1e-9))
            reached = (step // every + between + 1) * every - step
            found = max(found, min(fit, reached))
            if fit <= reached:
                return found
            between += 1

    def _ahead(self) -> list[float]:
        """Shares of the run, evenly spread over what is left."""
        return [self.done + (1 - self.done) * (k + 0.5) / _READ for k in range(_READ)]

    def _cost(self, t: float) -> float:
        """Seconds of a step at t as probed: a straight line from point to point, level at both ends."""
        at = min(max(t * len(self.costs) - 0.5, 0.0), len(self.costs) - 1.0)
        k = min(int(at), max(0, len(self.costs) - 2))
        after = self.costs[min(k + 1, len(self.costs) - 1)]
        return self.costs[k] + (at - k) * (after - self.costs[k])


class Spender:
    """Charges the clock to the pace of a run and plans anew what is left. It does nothing without a pace.

    Args:
        ranks: all go by the clock of rank 0.
        every: steps between two validations.
        clock: () -> seconds.
    """

    def __init__(self, ranks: Ranks, every: int, clock: Callable[[], float]) -> None:
        self.ranks, self.every, self.clock = ranks, every, clock
        self._mark = clock()
        self._stepped = 0.0  # seconds spent when the last step ended

    def begin(self, progress: Progress, pace: Pace | None) -> None:
        """From now on the clock is charged to `pace`; None: to nothing."""
        self._mark = self.clock()
        progress.pace = pace
        if pace is not None:
            self._stepped = pace.spent
            self._plan(progress, pace)

    def charge(self, progress: Progress) -> float:
        """Charge the time since the last call; returns it, in seconds."""
        now = self.clock()
        seconds, self._mark = max(0.0, now - self._mark), now
        if progress.pace is not None:
            progress.pace.spent += seconds
        return seconds

    def stepped(self, progress: Progress) -> None:
        """A step was made, and `progress.step` counts it."""
        seconds, pace = self.charge(progress), progress.pace
        if pace is None:
            return
        pace.stepped(seconds, progress.max_steps - progress.step + 1)
        self._stepped = pace.spent
        self._plan(progress, pace)

    def paused(self, progress: Progress, *, validated: bool) -> None:
        """What follows a step was done: a validation, where `validated`, and a checkpoint."""
        self.charge(progress)
        pace = progress.pace
        if pace is None:
            return
        if validated:
            pace.validation = max(0.0, pace.spent - self._stepped)
        self._plan(progress, pace)

    def used_up(self, progress: Progress) -> bool:
        """Whether the validation that was just made leaves no room for one more step."""
        self.charge(progress)
        pace = progress.pace
        if pace is None:
            return False
        now = replace(pace, validation=max(0.0, pace.spent - self._stepped))
        return not self.ranks.broadcast(now.left(progress.step, self.every, due=False))

    def _plan(self, progress: Progress, pace: Pace) -> None:
        due = progress.step % self.every == 0 and progress.step not in (0, progress.validated)
        left = max(pace.left(progress.step, self.every, due=due), int(progress.step == 0))
        if not left:
            pace.done = 1.0  # the run has ended, whatever the last validation takes
        if self.ranks.world > 1:
            told, left = self.ranks.broadcast([asdict(pace), left])
            progress.pace = Pace(**told)
        progress.max_steps = progress.step + left
