"""Training against the union of several balls: in which of them a step attacks, and on what it descends.

Source: max and average: Tramer & Boneh, NeurIPS 2019, arXiv:1904.13000. Random: one threat for each batch,
    Madaan et al., ICML 2021, arXiv:2006.12135; Croce & Hein, ICML 2022, arXiv:2105.12508, draw so, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from robustcli.core.random import RowRandom
from robustcli.training.settings import Strength, Threat

Rule = Literal["max", "average", "random"]


@dataclass(frozen=True)
class Union:
    """Several balls, each with the attack of its own radius.

    max: mean over images of max_k L(x_k). average: mean over images and k of L(x_k). random: mean over images
    of L(x_k), with k drawn anew for each step. x_k is the point that the attack returns in ball k. The
    maximum is that of the loss which the attack ascends.

    Args:
        rule: max, average or random.
        strengths: for each ball, t -> (attack, ball) at the share t of the run.
    """

    rule: Rule
    strengths: Sequence[Strength]

    def threats(self, t: float, seed: int, step: int) -> list[Threat]:
        """The balls of step number `step`, at the share t of the run: all, or the drawn one.

        The draw is a function of seed and step alone: all ranks, and a resumed run, make the same one.
        """
        strengths = self.strengths
        if self.rule == "random":
            drawn = RowRandom(seed, "union", torch.tensor([step])).integers(0, len(strengths))
            strengths = [strengths[int(drawn)]]
        return [strength(t) for strength in strengths]
