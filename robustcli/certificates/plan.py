"""How a smoothed classifier is sampled."""

from __future__ import annotations

from dataclasses import dataclass

from robustcli.certificates.draws import BLOCK, CHOICE, LOOK
from robustcli.certificates.noise import NOISES, Noise
from robustcli.certificates.sequential import SHARE
from robustcli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """How a smoothed classifier is sampled.

    Args:
        sigma: standard deviation of the noise, > 0, in the unit of the noise: of pixel values in [0, 1], or
            pixels of displacement for translations.
        n0: draws that choose the class, >= 1.
        n: draws that estimate its chance, >= n0.
        alpha: chance that the answer for a sample is false, in (0, 1).
        noise: a name in `certificates.noise.NOISES`.
        stop: give up samples that are surely abstained (`certificates.sequential`); all other answers stay.
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
        if not 1 <= self.n0 < BLOCK * (LOOK - CHOICE):
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
