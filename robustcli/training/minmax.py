"""The usual training step: attack the model, then descend on what the attack found."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from robustcli.core.random import RowRandom
from robustcli.core.types import Batch, LossTerms
from robustcli.registry import steps
from robustcli.training.ascent import Ascent, Found, some_rows
from robustcli.training.descent import Descent
from robustcli.training.faults import shared_faults
from robustcli.training.settings import StepSettings, Threat
from robustcli.training.step import Step


class MinMax:
    """Maximise the inner loss over the ball, then make one descent step on the outer loss.

    In a union of balls the attack runs in each, or in the drawn one; `training.union` says what follows.
    Between two steps it remembers the size of the micro-batch, the search twin and what the attack keeps.

    Source: Madry et al., ICLR 2018, arXiv:1706.06083.
    """

    def __init__(self, settings: StepSettings) -> None:
        self.settings, self.micro_batch = settings, settings.micro_batch
        self.descent = Descent(settings)
        self.ascent = Ascent(settings, self.descent.forward)

    @property
    def twin_note(self) -> str:
        """See `Step`."""
        return self.ascent.twin_note

    @property
    def way(self) -> str:
        """See `Step`."""
        return self.ascent.way

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        *,
        seed: int,
        epoch: int,
        y_soft: Tensor | None = None,
        progress: float = 0.5,
        number: int = 0,
    ) -> LossTerms:
        """See `Step`. A step that raises has changed neither parameters nor state."""
        memory = self.ascent.memory
        kept = memory.state()
        try:
            terms = self._step(self.settings.laid_out(x), y, ids, (seed, epoch, number), y_soft, progress)
        except BaseException:
            memory.load(kept)
            raise
        memory.turn += 1
        return terms

    def _step(
        self,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        when: tuple[int, int, int],
        y_soft: Tensor | None,
        progress: float,
    ) -> LossTerms:
        """Attack, then descend; see `__call__`. when: seed, epoch, number of the step."""
        seed, epoch, number = when
        start = RowRandom(seed, "start", ids, epoch=epoch)
        threats = self.settings.threats_of(progress, seed, number)
        with shared_faults(self.settings.ranks):
            found = self.found(x, y, start, y_soft, threats)
        _, ball = self.settings.threat(progress)
        ramp = self.settings.reached(ball)
        # A stream of its own: a regulariser must not see the noise that the attack started from.
        rng = RowRandom(seed, "objective", ids, epoch=epoch)
        batches = []
        for x_adv, began, within in found:
            for rows in self._parts(len(x)):
                clean = x[rows]
                attacked = clean if x_adv is x else x_adv[rows]
                soft, start_at = some_rows(y_soft, rows), some_rows(began, rows)
                own = rng.rows(rows)
                batches.append(
                    Batch(clean, y[rows], attacked, ids[rows], within, own, soft, ramp, start_at, progress)
                )
        return self.descent(batches, progress)

    def found(
        self, x: Tensor, y: Tensor, rng: RowRandom, y_soft: Tensor | None, threats: Sequence[Threat]
    ) -> list[Found]:
        """What is descended on: one entry for each threat, or one of the worst points; x without a loss."""
        if self.settings.inner is None:
            return [Found(x, None, threats[0][1])]
        parts, worst = self._parts(len(x)), self.settings.worst
        return self.ascent.each(x, y, rng, parts, y_soft, threats, worst=worst)

    def adversarial(
        self, x: Tensor, y: Tensor, rng: RowRandom, *, y_soft: Tensor | None = None, progress: float = 0.5
    ) -> Tensor:
        """x_adv [B, C, H, W] in the ball, found in micro-batches; x itself without an inner loss.

        x: pixels [B, C, H, W] in [0, 1]. y: int64 [B]. y_soft: label distributions [B, K], or None. rng: one
        random stream per row. progress: share of the run, in [0, 1].
        """
        return self.found(x, y, rng, y_soft, [self.settings.threat(progress)])[0].x_adv

    def _parts(self, rows: int) -> list[slice]:
        """The rows of each micro-batch."""
        size = self.micro_batch or rows
        return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]

    def halve(self, rows: int) -> int:
        """See `Step`. 0 when every smaller micro-batch has fewer images than the model bears."""
        now, fewest = min(self.micro_batch or rows, rows), self.settings.fewest
        smaller = range(max(fewest, (now + 1) // 2), now)
        size = next((size for size in smaller if (rows % size or size) >= fewest), 0)
        if size:
            self.micro_batch = size
            self.ascent.forget()
        return size

    def state(self) -> dict[str, Tensor]:
        """What the attack keeps; {} where it keeps nothing."""
        return self.ascent.memory.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        self.ascent.memory.load(state)


@steps.register("minmax", attacks=True)
def minmax(settings: StepSettings) -> Step:
    """x_adv = argmax of the inner loss over the ball;  theta <- theta - lr grad L(theta, x, x_adv).

    The attack runs first. The weights then descend on the points that it found.

    Source: Madry et al., ICLR 2018, arXiv:1706.06083.
    """
    return MinMax(settings)
