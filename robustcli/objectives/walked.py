"""What objectives of bounds share: a pass over a box, its margins, their loss, and Shi's two terms."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.core.bounds import Program, trace
from robustcli.core.bounds.boxes import Frame, trained
from robustcli.core.bounds.margins import trained_margins
from robustcli.core.bounds.rectifiers import Rectifier
from robustcli.core.losses import mean_ce
from robustcli.core.types import Batch, Classifier, LossTerms, network_of

Share = Annotated[float, Ge(0), Le(1)]
Weight = Annotated[float, Ge(0)]
_TOLERANCE = 0.5  # Shi's tau: ratios above it cost nothing
_programs: deque[Program] = deque(maxlen=4)  # a program holds its network: only the last ones are kept


def program_of(network: nn.Module, shape: tuple[int, ...]) -> Program:
    """The traced network, traced once: the one in training, or its average. Raises as `trace`."""
    for known in list(_programs):
        if known.model is network and known.shape == tuple(shape):
            return known
    program = trace(network, tuple(shape))
    _programs.append(program)
    return program


@dataclass(frozen=True)
class Walked:
    """One training pass over a box: float32 logits [B, K] of the clean images, and the boxes of all nodes."""

    logits: Tensor
    frame: Frame

    def margins(self, y: Tensor, method: Literal["ibp", "crown-ibp"] = "ibp") -> Tensor:
        """Lower bounds of z_y - z_k over the box, float32 [B, K], 0 at k = y; y: int64 [B].

        The last affine layers are merged with the difference. "ibp" takes the box of what they read;
        "crown-ibp" goes back to the pixels, and is not the tighter one everywhere.
        """
        return trained_margins(self.frame, y, method)

    def unbalanced(self) -> Tensor:
        """L_tightness + L_relu, means over the ReLU layers; 0 without any. No unit, >= 0.

        L_tightness = max(0, tau - r_0 / r_i) / tau with the mean radius r_i before layer i, r_0 that of the
        pixels. L_relu = max(0, tau - a) / tau, a = min(q, 1 / q), for two ratios q of active (l > 0) to
        inactive (u < 0) neurons: of their summed centres, and of their summed squared deviations. tau = 0.5.
        A box without width has no tightness, and a layer without neurons of both kinds has no ratio.

        Source: Shi et al., NeurIPS 2021, arXiv:2103.17268, section 3.3, and the authors' code.
        """
        steps = enumerate(self.frame.program.steps)
        places = [place for place, step in steps if isinstance(step.op, Rectifier)]
        terms = [self._widened(place) + self._one_sided(place) for place in places]
        if not terms:
            return self.logits.new_zeros(())
        return torch.stack(terms).mean()

    def _widened(self, place: int) -> Tensor:
        (low, high), (first_low, first_high) = self.frame.inputs(place)[0], self.frame.boxes[0]
        before, now = (first_high - first_low).mean(), (high - low).mean()
        return torch.where(before > 0, _short(before / now.clamp_min(1e-12)), 0.0)

    def _one_sided(self, place: int) -> Tensor:
        low, high = self.frame.inputs(place)[0]
        centre = (low + high) / 2
        active, inactive = (low > 0).to(centre.dtype), (high < 0).to(centre.dtype)
        spread = (centre - centre.mean()) ** 2
        return _ratio((centre * active).sum(), -(centre * inactive).sum()) + _ratio(
            (spread * active).sum(), (spread * inactive).sum()
        )


def _short(share: Tensor) -> Tensor:
    return F.relu(_TOLERANCE - share) / _TOLERANCE


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """max(0, tau - min(q, 1 / q)) / tau for q = one / other; 0 where either is 0."""
    both = (one > 0) & (other > 0)
    one, other = torch.where(both, one, 1.0), torch.where(both, other, 1.0)
    return _short(torch.minimum(one / other, other / one))


def over_box(model: Classifier, batch: Batch, centre: Tensor, radius: float) -> Walked:
    """A pass over |pixel - centre| <= radius, cut by the pixel box; BatchNorm sees the clean images.

    It is computed in float32, whatever the precision of training.
    """
    low, high = batch.ball.low, batch.ball.high
    lower, upper = (centre - radius).clamp(low, high), (centre + radius).clamp(low, high)
    network = network_of(model)
    return Walked(*trained(program_of(network, tuple(batch.x.shape[1:])), batch.x, lower, upper))


def worst_ce(margins: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """mean log sum_k exp(-m_k): the cross-entropy of the worst logits that the margins allow, a scalar.

    margins: labels int64 [B] -> lower bounds of z_y - z_k [B, K], 0 at k = y. For mixed labels it is the mean
    over labels drawn from the mixture.
    """
    if batch.y_soft is None:
        return mean_ce(-margins(batch.y), batch.y)
    most = int((batch.y_soft > 0).sum(1).max())
    shares, labels = batch.y_soft.topk(most, dim=1)
    rows = [torch.logsumexp(-margins(y), 1) for y in labels.unbind(1)]
    return (shares * torch.stack(rows, 1)).sum(1).mean()


def fading(first: float, last: float, ramp: float) -> float:
    """first + (last - first) * ramp: a weight that goes with the radius of the curriculum."""
    return first + (last - first) * ramp


def summed(parts: dict[str, tuple[float, Tensor]], walked: Walked, weight: float, ramp: float) -> LossTerms:
    """sum of weight * part, and (1 - ramp) * weight * `unbalanced` while the radius grows.

    parts: name -> (weight, mean loss). A part of weight 0 is logged and not added.
    """
    total = torch.stack([share * part for share, part in parts.values() if share]).sum()
    if weight and ramp < 1:
        total = total + weight * (1 - ramp) * walked.unbalanced()
    return LossTerms(total, {name: part.detach() for name, (_, part) in parts.items()})
