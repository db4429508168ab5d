"""Randomised smoothing as a method of proof, and the smoothed classifier as something to attack.

The certificate is about the smoothed classifier: the class that the base model names most often under noise.
So are the attacks beside it: they see a randomised model that adds the noise at each pass, with gradients
averaged over draws. A point counts as a break only where PREDICT, on the draws of its own, names another
class with confidence 1 - alpha. Where it abstains there, nothing is broken.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustcli.certificates.answer import ABSTAIN, Answer, Status
from robustcli.certificates.smoothing import Smoothed, Smoothing, rows_for
from robustcli.core.geometry import Ball
from robustcli.core.modes import frozen
from robustcli.evaluation.answers import NONE
from robustcli.evaluation.certificates.memory import forward_bytes
from robustcli.evaluation.judge import exact_fp32

_LOOKS = 1000  # draws of the closer look; the original tables predict with as many or more


class NoisyModel(nn.Module):
    """One draw of a smoothed classifier: x -> logits of the base model at x + noise.

    Each pass draws anew, from a generator of its own that `reset` sets: the same questions after the same
    reset get the same answers, in every process.
    """

    randomised = True

    def __init__(self, base: nn.Module, plan: Smoothing) -> None:
        super().__init__()
        self.base, self._plan = base, plan
        self._key, self._generator = "", torch.Generator()

    def reset(self, key: str) -> None:
        """Begin the draws of this key."""
        self._key, self._generator = key, self._begun(key, self._generator.device)

    def forward(self, x: Tensor) -> Tensor:
        if self._generator.device.type != x.device.type:
            self._generator = self._begun(self._key, x.device)
        plan = self._plan
        noise = plan.family.draw(torch.zeros_like(x[0]), len(x), plan.sigma, self._generator)
        logits: Tensor = self.base(x + noise)
        return logits

    def _begun(self, key: str, device: torch.device) -> torch.Generator:
        word = hashlib.blake2b(f"attack\x1f{self._plan.seed}\x1f{key}".encode(), digest_size=4).digest()
        generator = torch.Generator(device)
        generator.manual_seed(int.from_bytes(word, "little"))
        return generator


class SmoothedCertifier:
    """CERTIFY of one smoothed classifier; see `certificates.smoothing`.

    Args:
        model: the base model, pixels to logits.
        classes: K.
        ball: the threat.
        plan: noise, numbers of draws, alpha.
        shape: of an image, [C, H, W]. device: of the model.
        stop: called before each call of the model; raises to interrupt.
        progress: told how many samples' worth of draws were made.
    """

    name = "smoothing"

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        ball: Ball,
        plan: Smoothing,
        *,
        shape: tuple[int, ...],
        device: torch.device,
        stop: Callable[[], None] = lambda: None,
        progress: Callable[[float], None] = lambda samples: None,
    ) -> None:
        self._model, self._ball, self.plan, self._shape = model, ball, plan, shape
        self._rows = rows_for(device)
        self._smoothed = Smoothed(model, classes, plan, rows=self._rows)
        self._stop, self._progress = stop, progress

    @property
    def norm(self) -> str:
        """That of the noise."""
        return self.plan.family.norm

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor) -> list[Answer]:
        """As of `Certifier`; sample by sample, since all draws of one fill a batch."""
        with frozen(self._model), exact_fp32():
            return [self._answer(x[k : k + 1], int(y[k]), ids[k : k + 1]) for k in range(len(x))]

    def _answer(self, x: Tensor, y: int, ids: Tensor) -> Answer:
        """x: pixels [1, C, H, W]; y: its label; ids: int64 [1]."""
        began = time.perf_counter()

        def drawn(draws: int) -> None:
            self._progress(draws / self.plan.n)

        found = self._smoothed.certify(x, ids, stop=self._stop, progress=drawn)
        label, radius = int(found.label[0]), float(found.radius[0])
        return Answer(
            label=label,
            radius=radius,
            status=self._status(label, radius, y),
            stage=self.name,
            seconds=time.perf_counter() - began,
            evidence={
                "counts": found.counts[0].tolist(),
                "draws": int(found.draws[0]),
                "chosen": int(found.chosen[0]),
                "lower": float(found.lower[0]),
            },
        )

    def _status(self, label: int, radius: float, y: int) -> Status:
        if label == ABSTAIN:
            return "abstain"
        if label != y:
            return "falsified"
        return "verified" if radius >= self._ball.eps else "unknown"

    def confirm(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """int64 [R]: the class that PREDICT names at points x [R, C, H, W]; NONE where it is y, or none."""
        with frozen(self._model), exact_fp32():
            named = self._smoothed.predict(x, ids, _LOOKS, self.plan.alpha)
        return named.where((named != y.cpu()) & (named != ABSTAIN), NONE)

    def forecast(self, batch: int) -> int:
        """As of `Certifier`: the draws of one call, whatever the batch and however many draws in all."""
        return forward_bytes(self._model, self._shape, self._rows)
