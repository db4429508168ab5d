"""Points made on each of several models, and on several together, for one batch that is shown to all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from robustcli.core.losses import Criterion, margin
from robustcli.core.random import RowRandom
from robustcli.core.types import Classifier
from robustcli.data.split import Split
from robustcli.errors import out_of_memory
from robustcli.evaluation.joint import Join, jointly, strongest
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.evaluation.surrogate import searched
from robustcli.evaluation.transfer_shards import Shown

_SHOWN = 32  # images on which search twins are compared with their models: the same for every batch size


@dataclass(frozen=True)
class Chain:
    """One attack of a matrix: its label, and its stages, each for the rows that the ones before left."""

    label: str
    calls: Sequence[AttackCall]


def shown(split: Split, positions: Tensor, device: torch.device) -> Tensor:
    """At most 32 images, [N, C, H, W], on which search twins are compared with their models."""
    if not len(positions):
        return torch.zeros(0)
    x, _, _ = next(iter(split.stream([positions[:_SHOWN]], device)))
    return x


class Member:
    """One model on which points are made, frozen, with its judge and its search twins, each made once."""

    def __init__(
        self,
        model: nn.Module,
        plan: EvalPlan,
        shown: Tensor,
        stop: Callable[[], None] | None,
        say: Callable[[str], None],
    ) -> None:
        self._model, self._plan, self._shown, self._stop, self._say = model, plan, shown, stop, say
        self._twins: dict[Search, Classifier] = {}
        self.judge = Judge(model, plan.ball)

    def _twin(self, search: Search) -> Classifier:
        """The search twin, compared with its model on `_shown` images, or on fewer where memory runs out."""
        while search not in self._twins:
            try:
                self._twins[search] = search.twin(self._model, self._shown, self._say)
            except (RuntimeError, MemoryError) as error:
                if len(self._shown) <= 1 or not out_of_memory(error):
                    raise
                self._shown = self._shown[: len(self._shown) // 2]
        return self._twins[search]

    def attack(self, calls: Sequence[AttackCall], x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        """x_adv [R, C, H, W]: of each row the first point that breaks it, else the one of largest margin.

        It lies in the ball. A row without any point in the ball keeps x.
        """
        best, worst = x.clone(), x.new_full((len(x),), float("-inf"))
        still = torch.arange(len(x), device=x.device)
        for call in calls:
            if not len(still):
                break
            part, criterion = x[still], self.judge.criterion(y[still])
            points = self._search(call, part, criterion, ids[still])
            ruling = self.judge.rule(part, points, criterion)
            value = margin(criterion.joint(ruling.logits), y[still]).masked_fill(
                ~ruling.inside, float("-inf")
            )
            better = ruling.hit | (value > worst[still])
            best[still[better]], worst[still[better]] = points[better], value[better]
            still = still[~ruling.hit]
        return best

    def hit(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """bool [R]: which points x_adv [R, C, H, W] around x lie in the ball and break this model."""
        return self.judge.rule(x, x_adv, self.judge.criterion(y)).hit

    def harm(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """[R]: the margin of a wrong class over y at points x_adv [R, C, H, W]; -inf outside the ball."""
        criterion = self.judge.criterion(y)
        ruling = self.judge.rule(x, x_adv, criterion)
        return margin(criterion.joint(ruling.logits), y).masked_fill(~ruling.inside, float("-inf"))

    def searched_with(
        self,
        others: Sequence[Member],
        join: Join,
        call: AttackCall,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
    ) -> list[Tensor]:
        """The points of one attack on this model and others together, [R, C, H, W] each."""
        search, criterion = call.searching(self._plan.search), self.judge.criterion(y)
        models = [member._twin(search) for member in (self, *others)]

        def one(model: Classifier, draws: int) -> Tensor:
            return self._searched(model, call, x, criterion, ids, draws)

        return jointly(models, join, [search.draws or 1] * len(models), one)

    def _search(self, call: AttackCall, x: Tensor, criterion: Criterion, ids: Tensor) -> Tensor:
        """x_adv [R, C, H, W]: the points of one attack on this model."""
        search = call.searching(self._plan.search)
        return self._searched(self._twin(search), call, x, criterion, ids, search.draws or 1)

    def _searched(
        self, model: Classifier, call: AttackCall, x: Tensor, criterion: Criterion, ids: Tensor, draws: int
    ) -> Tensor:
        rng = RowRandom(self._plan.seed, "start", ids)
        return searched(model, call, x, criterion, self._plan.ball, rng, stop=self._stop, draws=draws)


def batch(
    members: Sequence[Member],
    chains: Sequence[Chain],
    together: Join | None,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
) -> Shown:
    """Attack each member on the rows that all members classify correctly, and show the points to all."""
    clean = [member.judge.clean(x, y) for member in members]
    classes = [
        member.judge.classes(seen.logits).shape[1] for member, seen in zip(members, clean, strict=True)
    ]
    if len(set(classes)) > 1:
        raise ValueError(f"the models have different numbers of classes: {', '.join(map(str, classes))}")
    right = torch.stack([seen.right for seen in clean])
    every, joint = ids.cpu(), right.all(0)
    x, y, ids = x[joint], y[joint], ids[joint]
    sources = len(members) + (together is not None)
    broken = torch.zeros(len(chains), sources, len(members), len(y), dtype=torch.bool, device=y.device)
    if len(y):
        for a, chain in enumerate(chains):
            made = [member.attack(chain.calls, x, y, ids) for member in members]
            for s, t in product(range(len(members)), repeat=2):
                broken[a, s, t] = members[t].hit(x, made[s], y)
            if together is not None:
                for t, target in enumerate(members):
                    points = _together(members, made, t, chain, together, x, y, ids)
                    broken[a, -1, t] = target.hit(x, points, y)
    return Shown(every, right.cpu(), broken.cpu())


def _together(
    members: Sequence[Member],
    made: Sequence[Tensor],
    target: int,
    chain: Chain,
    join: Join,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
) -> Tensor:
    """x_adv [R, C, H, W] made on all members but the target, which is not asked.

    made: the points of each member alone, which are those of join="best".
    """
    others = [member for s, member in enumerate(members) if s != target]
    points = [made[s] for s in range(len(members)) if s != target]
    if join != "best" and len(others) > 1:
        points = []
        for call in chain.calls:
            points += others[0].searched_with(others[1:], join, call, x, y, ids)

    def harm(x_adv: Tensor) -> Tensor:
        return torch.stack([member.harm(x, x_adv, y) for member in others]).mean(0)

    return strongest(points, harm)
