"""Several networks vote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Ge, MaxLen
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robustcli.core.losses import wide
from robustcli.defences.ballot import Ballot
from robustcli.defences.surrogate import straight
from robustcli.registry import defences

Rule = Literal["mean", "majority", "abstain"]


class Vote(nn.Module):
    """Logits [M, B, K] of M networks -> their joint answer.

    Attributes:
        abstains: whether the vote gives a doubt.
    """

    def __init__(self, rule: Rule, quorum: int | None) -> None:
        super().__init__()
        self.rule, self.quorum, self.abstains = rule, quorum, rule == "abstain"

    def forward(self, logits: Tensor) -> Ballot:
        if self.rule == "mean":
            return Ballot(logits.mean(0), None)
        votes, slope = ballots(logits)
        answer = straight(slope, votes.log())
        if not self.abstains:
            return Ballot(answer, None)
        wanted = wanted_votes(self.quorum, len(logits))
        return Ballot(answer, wanted - 0.25 - straight(slope, votes).amax(1))


def wanted_votes(quorum: int | None, networks: int) -> int:
    """How many of the networks must agree; null means more than half."""
    return min(quorum or networks // 2 + 1, networks)


def ballots(logits: Tensor) -> tuple[Tensor, Tensor]:
    """n_k + q_k / 100 and what has its slope, each [B, K], from logits [M, B, K].

    n_k networks answer k. q_k = 1 / (1 - 1/M sum_m log p_mk) in (0, 1] breaks ties, and tells the classes
    without a vote apart where a softmax is 0 in float32. The slope is that of sum_m (p_mk + 1e-4 log p_mk):
    networks near their boundary pull most, and the logarithm pulls where all are too sure for a softmax.
    """
    z = wide(logits)
    p, log_p, counts = z.softmax(-1), z.log_softmax(-1), one_hot(z.argmax(-1), z.shape[-1]).sum(0)
    return counts + 0.01 / (1 - log_p.mean(0)), (p + 1e-4 * log_p).sum(0)


@defences.register(
    "ensemble",
    kind="vote",
    random=False,
    differentiable=False,
    highest=lambda given, networks, classes: (
        wanted_votes(given["quorum"], networks) - 0.25 - -(-networks // classes)
    ),
    use="several checkpoints or architectures; abstain turns their disagreement into an alarm",
)
def ensemble(
    *,
    members: Annotated[Sequence[str], MaxLen(15)] = (),  # noqa: ARG001 - whoever loads the networks reads it
    rule: Rule = "mean",
    quorum: Annotated[int, Ge(1)] | None = None,
) -> nn.Module:
    """z_k = 1/M sum_m z_mk (mean), or log(n_k + q_k / 100) (majority, abstain),  n_k: votes for k.

    The softmax of the latter is about the share of votes; q_k in (0, 1], from the mean logarithm of the
    probabilities, breaks ties. The networks are the model itself and `members`, references such as `run:DIR`.
    The rule abstain also gives a doubt: above 0 where fewer than quorum networks agree, the default being
    more than half. A quorum above M asks for all. Votes have no gradient: the backward pass is that of
    probabilities in their place.

    Source: Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017, arXiv:1612.01474.
    """
    return Vote(rule, quorum)
