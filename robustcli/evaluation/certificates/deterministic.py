"""Certificates by bounds of the network, and the cascade that ends with an attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from robustcli.certificates.answer import Answer
from robustcli.core.bounds import METHODS, Method
from robustcli.core.geometry import Ball
from robustcli.core.modes import frozen
from robustcli.core.types import declares_draws, reject_of
from robustcli.errors import UsageError
from robustcli.evaluation.certificates.batch import ATTACK, CLEAN, Batch
from robustcli.evaluation.certificates.bounds import ALPHA, CROWN, IBP, LARGEST, Bounds, Least
from robustcli.evaluation.certificates.falsify import Falsifier, usual_attacks
from robustcli.evaluation.certificates.ladder import Ladder, Proof, place_of
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.sizing import BatchSizer, halving
from robustcli.runtime.device import synchronise

CASCADE: Final = "cascade"
_FIRST = 8  # images of the first pass of a stage, while nobody knows what one costs
_PASS = 10.0  # seconds of a pass: after each of them a stop is heard, and budgets are looked at


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is tried.

    Args:
        alpha_steps: steps of alpha-CROWN, >= 1.
        budget: seconds per image, > 0; None for no limit. An image pays for its share of the passes that it
            is in, and misses a stage that would take more than what is left, by what the stage took before.
        batch_size: most images in a pass; None for as many as memory takes, 256 at the most.
        attacks: of the cascade; None for `usual_attacks`.
        seed: of their draws.
    """

    alpha_steps: int = 20
    budget: float | None = None
    batch_size: int | None = None
    attacks: Sequence[AttackCall] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.alpha_steps < 1:
            raise ValueError(f"alpha_steps must be >= 1, got {self.alpha_steps}")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget must be > 0 seconds, got {self.budget}")


def deterministic(
    model: nn.Module,
    ball: Ball,
    radii: Sequence[float],
    method: str,
    *,
    shape: tuple[int, int, int],
    device: torch.device,
    effort: Effort | None = None,
    stop: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> Deterministic:
    """The certifier of one method: ibp, crown-ibp, crown, alpha-crown, or cascade, which is all of them.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K], normalisation inside.
        ball: the threat.
        radii: what is to be proven, ascending, with that of the threat among them.
        method: its name.
        shape: (C, H, W) of the images.
        device: where the model is.
        effort: how much is tried.
        stop: called before every pass; raises to interrupt.
        say: told of batches that did not fit into memory.

    Raises:
        UsageError: E-BOUNDS for an operation without bounds; a model that draws, or that may reject.
        ValueError: an unknown method, radii that do not ascend or lack the threat's.
    """
    if method != CASCADE and method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join((*METHODS, CASCADE))}")
    if declares_draws(model) or reject_of(model) is not None:
        raise UsageError(
            f"{method} proves a network that answers without draws and without rejecting",
            where="certify.method",
            hint="certify the network itself, or use --method smoothing",
        )
    effort = effort or Effort()
    bounds = Bounds(model, shape, effort.alpha_steps)
    return Deterministic(model, ball, radii, method, bounds, device, effort, stop, say)


class Deterministic:
    """The certifier that `deterministic` makes; its arguments are explained there.

    Answers do not depend on the other images of a batch, but for two: with a budget, seconds decide which
    stages an image meets; float64 sums may end in another last bit.
    """

    def __init__(
        self,
        model: nn.Module,
        ball: Ball,
        radii: Sequence[float],
        method: str,
        bounds: Bounds,
        device: torch.device,
        effort: Effort,
        stop: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self.name, self.norm = method, ball.norm
        self._threat = place_of(radii, ball.eps)
        self._model, self._ball, self._radii, self._bounds = model, ball, tuple(radii), bounds
        self._effort, self._stop, self._say = effort, stop, say
        self._methods = [name for name in METHODS if method in (name, CASCADE)]
        #: What passes are made of: alpha-CROWN begins with CROWN, whose bounds it would otherwise repeat.
        self._passes = [name for name in self._methods if name != CROWN or method == CROWN]
        self._falsifier: Falsifier | None = None
        if method == CASCADE:
            attacks = usual_attacks() if effort.attacks is None else effort.attacks
            self._falsifier = Falsifier(model, ball, attacks, effort.seed, stop)
        self._device = device
        self._sizers: dict[str, BatchSizer] = {
            name: BatchSizer(bounds.fitting(name, effort.batch_size, device), device) for name in self._passes
        }
        self._sizers[ATTACK] = BatchSizer(effort.batch_size or LARGEST, device)
        #: Seconds of one image in the last pass of each stage.
        self._costs: dict[str, float] = {}

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Name of each method -> its parameters, as a certificate states them."""
        return {name: self._parameters(name) for name in self._methods}

    def _parameters(self, method: str) -> dict[str, Any]:
        return {"alpha_steps": self._effort.alpha_steps} if method == ALPHA else {}

    def forecast(self, batch: int) -> int:
        """Bytes of memory that a batch takes at the most, beside the weights."""
        return max(self._bounds.forecast(name, min(batch, self._sizers[name].size)) for name in self._passes)

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor) -> list[Answer]:
        """One answer per image: see `certifier.Certifier`.

        Each method sees the images for which a larger radius is still asked. The attack sees those whose
        threat is not proven.
        """
        with frozen(self._model):
            batch = Batch(x, y, ids, Ladder(self._radii, self._threat, len(x)), self._effort.budget)
            self._look(batch)
            right = [i for i in range(len(x)) if batch.label[i] == int(y[i])]
            for method in self._passes:
                self._climb(method, batch, right)
            if self._falsifier is not None:
                self._attack(batch, right, self._falsifier)
            return [batch.answer(i) for i in range(len(x))]

    def _look(self, batch: Batch) -> None:
        """The class of each clean image, in fp32; -1 where the logits are not finite."""
        everything = range(len(batch.x))
        self._stop()
        with self._timed(CLEAN, batch, everything):
            clean = Judge(self._model, self._ball).clean(batch.x, batch.y)
        wrong_anyway = ~torch.isfinite(clean.logits).all(1)
        batch.label = clean.label.masked_fill(wrong_anyway, -1).tolist()

    def _climb(self, method: Method, batch: Batch, images: Sequence[int]) -> None:
        """Let a method prove what it can."""

        def prove(group: Sequence[int], radius: float) -> list[Proof]:
            return self._proofs(method, batch, group, radius)

        batch.ladder.climb(batch.ladder.open(images), prove)

    def _proofs(self, method: Method, batch: Batch, images: Sequence[int], radius: float) -> list[Proof]:
        """What a method finds at one radius; -inf for an image whose budget does not reach."""
        found = dict.fromkeys(images, Proof(float("-inf"), method))
        ball = Ball(self._ball.norm, radius, self._ball.low, self._ball.high)

        def bound(part: Sequence[int], rows: Tensor) -> None:
            least = self._bounds.least(method, batch.x[rows], batch.y[rows], ball)
            found.update(zip(part, self._named(method, least), strict=True))
            if method != IBP:
                batch.compared(part, {part[k] for k in least.looser})

        self._in_passes(method, batch, images, bound)
        return list(found.values())

    def _named(self, method: Method, least: Least) -> list[Proof]:
        """The margins, each with its method: in the cascade, what needed no other slopes is CROWN's."""
        proofs = [Proof(margin, method) for margin in least.margins.tolist()]
        if method != ALPHA or self.name != CASCADE:
            return proofs
        plain = [Proof(margin, CROWN) for margin in least.unoptimised.tolist()]
        return [one if one.margin > 0 else other for one, other in zip(plain, proofs, strict=True)]

    def _attack(self, batch: Batch, images: Sequence[int], falsifier: Falsifier) -> None:
        """Attack the images whose threat is not proven."""

        def search(part: Sequence[int], rows: Tensor) -> None:
            broken, found, _ = falsifier(batch.x[rows], batch.y[rows], batch.ids[rows])
            named = zip(part, broken.tolist(), found.tolist(), strict=True)
            batch.found.update({i: label for i, fell, label in named if fell})

        self._in_passes(ATTACK, batch, [i for i in images if not batch.ladder.verified(i)], search)

    def _in_passes(
        self,
        name: str,
        batch: Batch,
        images: Sequence[int],
        work: Callable[[Sequence[int], Tensor], None],
    ) -> None:
        """work(places, the same as a tensor) for parts of the images that fit into memory and have budget."""
        waiting, sizer = list(images), self._sizers[name]
        while waiting := batch.with_budget(waiting, self._costs.get(name, 0.0)):
            part = waiting[: self._pass_size(name)]
            self._stop()
            with halving(sizer, len(part)) as attempt, self._timed(name, batch, part):
                work(part, torch.tensor(part, device=batch.x.device))
            if attempt.failed:
                self._say(f"out of memory with {len(part)} images under {name}: going on with {sizer.size}")
            else:
                waiting = waiting[len(part) :]

    def _pass_size(self, name: str) -> int:
        """Images of the next pass of a stage: what fits into memory, and into `_PASS` seconds."""
        cost = self._costs.get(name)
        most = _FIRST if cost is None else int(_PASS / max(cost, 1e-6))
        return max(1, min(self._sizers[name].size, most))

    @contextmanager
    def _timed(self, name: str, batch: Batch, images: Sequence[int]) -> Iterator[None]:
        """Divide the seconds of the block among the images, and note what one costs."""
        began = time.perf_counter()
        try:
            yield
        finally:
            synchronise(self._device)
            share = (time.perf_counter() - began) / max(1, len(images))
            self._costs[name] = share
            for i in images:
                batch.seconds[i] += share
