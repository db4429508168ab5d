"""The nuclear norm of what the attack changes: few directions of change for a whole batch."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from robustcli.core.losses import nuclear_rows
from robustcli.core.types import Batch, Classifier
from robustcli.registry import regularizers


@regularizers.register("nuclear", passes=6, use="the term of nuat beside another objective")
def nuclear(model: Classifier, batch: Batch, *, weight: Annotated[float, Ge(0)] = 4.0) -> Tensor:
    """weight * ||f(x) - f(x_adv)||_* / B on logits [B, K]; cost at most 6 passes.

    ||D||_* is the sum of the singular values of D, over the rows at hand: each micro-batch, and each process,
    takes the norm of its own rows. Gradients run through both logits. The 6 passes count f(x) and f(x_adv)
    even where the objective computes them, too. weight = 0 gives 0 and no pass.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K].
        batch: x and x_adv are used.
        weight: no unit, >= 0.

    Raises:
        ValueError: weight < 0.

    Source: Sriramanan et al., NeurIPS 2021, openreview.net/forum?id=kuK2VARZGnI (NuAT).
    """
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight}")
    if weight == 0:
        return batch.x.new_zeros(())
    return weight * nuclear_rows(model(batch.x_adv), model(batch.x)).mean()
