"""All that an attack may ask of a model, and all that must be remembered of its search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, RowLoss
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Classifier

#: (row numbers int64 [R], candidates [R, C, H, W]) -> bool [R]: confirmed by the original fp32 model and inside the ball.
Watch = Callable[[Tensor, Tensor], Tensor]
Keep = Literal["last", "best", "closest"]


def bucket(rows: int) -> int:
    """The padded batch size for `rows` rows: the next multiple of a sixteenth of the power of two above them (4 at least), 8 or more.

    Survivors shrink one by one; without buckets each size would get kernels of its own (oneDNN keeps about a thousand,
    hundreds of MiB), and a row's rounding would depend on how many others are left.
    """
    grain = max(4, (1 << max(rows, 1).bit_length()) >> 4)
    return max(8, -(-rows // grain) * grain)


def padded(x: Tensor) -> Tensor:
    """x [R, ...] with its last row repeated up to `bucket(R)` rows; x itself when it has that size or no row."""
    missing = bucket(len(x)) - len(x)
    return x if not missing or not len(x) else torch.cat((x, x[-1:].expand(missing, *x.shape[1:])))


class Gradient(NamedTuple):
    """Answer of `Oracle.gradient`: loss [R], logits [R, K], grad [R, C, H, W] of the summed loss."""

    loss: Tensor
    logits: Tensor
    grad: Tensor


class Oracle:
    """Answers an attack's questions about the rows still in play.

    Args:
        model: pixels -> logits, already frozen by the caller; may be a faster twin, for the watch has the last word.
        x: clean pixels [B, C, H, W] in [0, 1].
        criterion: what counts as success; holds the labels.
        loss: what to ascend: a registered name, or a RowLoss bound to all rows (its state leaves with the rows).
        rng: one stream per row.
        keep: "last" returns the attack's final point (training: K steps cost K forwards and backwards);
            "best" the worst point met per row, ordered by (success, loss), the clean point included (one more forward);
            "closest" the successful point with the smallest `ball.distance`, or the clean point (minimal-norm attacks).
        watch: confirms candidates that succeed here; confirmed rows are kept and leave at the next `compact`.
        stop: called before every model pass; raises to interrupt the attack.
        clean_logits: [B, K] of this model if already known, to save a forward when keep is not "last".
        ball: measures distances; needed by keep="closest", where a row leaves only at a point inside it.
        draws: model passes averaged per answer: expectation over transformation for randomised models (EOT, Athalye et
            al., ICML 2018, arXiv:1802.00420). Gradients average the gradient of the loss, logits the logits.
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
    ) -> None:
        if keep == "closest" and ball is None:
            raise ValueError('keep="closest" needs a ball')
        if draws < 1:
            raise ValueError(f"draws must be >= 1, got {draws}")
        self._model, self._watch, self._stop, self._draws = model, watch, stop, draws
        self._origin, self._ball = x, ball if keep == "closest" else None
        self.criterion, self._given, self.rng = criterion, loss, rng
        self.notes: list[str] = []
        self._clean = clean_logits
        self._bound: dict[str, RowLoss] = {}
        self._rows = torch.arange(len(x), device=x.device)
        self._fallen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._compacted = self._leaving = False
        self._tracking = keep != "last" or watch is not None
        # In training weights move between passes: laying them out each time would cost more than it saves.
        self._scorer: Classifier = model.scores if self._tracking and isinstance(model, SearchTwin) else model
        self._scored: Tensor | None = None
        self.forward_rows = self.backward_rows = 0
        self.zero_gradient_rows = self.asked_rows = 0
        if self._tracking:
            self._start_tracking(x, clean_logits)

    def _start_tracking(self, x: Tensor, clean_logits: Tensor | None) -> None:
        self._best = x.clone()
        self._best_hit = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._best_loss = torch.full((len(x),), float("-inf"), device=x.device)
        if clean_logits is None:
            clean_logits = self._forward(x)
            if x is self._origin:
                self._clean = clean_logits
        self._consider(x, clean_logits, self._loss(None)(clean_logits))

    @property
    def alive(self) -> int:
        """Rows still in play."""
        return len(self._rows)

    @property
    def y(self) -> Tensor:
        """True labels int64 [R] of the rows in play."""
        return self.criterion.y[self._rows] if self._compacted else self.criterion.y

    @property
    def target(self) -> Tensor | None:
        """Labels to reach int64 [R] of the rows in play, or None for an untargeted search."""
        target = self.criterion.target
        return target[self._rows] if target is not None and self._compacted else target

    def clean(self) -> Tensor:
        """Logits [R, K] of the rows in play at their clean points; at most one model pass for the whole attack."""
        if self._clean is None:
            self._clean = self._forward(self._origin if not self._compacted else self._origin[self._rows])
            if self._compacted:  # rows that have left are never asked for again
                full = self._clean.new_zeros(len(self._origin), self._clean.shape[1])
                full[self._rows] = self._clean
                self._clean = full
        return self._clean[self._rows] if self._compacted else self._clean

    def hit(self, logits: Tensor) -> Tensor:
        """bool [R]: which rows in play these logits [R, K] would make a success."""
        return self.criterion.hit(logits, self._rows if self._compacted else None)

    def note(self, text: str) -> None:
        """One line for the user (a loss that K classes do not allow …), said once."""
        if text not in self.notes:
            self.notes.append(text)

    def logits(self, x_adv: Tensor) -> Tensor:
        """[R, K], no gradient; scores the point when tracking."""
        logits = self._forward(x_adv)
        if self._tracking and len(x_adv):
            self._consider(x_adv, logits, self._loss(None)(logits))
        return logits

    def gradient(
        self, x_adv: Tensor, loss: str | Callable[[Tensor], Tensor] | None = None, *, scored: bool = True
    ) -> Gradient:
        """Loss, logits and input gradient at x_adv; non-finite gradient entries become 0.

        `loss` overrides the bound one: a registered name, or any differentiable map logits [R, K] -> [R] (a `RowLoss`).
        scored=False: the point is no candidate (it lies outside the ball on purpose).
        """
        if not len(x_adv):
            return Gradient(x_adv.new_zeros(0), x_adv.new_zeros(0, 2), x_adv)
        self._check()
        rows = len(x_adv)
        point = (x_adv.detach() if self._watch is None else padded(x_adv.detach())).requires_grad_(True)
        ascend = loss if callable(loss) else self._loss(loss)
        answers = [self._differentiate(point, rows, ascend) for _ in range(self._draws)]
        values, logits, grad = (
            answers[0]
            if self._draws == 1
            else (torch.stack(parts).mean(0) for parts in zip(*answers, strict=True))
        )
        grad = grad.nan_to_num(0.0, 0.0, 0.0)  # not in place: a gradient may be an expanded tensor
        if self._tracking:
            self.asked_rows += len(x_adv)
            self.zero_gradient_rows += int((grad.flatten(1) == 0).all(1).sum())
        if self._tracking and scored:
            self._consider(x_adv.detach(), logits, values if loss is None else self._loss(None)(logits))
        return Gradient(values, logits, grad)

    def _differentiate(self, point: Tensor, rows: int, ascend: Callable[[Tensor], Tensor]) -> Gradient:
        """One forward and one backward pass over the first `rows` rows of `point`."""
        try:
            with torch.enable_grad():
                logits = self._float(point)[:rows]
                values = ascend(logits)
                (grad,) = (
                    torch.autograd.grad(values.sum(), point, allow_unused=True)
                    if values.requires_grad
                    else (None,)
                )
        except RuntimeError as error:
            if "derivative" not in str(
                error
            ):  # floor division, heaviside: no slope is a zero slope, and the evaluation says so
                raise
            logits, grad = self._float(point.detach())[:rows], None
            values = ascend(logits)
            self.note(f"the model has an operation without a derivative: {str(error).splitlines()[0][:120]}")
        self.forward_rows += rows
        self.backward_rows += rows
        return Gradient(
            values.detach(), logits.detach(), torch.zeros_like(point)[:rows] if grad is None else grad[:rows]
        )

    def ask(self, x_adv: Tensor) -> Tensor:
        """Logits [R, K] with their graph, counted but not tracked: the model as an attack of another library sees it."""
        self._check()
        self.forward_rows += len(x_adv)
        return self._model(x_adv)

    def score(self, x_adv: Tensor) -> None:
        """Remember the best point from here on (restarts keep the worst), beginning with this one."""
        if not self._tracking:
            self._tracking = True
            self._start_tracking(x_adv.detach(), None)
        else:
            self.logits(x_adv.detach())
        self._scored = x_adv

    def compact(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors without the rows that have fallen; the same objects when none has."""
        if not self._leaving:
            return tensors
        self._leaving = False
        stay = ~self._fallen[self._rows]
        self._rows = self._rows[stay]
        self.rng = self.rng.rows(stay)
        self._compacted = True
        return tuple(t[stay] for t in tensors)

    def result(self, x_adv: Tensor) -> Tensor:
        """All rows again [B, C, H, W], detached: the last point, or the best one met (x_adv counts as met)."""
        if not self._tracking:
            return x_adv.detach()
        if self._scored is not x_adv:
            self.logits(x_adv.detach())
        return self._best

    def _check(self) -> None:
        if self._stop is not None:
            self._stop()

    def _float(self, x: Tensor) -> Tensor:
        """Logits in the type of the pixels, whatever the model answers in."""
        return self._model(x).to(x.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        self._check()
        self.forward_rows += len(x) * self._draws
        with torch.no_grad():
            if not len(x):
                return x.new_zeros(0, 2)
            point = x if self._watch is None else padded(x)
            logits = self._scorer(point).to(x.dtype)[: len(x)]
            for _ in range(self._draws - 1):
                logits = logits + self._scorer(point).to(x.dtype)[: len(x)]
            return logits if self._draws == 1 else logits / self._draws

    def _loss(self, name: str | None) -> RowLoss:
        """The loss for the rows in play; per-row state is sliced along with them."""
        given = self._given if name is None else name
        if isinstance(given, str) and given not in self._bound:
            self._bound[given] = self.criterion.bind(given, self._clean_rows)
        bound = self._bound[given] if isinstance(given, str) else given
        return bound.rows(self._rows) if self._compacted else bound

    def _clean_rows(self) -> Tensor:
        """Logits [B, K] at all clean points; those of rows that left before anybody asked are 0."""
        self.clean()
        assert self._clean is not None
        return self._clean

    def _consider(self, x_adv: Tensor, logits: Tensor, loss: Tensor) -> None:
        """Keep x_adv where it beats the best so far by (success, loss) or (success, -distance); let the watch confirm successes."""
        rows = self._rows
        hit = self.hit(logits)
        best_hit, best_loss, fallen = self._best_hit, self._best_loss, self._fallen
        if self._compacted:
            best_hit, best_loss, fallen = best_hit[rows], best_loss[rows], fallen[rows]
        confirmable = hit
        if self._ball is not None:
            origin = self._origin[rows] if self._compacted else self._origin
            loss = -self._ball.distance(origin, x_adv).to(loss.device, loss.dtype)
            confirmable = hit & self._ball.contains(origin, x_adv)
            better = hit & (~best_hit | (loss > best_loss)) & ~fallen
        else:
            better = ((hit & ~best_hit) | ((hit == best_hit) & (loss > best_loss))) & ~fallen
        better &= torch.isfinite(loss)
        if self._watch is not None and bool(confirmable.any()):
            open_hits = (confirmable & ~fallen).nonzero()[:, 0]
            confirmed = self._watch(rows[open_hits], x_adv[open_hits]) if len(open_hits) else hit.new_zeros(0)
            won = open_hits[confirmed]
            better[won] = True
            self._fallen[rows[won]] = True
            self._leaving |= bool(len(won))
        at = better.nonzero()[:, 0]
        if len(at):  # most tries change no row's best
            moved = rows[at]
            self._best[moved] = x_adv[at]
            self._best_hit[moved], self._best_loss[moved] = hit[at], loss[at].to(self._best_loss.dtype)
