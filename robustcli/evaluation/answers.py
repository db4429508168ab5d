"""What the judge heard from the model, sample by sample: on the clean image, and where an attack broke it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NONE = -1  # stands for a class where there is no answer
REJECT = "reject"  # the answer K of a guarded model with K classes
_DECIMALS = 4  # batches of other sizes move a confidence by less


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers on n samples, as CPU tensors.

    Args:
        clean: int64 [n], the class of the clean image; `NONE` where its logits are not finite.
        confidence: float64 [n], the softmax probability of that class, rounded to 1e-4; 0 without a class,
            and of a model that answers with labels alone.
        attacked: int64 [n], the class at the point that broke the sample; `NONE` where none did.
        files: path of each image below the root of its data set; None for data that lie in arrays.
    """

    clean: Tensor
    confidence: Tensor
    attacked: Tensor
    files: tuple[str | None, ...]

    @classmethod
    def unknown(cls, files: Sequence[str | None]) -> Answers:
        """No answer yet, for one sample of each file."""
        none = torch.full((len(files),), NONE)
        return cls(none, torch.zeros(len(files), dtype=torch.float64), none.clone(), tuple(files))

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """The answers of all parts, one after the other."""
        return cls(
            torch.cat([part.clean for part in parts]),
            torch.cat([part.confidence for part in parts]),
            torch.cat([part.attacked for part in parts]),
            sum((part.files for part in parts), ()),
        )

    def rows(self, places: Tensor) -> Answers:
        """The answers at these places, int64 [m]."""
        files = tuple(self.files[k] for k in places.tolist())
        return Answers(self.clean[places], self.confidence[places], self.attacked[places], files)

    def fill(self, places: Tensor, clean: Tensor, confidence: Tensor, attacked: Tensor) -> None:
        """Write the answers of m samples into this object.

        Args:
            places: int64 [m].
            clean, attacked: int64 [m].
            confidence: float [m], NaN where the logits are not finite.
        """
        known = confidence.isfinite()
        self.clean[places] = torch.where(known, clean, NONE)
        self.confidence[places] = torch.round(confidence.double(), decimals=_DECIMALS).nan_to_num(0.0)
        self.attacked[places] = attacked

    def broken(self, places: Tensor, attacked: Tensor) -> Answers:
        """The answers with those of further broken samples: places, attacked int64 [m]."""
        changed = self.attacked.clone()
        changed[places] = attacked
        return replace(self, attacked=changed)
