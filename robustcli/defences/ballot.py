"""What a vote of several networks answers, and what a detector may ask of the classifier."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from robustcli.core.types import Classifier


class Ballot(NamedTuple):
    """The joint answer of M networks.

    Args:
        logits: [B, K].
        doubt: [B], how much they disagree; above 0 the vote abstains. None for a vote that never abstains.
    """

    logits: Tensor
    doubt: Tensor | None


class Behind(NamedTuple):
    """The classifier behind its purifiers.

    Args:
        logits: pixels [B, C, H, W] -> the joint logits [B, K].
        each: pixels [B, C, H, W] -> logits [M, B, K] of every member.
    """

    logits: Classifier
    each: Classifier
