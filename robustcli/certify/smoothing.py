"""Randomised smoothing: the most frequent class under noise, and the radius in which it cannot change.

Source: Cohen et al., ICML 2019, arXiv:1902.02918, PREDICT and CERTIFY.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.certify.answer import ABSTAIN
from robustcli.certify.binomial import lower_bound, tie_chance
from robustcli.certify.draws import BLOCK, CHOICE, generator_of
from robustcli.certify.noise import NOISES, Noise
from robustcli.certify.sequential import SHARE, hopeless, looks, sure
from robustcli.core.forward import forward_only
from robustcli.core.types import Classifier
from robustcli.errors import NumericsError, UsageError

# Rows of one call: on a CPU the activations of 64 small images stay in its cache.
_ROWS = {"cpu": BLOCK}
_ROWS_ELSEWHERE = 16 * BLOCK


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """How a smoothed classifier is sampled.

    Args:
        sigma: standard deviation of the noise, > 0, in the unit of the noise: of pixel values in [0, 1], or
            pixels of displacement for translations.
        n0: draws that choose the class, >= 1.
        n: draws that estimate its chance, >= n0.
        alpha: chance that the answer for a sample is false, in (0, 1).
        noise: a name in `certify.noise.NOISES`.
        stop: give up samples that are surely abstained (`certify.sequential`); all other answers stay.
        enough: a radius beyond which none is asked for: a sample that proves it is sampled no further.
            None: every radius is that of n draws.
        seed: of the draws.

    Raises:
        UsageError: a value out of range.
    """

    sigma: float
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    noise: str = "gaussian"
    stop: bool = True
    enough: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise _wrong("noise", self.noise, f"one of {', '.join(NOISES)}")
        if not 0 < self.sigma < float("inf"):
            raise _wrong("sigma", self.sigma, "a finite number > 0")
        if not 0 < self.alpha < 1:
            raise _wrong("alpha", self.alpha, "a number in (0, 1), such as 0.001")
        if not 1 <= self.n0 < BLOCK * CHOICE:
            raise _wrong("n0", self.n0, "an integer >= 1")
        if not self.n0 <= self.n < BLOCK * CHOICE:
            raise _wrong("n", self.n, f"an integer >= n0 = {self.n0}")
        if self.enough is not None and not 0 < self.enough < float("inf"):
            raise _wrong("enough", self.enough, "a radius > 0, or null")

    @property
    def family(self) -> Noise:
        """The noise itself."""
        return NOISES[self.noise]

    @property
    def level(self) -> float:
        """The alpha of samples that are not stopped: what the looks for sure samples leave of it."""
        return self.alpha if self.enough is None else (1 - SHARE) * self.alpha

    def radius(self, lower: float) -> float:
        """The radius that a lower bound of the chance proves; 0 up to 1/2."""
        return self.family.radius(lower, self.sigma) if lower > 0.5 else 0.0


def _wrong(name: str, value: object, wanted: str) -> UsageError:
    return UsageError(f"{name} is {value}", where=f"smoothing.{name}", hint=f"give {wanted}")


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
        rows: images of one call, a multiple of `BLOCK`; None: 64 on a CPU, 1024 elsewhere. Another number has
            the same draws, and may round logits differently.
    """

    def __init__(
        self, classify: Classifier, num_classes: int, plan: Smoothing, *, rows: int | None = None
    ) -> None:
        if rows is not None and (rows < BLOCK or rows % BLOCK):
            raise ValueError(f"rows must be a multiple of {BLOCK}, got {rows}")
        self._classify, self._num_classes, self.plan, self._rows = classify, num_classes, plan, rows
        self._fast: Classifier | None = None if isinstance(classify, nn.Module) else classify

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
        """PREDICT: int64 [B], the class that n draws favour; `ABSTAIN` unless a tie has chance <= alpha."""
        counts = self.counts(x, ids, 0, n)
        top = counts.topk(2, dim=1)
        ties = torch.tensor([tie_chance(first, second) for first, second in top.values.tolist()])
        return torch.where(ties <= alpha, top.indices[:, 0].cpu(), ABSTAIN)

    @torch.no_grad()
    def counts(self, x: Tensor, ids: Tensor, first: int, last: int) -> Tensor:
        """int64 [B, K]: hits of each class among the draws first, first + 1, up to last - 1 that estimate."""
        rows = []
        for image, sample in zip(x, ids.tolist(), strict=True):
            total = torch.zeros(self._num_classes, dtype=torch.int64)
            for start, labels in self._calls(image, sample, 0, first, last):
                total += self._tally(labels[max(first - start, 0) : last - start])
            rows.append(total)
        return torch.stack(rows)

    def _certified(
        self, image: Tensor, sample: int, stop: Callable[[], None], progress: Callable[[int], None]
    ) -> tuple[int, int, int, float, float, Tensor]:
        """(label, chosen, draws, lower, radius, counts) of one sample."""
        plan = self.plan
        votes = torch.zeros(self._num_classes, dtype=torch.int64)
        for start, labels in self._calls(image, sample, CHOICE, 0, plan.n0, stop):
            votes += self._tally(labels[: plan.n0 - start])
        chosen = int(votes.argmax())
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
        plan, counts = self.plan, torch.zeros(self._num_classes, dtype=torch.int64)
        ends = [*looks(plan.n), plan.n]
        for start, labels in self._calls(image, sample, 0, 0, plan.n, stop):
            done = start
            while ends and ends[0] <= start + len(labels):
                end = ends.pop(0)
                counts += self._tally(labels[done - start : end - start])
                done = end
                lower = self._verdict(int(counts[chosen]), end)
                if lower is not None:
                    progress(plan.n - start)
                    return counts, end, lower
            counts += self._tally(labels[done - start :])
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

    def _calls(
        self,
        image: Tensor,
        sample: int,
        base: int,
        first: int,
        last: int,
        stop: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, Tensor]]:
        """(number of the first draw, labels) of each call that holds draws first to last - 1.

        base: the block at which the draws of this purpose begin.
        """
        rows = self._rows or _ROWS.get(image.device.type, _ROWS_ELSEWHERE)
        for start in range(first - first % rows, last, rows):
            stop()
            blocks = range(base + start // BLOCK, base + (start + rows) // BLOCK)
            yield start, self._labels(image, sample, blocks)

    def _labels(self, image: Tensor, sample: int, blocks: range) -> Tensor:
        """The classes of some blocks of draws, int64 on the CPU."""
        plan = self.plan
        noisy = [
            plan.family.draw(image, BLOCK, plan.sigma, generator_of(plan.seed, sample, block, image.device))
            for block in blocks
        ]
        x = noisy[0] if len(noisy) == 1 else torch.cat(noisy)
        if self._fast is None:
            assert isinstance(self._classify, nn.Module)
            self._fast = forward_only(self._classify, x)
        logits = self._fast(x)
        if not bool(logits.isfinite().all()):
            raise NumericsError(
                "the classifier has logits that are not finite",
                where=f"sample {sample} under {plan.noise} noise of sigma {plan.sigma:g}",
                hint="evaluate it in fp32, or look at its weights",
            )
        return logits.argmax(1).cpu()

    def _tally(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels, minlength=self._num_classes)
