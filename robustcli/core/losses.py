"""Losses that an attack maximises: logits [B, K] and what the loss is bound to -> one number per row [B].

A registered loss states what it is bound to, in the order of its arguments:
    state=("y",)          labels int64 [B]; also where it states nothing
    state=("clean",)      logits [B, K] at the clean points
    state=("y", "clean")  both
`soft=True`: y may also be label distributions [B, K]. `flat_at_clean=True`: the gradient is 0 at the clean
points.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from robustcli.registry import losses

_TINY = 1e-12


@losses.register("ce", soft=True)
def ce(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(z)_y. Range [0, inf), in nats. Source: Madry et al., ICLR 2018, arXiv:1706.06083.

    y: labels int64 [B] or distributions [B, K].
    """
    if y.is_floating_point():
        return soft_ce(logits, y)
    return F.cross_entropy(logits, y, reduction="none")


@losses.register("margin")
def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y. Range (-inf, inf), in logits; > 0 exactly when the row is misclassified.

    Source: Carlini & Wagner, 2017, arXiv:1608.04644.
    """
    own = logits.gather(1, y[:, None])[:, 0]
    rest = logits.scatter(1, y[:, None], float("-inf"))
    return rest.amax(1) - own


@losses.register("dlr")
def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """-(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12), z_(i) the i-th largest logit.

    It is the margin, free of the shift and scale of the logits. No unit. Range [-1, 0] while z_y is the
    largest logit, else > 0; with 4 classes or more it has no upper bound.

    Raises:
        ValueError: two classes, where there is no z_(3); use `margin`.

    Source: Croce & Hein, ICML 2020, arXiv:2003.01690, eq. 6.
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"the dlr loss needs at least 3 classes, the model has {logits.shape[1]}; use loss: margin"
        )
    top = logits.topk(3, dim=1).values
    score: Tensor = margin(logits, y) / (top[:, 0] - top[:, 2] + _TINY)
    return score


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12), z_(i) the i-th largest logit.

    t is the class `target`, int64 [B], to which the loss leads. No unit; free of the shift and scale of the
    logits; > 0 when the row prefers t to its own class y.

    Raises:
        ValueError: fewer than 4 classes; `difference` works with any number.

    Source: Croce & Hein, ICML 2020, arXiv:2003.01690, eq. 7.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"the targeted dlr loss needs at least 4 classes, the model has {logits.shape[1]}")
    top = logits.topk(4, dim=1).values
    return difference(logits, y, target) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY)


def difference(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y, t the class `target` int64 [B]; in logits, > 0 when the row prefers t to its own class y."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def soft_ce(logits: Tensor, y_soft: Tensor) -> Tensor:
    """-sum_k q_k log softmax(z)_k: cross-entropy with label distributions q = y_soft [B, K].

    Range [0, inf), in nats. Source: Yun et al., ICCV 2019, arXiv:1905.04899.
    """
    return F.cross_entropy(logits, y_soft.to(logits.dtype), reduction="none")


@losses.register("kl", state=("clean",), flat_at_clean=True)
def kl_rows(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """KL(p || q) = sum_k p_k (log p_k - log q_k) per row, p = softmax(clean), q = softmax(z).

    Range [0, inf), in nats. Both arguments get a gradient. The gradient is 0 where z = clean, so an attack
    must not start at the clean point.

    Source: Zhang et al., ICML 2019, arXiv:1901.08573.
    """
    log_p = wide(clean_logits).log_softmax(1)
    return F.kl_div(wide(logits).log_softmax(1), log_p, reduction="none", log_target=True).sum(1)


def nuclear_rows(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """<D_i, (U V^T)_i> for each row i of D = z - clean [B, K], with the singular values D = U S V^T.

    The B answers sum to the nuclear norm ||D||_*, which is the sum of S. U V^T is held constant, so the
    gradient of that sum is U V^T, the gradient of the norm. Singular values within rounding of 0 are left
    out of U V^T, so D = 0 has gradient 0. An answer depends on all rows of the batch.

    Source: Sriramanan et al., NeurIPS 2021, openreview.net/forum?id=kuK2VARZGnI (NuAT).
    """
    d = wide(logits) - wide(clean_logits)
    # A broken loss is reported by the training step, not by svd.
    finite = d.detach().nan_to_num(0.0, 0.0, 0.0)
    u, s, vh = torch.linalg.svd(finite, full_matrices=False)
    keep = s > s.amax() * max(d.shape) * torch.finfo(s.dtype).eps
    polar: Tensor = (u * keep) @ vh
    return (d * polar).sum(1)


@losses.register("nuclear", state=("y", "clean"), soft=True)
def nuclear(
    logits: Tensor, y: Tensor, clean_logits: Tensor, *, weight: Annotated[float, Ge(0)] = 4.0
) -> Tensor:
    """CE(z, y) + weight * <D_i, (U V^T)_i> per row i, D = z - clean = U S V^T.

    The rows sum to B * mean CE + weight * ||D||_*: NuAT's loss of a batch, times B.

    Args:
        logits, clean_logits: [B, K].
        y: labels int64 [B], or label distributions [B, K].
        weight: no unit, >= 0.

    Source: as `nuclear_rows`.
    """
    own: Tensor = ce(logits, y)
    return own + weight * nuclear_rows(logits, clean_logits)


def wide(z: Tensor) -> Tensor:
    """z in float32; a float64 z as it is."""
    return z if z.dtype == torch.float64 else z.float()


@dataclass(frozen=True)
class RowLoss:
    """A loss bound to the rows of one batch.

    Args:
        fn: (logits [R, K], *state) -> loss [R].
        state: what the loss compares with, each [R, ...]: labels, targets or clean logits.
    """

    fn: Callable[..., Tensor]
    state: tuple[Tensor, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        """Loss per row [R]; larger is worse for the defender."""
        return self.fn(logits, *self.state)

    @property
    def formula(self) -> Hashable | None:
        """`fn` as a value that is equal where the same is computed; None for code that may look elsewhere."""
        return _formula(self.fn)

    def rows(self, index: Tensor | slice) -> RowLoss:
        """The same loss bound to some of the rows; index: int64 [R], bool [B] or a slice."""
        return RowLoss(self.fn, tuple(part[index] for part in self.state))


def _formula(fn: Any) -> Hashable | None:
    """A function of a module, or a partial of such functions and numbers, as a value; None for any other."""
    if isinstance(fn, partial):
        parts = [_formula(part) for part in (fn.func, *fn.args, *fn.keywords.values())]
        if None in parts:
            return None
        return tuple(parts), tuple(fn.keywords)
    if isinstance(fn, (int, float)):
        return fn
    if getattr(fn, "__closure__", fn) is None and "<" not in getattr(fn, "__qualname__", "<"):
        return fn  # type: ignore[no-any-return]
    return None


def bind_inner(
    name: str,
    y: Tensor,
    *,
    y_soft: Tensor | None = None,
    clean: Callable[[], Tensor] | None = None,
    **params: float,
) -> RowLoss:
    """The registered loss `name`, bound to what it needs: labels, mixed labels, logits at the clean points.

    Args:
        name: registered loss.
        y: labels int64 [B].
        y_soft: label distributions [B, K]; they take the place of y in losses registered as `soft`, the
            others keep y.
        clean: () -> logits [B, K] of the attacked model at the clean points; called once, for a loss that
            needs them.
        params: keyword-only parameters of the loss (the weight of "nuclear").

    Raises:
        ValueError: unknown name, or a loss that needs clean logits without `clean`.
    """
    entry = losses.get(name)
    needs = entry.facts.state
    if "clean" in needs and clean is None:
        raise ValueError(f"the {name} loss compares with the clean logits, and there are none")
    label = y_soft if y_soft is not None and entry.facts.soft else y
    known = {"y": label}
    if "clean" in needs and clean is not None:
        known["clean"] = clean().detach()
    return RowLoss(partial(entry.fn, **params), tuple(known[part] for part in needs))


@dataclass(frozen=True)
class Criterion:
    """What counts as success: any wrong label, or (targeted) the label `target`, that is not rejected.

    A guarded model answers with K + 1 logits. The last one says "reject". An attack on it must be wrong and
    accepted at once: right and reject are one answer to avoid. `joint` makes it one column. So losses, ranks
    and targets see K classes, and their maximum over wrong classes is compared with the larger of the two.

    Args:
        y: true labels int64 [B].
        target: int64 [B] or None for untargeted.
        reject: the column that says "reject", K of K + 1; None for a model that rejects nothing.

    Source: joint accept/reject verdict: Tramer, ICML 2022, arXiv:2107.11630.
    """

    y: Tensor
    target: Tensor | None = None
    reject: int | None = None

    def rows(self, index: Tensor) -> Criterion:
        """The same criterion for some of the rows; index: int64 [R] or bool [B]."""
        target = None if self.target is None else self.target[index]
        return Criterion(self.y[index], target, self.reject)

    def hit(self, logits: Tensor, rows: Tensor | slice | None = None) -> Tensor:
        """Whether each row of logits [R, K] is a success: bool [R]. A row with NaN or Inf is none.

        rows: which rows of the batch these are, int64 [R] or a slice; None means all.
        """
        label = self.y if self.target is None else self.target
        if rows is not None:
            label = label[rows]
        hits = self.joint(logits, rows).argmax(1) == label
        if self.target is None:
            hits = ~hits
        return hits & torch.isfinite(logits).all(1)

    def joint(self, logits: Tensor, rows: Tensor | slice | None = None) -> Tensor:
        """[R, K]: z_y becomes max(z_y, z_reject), and the column of reject is gone.

        Logits without that column are returned as they are, so the map may be made twice.

        logits: [R, K + 1]; rows: as for `hit`.
        """
        if self.reject is None or logits.shape[1] <= self.reject:
            return logits
        y = self.y if rows is None else self.y[rows]
        safe = torch.maximum(logits.gather(1, y[:, None]), logits[:, self.reject, None])
        return logits[:, : self.reject].scatter(1, y[:, None], safe)

    def excess(self, logits: Tensor) -> Tensor:
        """z_reject - max_k z_k: [R], above 0 where raw logits [R, K + 1] reject; -inf without that column."""
        if self.reject is None:
            return logits.new_full((len(logits),), float("-inf"))
        return logits[:, self.reject] - logits[:, : self.reject].amax(1)

    def bind(self, name: str, clean: Callable[[], Tensor] | None = None) -> RowLoss:
        """What to ascend: the registered loss(z, y); with a target -loss(z, target).

        Args:
            name: registered loss.
            clean: () -> logits [B, K] at the clean points, as in `bind_inner`.

        Raises:
            ValueError: an unknown name; no `clean` for a loss that compares with clean logits; or such a loss
                with a target, for it leads away from the clean point and not to a class.
        """
        if self.target is None:
            return bind_inner(name, self.y, clean=clean)
        entry = losses.get(name)
        if "clean" in entry.facts.state:
            raise ValueError(f"the {name} loss has no targeted form; use loss: ce")
        return RowLoss(partial(_negative, entry.fn), (self.target,))


def _negative(fn: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    """-fn(z, target) [B]: what leads to a class where fn leads away from it."""
    return -fn(logits, target)


def mean_ce(logits: Tensor, y: Tensor, y_soft: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """mean_i -sum_k q_ik log softmax(z_i)_k with q = (1 - s) * label + s / K: a scalar, in nats.

    It is the outer loss of training.

    Args:
        logits: [B, K].
        y: labels int64 [B].
        y_soft: label distributions [B, K] that take the place of y, or None.
        smoothing: s in [0, 1).

    Raises:
        ValueError: smoothing outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {smoothing}")
    z = wide(logits)
    if y_soft is not None:
        y = y_soft.to(z.dtype)
    return F.cross_entropy(z, y, label_smoothing=smoothing)
