"""All that an attack may ask of a model.

The file is long: a third of it says what the questions mean. How they are asked stands in `core.asker`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from robustcli.core.asker import Asker, Gradient, Move
from robustcli.core.best import BestPoints, Watch
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, RowLoss
from robustcli.core.memory import Memory
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Classifier, offers

Keep = Literal["last", "best", "closest"]
_numbers = itertools.count()  # of oracles


class Oracle:
    """Answers an attack's questions about the rows in play, and remembers the points it was asked about.

    B rows come in. A row whose success the watch confirms has fallen, and leaves at the next `compact`. The R
    rows that have not left are in play. A point is met when it counts for the best point of its row. "Best"
    is meant as the attacker sees it: a success before a failure, then the larger loss.

    Args:
        model: pixels [R, C, H, W] -> logits [R, K], frozen by the caller. It may be a faster twin: the watch
            has the last word.
        x: clean pixels [B, C, H, W] in [0, 1].
        criterion: what counts as success; holds the labels.
        loss: what to ascend: a registered name, or a RowLoss bound to all B rows.
        rng: one stream per row.
        keep: what `result` returns. "last": the attack's final point; K steps then cost K forward and K
            backward passes. "best": the best point met per row. The clean point is met first, which costs a
            forward pass. "closest": the success of the smallest `ball.distance`, or the clean point; for
            minimal-norm attacks.
        watch: is shown each success of the model here, and confirms it or not. None: no row falls.
        stop: called before every model pass; raises to interrupt the attack.
        clean_logits: [B, K] of this model at x if already known, which saves a forward pass; [B, K + 1] of a
            guarded model.
        ball: measures distances; needed by keep="closest", where a row falls only at a point inside it.
        draws: model passes averaged per answer, >= 1: expectation over transformation for randomised models
            (EOT, Athalye et al., ICML 2018, arXiv:1802.00420). Gradients are averaged, and so are logits.
        steady: whether the answer for a row is always the same, whatever else is in its batch; that of a
            search twin is. Only then may an attack ask ahead, or about one row several times in one batch.
        memory: what the attack keeps between the steps of a training; None anywhere else.
        many: whether so much is asked that an fp32 twin's faster forms are worth their making.
        blind: whether the attack may see labels alone. It then gets one-hot rows for logits, and no gradient.

    Attributes:
        forward_rows, backward_rows: how many rows went forward, and backward, through the model.
        discarded_rows: how many of the rows that went forward were asked about ahead and never met.
        asked_rows: how many rows were asked for a gradient while points were remembered.
        notes: lines for the user.
        grain: to which step of pixels the model rounds images, as a file of 8 bits does; 0 for none.
        trace: what `found` was told, with the numbers of the rows.
        memory: see above.
        began: the first point that was asked for a gradient and met; None before.

    Raises:
        ValueError: keep="closest" without a ball, or draws < 1.
    """

    def __init__(
        self,
        model: Classifier,
        x: Tensor,
        criterion: Criterion,
        *,
        loss: str | RowLoss = "ce",
        rng: RowRandom,
        keep: Keep = "last",
        watch: Watch | None = None,
        stop: Callable[[], None] | None = None,
        clean_logits: Tensor | None = None,
        ball: Ball | None = None,
        draws: int = 1,
        steady: bool = False,
        memory: Memory | None = None,
        many: bool = False,
        blind: bool = False,
    ) -> None:
        if keep == "closest" and ball is None:
            raise ValueError('keep="closest" needs a ball')
        if draws < 1:
            raise ValueError(f"draws must be >= 1, got {draws}")
        self.criterion, self.rng, self.memory = criterion, rng, memory
        self.began: Tensor | None = None
        self.notes: list[str] = []
        self.trace: list[tuple[Tensor, Tensor, Tensor]] = []
        self.forward_rows = self.backward_rows = self.discarded_rows = 0
        self.asked_rows = 0
        self._flat: Tensor | int = 0  # stays on the device: to read it is to wait
        counted = offers(model) != "gradient"  # what is asked ahead and never met is a query, too
        self.steady = (steady or isinstance(model, SearchTwin)) and draws == 1 and not counted
        self._stop, self._draws, self._origin, self._blind = stop, draws, x, blind
        self.grain = float(getattr(model, "grain", 0.0))
        self._clean = None if clean_logits is None else criterion.joint(clean_logits)
        self._given = loss
        self._bound: dict[str, RowLoss] = {}
        self._rows = torch.arange(len(x), device=x.device)
        self._index: Tensor | slice = slice(None)  # the rows in play, of a tensor of all rows
        self._leaving = False
        self._best: BestPoints | None = None
        self._scored: Tensor | None = None
        self._number = next(_numbers)
        self._places = 1  # of each row, see `spread`
        # While rows are spread: the rows in play before with their streams, and those that wait.
        self._before: tuple[Tensor, RowRandom] | None = None
        self._waiting = self._rows[:0]
        remembers = keep != "last" or watch is not None
        self._asker = _asker(model, criterion, draws, many, remembers, watch is not None, self.note)
        if not remembers:
            return
        self._best = BestPoints(x, x, ball if keep == "closest" else None, watch)
        if self._clean is None:
            self._clean = self._forward(x)
        self._consider(x, self._clean)

    @property
    def alive(self) -> int:
        """Rows still in play."""
        return len(self._rows) // self._places

    @property
    def standing(self) -> int:
        """Rows that have not left: those in play, and those that wait while others are `spread`."""
        return self.alive + len(self._waiting)

    @property
    def zero_gradient_rows(self) -> int:
        """How many of `asked_rows` were no success, and had a gradient of 0 everywhere."""
        return int(self._flat)

    @property
    def passes(self) -> int:
        """Rows that went through the model, forward or backward, without those of points never met."""
        return self.forward_rows + self.backward_rows - self.discarded_rows

    @property
    def y(self) -> Tensor:
        """True labels int64 [R] of the rows in play."""
        return self.criterion.y[self._index]

    @property
    def target(self) -> Tensor | None:
        """Labels to reach int64 [R] of the rows in play, or None for an untargeted search."""
        target = self.criterion.target
        return None if target is None else target[self._index]

    def clean(self) -> Tensor:
        """Logits [R, K] of the rows in play at their clean points; at most one model pass per attack."""
        return self._shown(self._all_clean()[self._index])

    def hit(self, logits: Tensor) -> Tensor:
        """Which rows in play these logits [R, K] would make a success: bool [R]."""
        return self.criterion.hit(logits, self._index)

    def note(self, text: str) -> None:
        """Keep one line for the user; the same line is kept once."""
        if text not in self.notes:
            self.notes.append(text)

    def logits(self, x_adv: Tensor) -> Tensor:
        """Logits [R, K] at x_adv [R, C, H, W] without a gradient; the point is met."""
        logits = self._forward(x_adv)
        if len(x_adv):
            self._consider(x_adv, logits)
        return self._shown(logits)

    def ahead(self, tries: Tensor, places: Tensor) -> Tensor:
        """Logits [A * k, K] at k points for each of A rows in play, none of which is met yet; see `meet`.

        tries: pixels [A * k, C, H, W], the points of a row one after another. places: int64 [A], which of the
        rows in play they belong to.
        """
        return self._shown(
            self._forward(tries, self._rows[places].repeat_interleave(len(tries) // len(places)))
        )

    def decide(self, tries: Tensor, places: Tensor) -> Tensor:
        """bool [N]: which of these points [N, C, H, W] are a success; none of them is met.

        places: int64 [N], which of the rows in play each point belongs to.
        """
        rows = self._rows[places]
        return self.criterion.hit(self._forward(tries, rows), rows)

    def meet_hits(self, x_adv: Tensor, hits: Tensor) -> None:
        """Meet points [R, C, H, W] of the rows in play, where `decide` found successes, bool [R]: no pass."""
        if self._best is not None and len(x_adv):
            self._leaving |= self._best.consider(self._index, x_adv, hits, hits.to(x_adv.dtype))

    def found(self, places: Tensor, spent: Tensor, far: Tensor) -> None:
        """Remember for the record: rows in play, int64 [N], are at distances [N] after so many queries."""
        self.trace.append((self._rows[places].cpu(), spent.cpu(), far.cpu()))

    def meet(
        self, tries: Tensor, places: Tensor, logits: Tensor, counted: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Meet those of the k points per row that count, as if each had been asked about by itself in turn.

        A row that falls at one of its points meets none of those after it.

        Args:
            tries, places: as `ahead` was given them.
            logits: its answer, [A * k, K].
            counted: int64 [A], how many points of each row count, the first ones, >= 1.
            kept: bool [A], what else the attack must know of each row.

        Returns:
            counted and kept on the CPU. All that is to be known of the round comes in one copy, for which a
            device is waited for.
        """
        rows, k = self._rows[places], len(tries) // len(places)
        if self._best is None:
            known = torch.stack((counted, kept.long())).cpu()
            met = int(known[0].sum())
        else:
            every = rows.repeat_interleave(k)
            inside = torch.arange(k, device=counted.device) < counted[:, None]
            loss = self._loss(None, every)(logits).view(-1, k)
            hits = self.criterion.hit(logits, every).view(-1, k)
            turns = tries.view(-1, k, *tries.shape[1:])
            known = torch.stack((counted, kept.long(), (hits & inside).any(1).long())).cpu()
            late, fell = self._best.consider_turns(
                rows, turns, hits, loss, inside, success=bool(known[2].any())
            )
            self._leaving |= fell
            met = int(known[0].sum()) - late
        self.discarded_rows += len(tries) - met
        return known[0], known[1].bool()

    def gradient(
        self,
        x_adv: Tensor,
        loss: str | Callable[[Tensor], Tensor] | None = None,
        *,
        scored: bool = True,
        raw: bool = False,
    ) -> Gradient:
        """Loss, logits and input gradient at x_adv; non-finite entries of the gradient become 0.

        Args:
            x_adv: pixels [R, C, H, W].
            loss: replaces the bound loss in this answer: a registered name, or a differentiable map
                logits [R, K] -> [R] such as a `RowLoss`. Which point is best is still decided by the bound
                one.
            scored: whether the point is met; false for a point that lies outside the ball on purpose, or that
                was met before.
            raw: whether `loss`, a map, and the answer have the logits as the model gives them: [R, K + 1] of
                a guarded model, with "reject" in a column of its own.
        """
        if not len(x_adv):
            return Gradient(x_adv.new_zeros(0), x_adv.new_zeros(0, 2), x_adv)
        self._refuse_slope()
        self._check()
        ascend = loss if callable(loss) else self._loss(loss)
        answer = self._asker.gradient(x_adv.detach(), ascend, _as_given if raw else self._joint)
        self._hear(x_adv.detach(), answer, scored=scored, bound=loss is None)
        return answer

    def step(self, x_adv: Tensor, move: Move, *given: Tensor, loss: str | None = None) -> Tensor:
        """move(x_adv, grad, *given): the next point [R, C, H, W]. The point x_adv [R, C, H, W] is met.

        grad is that of `gradient` at x_adv. given: what else the move reads, [R, ...]. loss: the name of a
        registered one, in place of the bound loss.
        """
        if not len(x_adv):
            return x_adv
        self._refuse_slope()
        self._check()
        point, ascend = x_adv.detach(), self._loss(loss)
        moved, answer = self._asker.step(point, ascend, self._joint, move, given, self._number)
        self._hear(point, answer, scored=True, bound=loss is None)
        return moved

    def ask(self, x_adv: Tensor) -> Tensor:
        """Logits [R, K] with their graph, for attacks of other libraries; the point is not met.

        The rows count as one forward pass. A backward pass through the graph is not seen.
        """
        self._check()
        self.forward_rows += len(x_adv)
        return self._shown(self._joint(self._asker.model(x_adv)))

    def score(self, x_adv: Tensor) -> None:
        """Meet this point [R, C, H, W], and return the best of all points met from here on.

        An attack with restarts calls it at the end of each. Without it, keep="last" would return the point
        of the last restart.
        """
        point = x_adv.detach()
        if self._best is None:
            self._best = BestPoints(point, self._origin, None, None)
        self.logits(point)
        self._scored = x_adv

    def compact(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors [R, ...] without the rows that fell since the last call; they leave the oracle, too.

        When no row fell the answer is the same objects.
        """
        if not self._leaving or self._best is None:
            return tensors
        self._leaving = False
        # As numbers: a device is waited for once, and not once for each tensor that a mask would choose from.
        stay = (~self._best.fallen[self._rows]).nonzero()[:, 0]
        self._rows = self._index = self._rows[stay]
        self.rng = self.rng.rows(stay)
        return tuple(t[stay] for t in tensors)

    def spread(self, places: int, few: int) -> None:
        """Give the first `few` rows in play several places each, in which they are searched on at once.

        The other rows wait. From here to `gather` all questions and answers have places * few rows, those of
        one row after another. A row that falls leaves all its places.
        """
        whole = torch.arange(few, device=self._rows.device).repeat_interleave(places)
        self._before, self._waiting = (self._rows, self.rng), self._rows[few:]
        self._rows = self._index = self._rows[whole]
        self.rng, self._places = self.rng.rows(whole), places

    def rest(self, stay: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors [R, ...] of the rows in play at the places `stay`, int64.

        The others rest until `recall`.

        It may be called again on the rows that are left. Rows that are `spread` cannot rest.
        """
        if self._before is None:
            self._before = (self._rows, self.rng)
        away = torch.ones_like(self._rows, dtype=torch.bool)
        away[stay] = False
        self._waiting = torch.cat((self._waiting, self._rows[away]))
        self._rows = self._index = self._rows[stay]
        self.rng = self.rng.rows(stay)
        return tuple(t[stay] for t in tensors)

    def gather(self, x_adv: Tensor, waiting: Tensor) -> Tensor:
        """Each row in play has one place again, the rows that waited before the others.

        Args:
            x_adv: points [places * R, C, H, W] of the rows that were searched on.
            waiting: points of the rows that waited, [W, C, H, W].

        Returns:
            Points [W + R, C, H, W]: those of the rows that waited, then those of the last place of each row.
        """
        assert self._before is not None, "nothing is spread"
        places, (rows, rng) = self._places, self._before
        points = torch.cat((waiting, x_adv[places - 1 :: places]))
        self._rows = self._index = torch.cat((self._waiting, self._rows[::places]))
        self._places, self._before, self._waiting = 1, None, self._rows[:0]
        at = torch.empty(len(self._origin), dtype=torch.int64, device=rows.device)
        at[rows] = torch.arange(len(rows), device=rows.device)
        self.rng = rng.rows(at[self._rows])
        if self._scored is x_adv:
            self._scored = points
        return points

    def recall(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """As if no row had been spread, after a search that failed, or had rested: rows that fell have left.

        tensors: [R, ...] of the rows in play before `spread` or the first `rest`; the answer is of those
        still in play.
        """
        if self._before is not None:
            self._rows, self.rng = self._before
        self._index, self._leaving = self._rows, self._best is not None
        self._places, self._before, self._waiting = 1, None, self._rows[:0]
        return self.compact(*tensors)

    def result(self, x_adv: Tensor) -> Tensor:
        """The answer of the attack for all B rows, [B, C, H, W], detached: what `keep` says.

        x_adv [R, C, H, W] is the last point of the rows in play; it is met.
        """
        if self._asker.graphs is not None and self._asker.graphs.note:
            self.note(self._asker.graphs.note)
        if self._best is None:
            return x_adv.detach()
        if self._scored is not x_adv:
            self.logits(x_adv.detach())
        return self._best.points

    def _hear(self, x_adv: Tensor, answer: Gradient, *, scored: bool, bound: bool) -> None:
        """Count the passes of an answer at x_adv. If points are remembered, the point is met where `scored`.

        bound: whether the answer is of the bound loss.
        """
        self.forward_rows += len(x_adv) * self._draws
        self.backward_rows += len(x_adv) * self._draws
        if scored and self.began is None:
            self.began = x_adv.detach()
        if self._best is None:
            return
        self.asked_rows += len(x_adv)
        logits = self._joint(answer.logits)
        # A success may have no slope left: the DLR is 1 wherever the true class ranks third.
        hits = self.hit(logits)
        self._flat = self._flat + ((answer.grad.flatten(1) == 0).all(1) & ~hits).sum()
        if scored:
            self._consider(x_adv, logits, hits, answer.loss if bound else None)

    def _shown(self, logits: Tensor) -> Tensor:
        """Logits [N, K] as the attack may see them; see `one_hot`."""
        return one_hot(logits) if self._blind else logits

    def _refuse_slope(self) -> None:
        """Raises RuntimeError for an attack that said it needs decisions, and asks for a gradient."""
        if self._blind:
            raise RuntimeError("an attack that needs decisions asked for a gradient")

    def _check(self) -> None:
        """Let `stop` interrupt the attack."""
        if self._stop is not None:
            self._stop()

    def _joint(self, logits: Tensor, index: Tensor | None = None) -> Tensor:
        """Logits [R, K] of the joint problem, where a guarded model answers with [R, K + 1].

        index: of which rows, int64 [R]; None means those in play.
        """
        return self.criterion.joint(logits, self._index if index is None else index)

    def _forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Logits [R, K] without a gradient, the mean over the draws, in the type of x [R, C, H, W].

        index: as for `_joint`.
        """
        self._check()
        if not len(x):
            return x.new_zeros(0, 2)
        logits = self._asker.logits(x, partial(self._joint, index=index))
        self.forward_rows += len(x) * self._draws  # not before: a pass may find no room
        return logits

    def _loss(self, name: str | None, index: Tensor | None = None) -> RowLoss:
        """The bound loss, or the registered `name`, for rows int64 [R]; index None means those in play."""
        loss = name or self._given
        if isinstance(loss, str):
            if loss not in self._bound:
                self._bound[loss] = self.criterion.bind(loss, self._all_clean)
            loss = self._bound[loss]
        return loss.rows(self._index if index is None else index)

    def _all_clean(self) -> Tensor:
        """Logits [B, K] at all clean points; 0 in rows that left before the first call."""
        if self._clean is None:
            asked = self._forward(self._origin[self._index])
            self._clean = asked.new_zeros(len(self._origin), asked.shape[1])
            self._clean[self._index] = asked
        return self._clean

    def _consider(
        self, x_adv: Tensor, logits: Tensor, hits: Tensor | None = None, loss: Tensor | None = None
    ) -> None:
        """Meet x_adv, if points are remembered.

        hits: bool [R], which rows are a success there; loss: the bound loss [R]. None to compute them.
        """
        if self._best is None:
            return
        if loss is None:
            loss = self._loss(None)(logits)
        if hits is None:
            hits = self.hit(logits)
        if self._places == 1:
            self._leaving |= self._best.consider(self._index, x_adv, hits, loss)
            return
        rows, shape = self._rows[:: self._places], (-1, self._places)
        turns = x_adv.view(*shape, *x_adv.shape[1:]), hits.view(shape), loss.view(shape)
        self._leaving |= self._best.consider_turns(rows, *turns, torch.ones_like(turns[1]))[1]


def one_hot(logits: Tensor) -> Tensor:
    """1 at the label and 0 elsewhere, [N, K], detached; a row with NaN or Inf has no label, and stays."""
    hot = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    return torch.where(torch.isfinite(logits).all(1, keepdim=True), hot, logits.detach())


def _asker(
    model: Classifier,
    criterion: Criterion,
    draws: int,
    many: bool,
    remembers: bool,
    watched: bool,
    note: Callable[[str], None],
) -> Asker:
    """What asks this model; arguments as for `Oracle`. remembers: whether points are remembered."""
    scorer, graphs = model, None
    if isinstance(model, SearchTwin):
        if draws == 1 and criterion.reject is None:
            graphs = model.graphs
        # In training weights move between passes: laying them out each time would cost more than it saves.
        if remembers:
            scorer, model = model.forms(many=many)
    fills = watched and offers(model) == "gradient"  # each row that a black box gets is a query
    return Asker(model, scorer, draws=draws, fills=fills, graphs=graphs, note=note)


def _as_given(logits: Tensor) -> Tensor:
    """The logits of a guarded model with "reject" in a column of its own."""
    return logits
