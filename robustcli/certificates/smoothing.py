"""Randomised smoothing: the most frequent class under noise, and the radius in which it cannot change.

Source: Cohen et al., ICML 2019, arXiv:1902.02918, PREDICT and CERTIFY.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.certificates.answer import ABSTAIN
from robustcli.certificates.binomial import lower_bound, tie_chance
from robustcli.certificates.draws import CHOICE, LOOK
from robustcli.certificates.plan import Smoothing as Smoothing
from robustcli.certificates.sampler import Sampler
from robustcli.certificates.sampler import rows_for as rows_for
from robustcli.certificates.sequential import hopeless, looks, sure
from robustcli.core.types import Classifier


@dataclass(frozen=True)
class Smoothings:
    """What smoothing says of B samples.

    Args:
        label: int64 [B], the class, or `ABSTAIN`.
        radius: float64 [B], in the norm and unit of the noise; 0 where abstained.
        lower: float64 [B], lower bound of the chance of `chosen`; 0 where sampling was given up.
        counts: int64 [B, K], hits of each class among the draws that estimate.
        draws: int64 [B], how many these were: n, or fewer for a sample that was stopped.
        chosen: int64 [B], the class that the first n0 draws chose.
    """

    label: Tensor
    radius: Tensor
    lower: Tensor
    counts: Tensor
    draws: Tensor
    chosen: Tensor


class Smoothed:
    """A smoothed classifier: what a base classifier says most often under noise.

    What is certified is the smoothed form of exactly `classify`, in the precision it has, on its device. A
    module is asked in its `core.forward.forward_only` form: a copy, made at the first call, that computes the
    same function up to fp32 rounding.

    The draws of a sample, and its counts, depend on nothing but the seed, its id and `rows`: not on other
    samples, their order, or where an earlier process ended. Each call has `rows` images of one sample, and
    draw number i stands in the same place of the same call. Only that many images are in memory.

    Args:
        classify: pixels [R, C, H, W] -> logits [R, K], a module in eval mode or any function; asked about
            unclipped noisy images, without a gradient.
        num_classes: K.
        plan: how to sample.
        rows: images of one call, a multiple of `BLOCK`; None: `rows_for` the device. Another number has
            the same draws, and may round logits differently.
    """

    def __init__(
        self, classify: Classifier, num_classes: int, plan: Smoothing, *, rows: int | None = None
    ) -> None:
        self.plan, self._sampler = plan, Sampler(classify, num_classes, plan, rows)

    @torch.no_grad()
    def certify(
        self,
        x: Tensor,
        ids: Tensor,
        *,
        stop: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Smoothings:
        """CERTIFY: choose a class with n0 draws, bound its chance with n others.

        Args:
            x: pixels [B, C, H, W] in [0, 1].
            ids: int64 [B], index of each sample in the stored split.
            stop: asked before each call of the classifier; it raises where the work shall end.
            progress: told the number of draws that a call has done.

        Raises:
            NumericsError: logits that are not finite.
        """
        rows = [
            self._certified(image, sample, stop, progress)
            for image, sample in zip(x, ids.tolist(), strict=True)
        ]
        label, chosen, draws, lower, radius, counts = zip(*rows, strict=True)
        return Smoothings(
            torch.tensor(label),
            torch.tensor(radius, dtype=torch.float64),
            torch.tensor(lower, dtype=torch.float64),
            torch.stack(counts),
            torch.tensor(draws),
            torch.tensor(chosen),
        )

    @torch.no_grad()
    def predict(self, x: Tensor, ids: Tensor, n: int, alpha: float) -> Tensor:
        """PREDICT: int64 [B], the class that n draws favour; `ABSTAIN` unless a tie has chance <= alpha.

        The draws are others than those of `certify`.
        """
        counts = self._counts(x, ids, LOOK, 0, n)
        top = counts.topk(2, dim=1)
        ties = torch.tensor([tie_chance(first, second) for first, second in top.values.tolist()])
        return torch.where(ties <= alpha, top.indices[:, 0].cpu(), ABSTAIN)

    @torch.no_grad()
    def counts(self, x: Tensor, ids: Tensor, first: int, last: int) -> Tensor:
        """int64 [B, K]: hits of each class among the draws first, first + 1, up to last - 1 that estimate."""
        return self._counts(x, ids, 0, first, last)

    def _counts(self, x: Tensor, ids: Tensor, base: int, first: int, last: int) -> Tensor:
        """`counts` of the draws that begin at block `base`."""
        rows = []
        for image, sample in zip(x, ids.tolist(), strict=True):
            total = self._sampler.none(image)
            for start, labels in self._sampler.calls(image, sample, base, first, last):
                total += self._sampler.tally(labels[max(first - start, 0) : last - start])
            rows.append(self._sampler.checked(total, sample))
        return torch.stack(rows)

    def _certified(
        self, image: Tensor, sample: int, stop: Callable[[], None], progress: Callable[[int], None]
    ) -> tuple[int, int, int, float, float, Tensor]:
        """(label, chosen, draws, lower, radius, counts) of one sample."""
        plan = self.plan
        votes = self._sampler.none(image)
        for start, labels in self._sampler.calls(image, sample, CHOICE, 0, plan.n0, stop):
            votes += self._sampler.tally(labels[: plan.n0 - start])
        chosen = int(self._sampler.checked(votes, sample).argmax())
        counts, draws, lower = self._estimate(image, sample, chosen, stop, progress)
        if lower < 0.5:
            return ABSTAIN, chosen, draws, lower, 0.0, counts
        return chosen, chosen, draws, lower, plan.radius(lower), counts

    def _estimate(
        self,
        image: Tensor,
        sample: int,
        chosen: int,
        stop: Callable[[], None],
        progress: Callable[[int], None],
    ) -> tuple[Tensor, int, float]:
        """(counts, draws, lower bound of the chance of `chosen`), looking on the way whether to go on."""
        plan, counts = self.plan, self._sampler.none(image)
        ends = [*looks(plan.n), plan.n]
        for start, labels in self._sampler.calls(image, sample, 0, 0, plan.n, stop):
            done = start
            while ends and ends[0] <= start + len(labels):
                end = ends.pop(0)
                counts += self._sampler.tally(labels[done - start : end - start])
                done = end
                total = self._sampler.checked(counts, sample)
                lower = self._verdict(int(total[chosen]), end)
                if lower is not None:
                    progress(plan.n - start)
                    return total, end, lower
            counts += self._sampler.tally(labels[done - start :])
            progress(len(labels))
        raise AssertionError("the last look has a verdict")

    def _verdict(self, k: int, draws: int) -> float | None:
        """The bound with which sampling ends after k hits in `draws` draws; None where it goes on."""
        plan = self.plan
        if draws == plan.n:
            return float(lower_bound(k, draws, plan.level))
        if plan.stop and hopeless(k, draws):
            return 0.0
        if plan.enough is not None:
            lower = sure(k, draws, plan.alpha)
            if lower > 0.5 and plan.radius(lower) >= plan.enough:
                return lower
        return None
