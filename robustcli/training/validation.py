"""The robust validation of a run, shared by all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.config.threats import threat_name
from robustcli.core.bounds import margins
from robustcli.core.modes import frozen
from robustcli.data.split import Split
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.result import Evaluation
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.objectives.walked import program_of
from robustcli.runtime.distributed import Ranks
from robustcli.terminal.once import each_once
from robustcli.training.faults import caught, raise_everywhere
from robustcli.training.trainplan import Look

_PROVEN_AT_ONCE = 64  # images; bounds keep several tensors for each layer
FGSM = "fgsm"  # label of the one-step attack in a validation that watches for catastrophic overfitting


def chance_of(split: Split, positions: Tensor) -> float:
    """max over classes of their share of the images at `positions`, int64 [m]: one answer reaches it."""
    return int(split.labels[positions].bincount().max()) / len(positions)


def _name(plan: EvalPlan) -> str:
    """The name of a plan's ball among the balls of a union."""
    return threat_name(plan.ball.norm, plan.ball.eps)


class Validation:
    """Clean and robust accuracy of a model on chosen validation images; each rank measures its share.

    Args:
        split: the validation split.
        plans: attacks and ball; of a union one plan for each ball, and an image stands where it does in all.
        positions: int64 [m], which images of the split.
        device: where it runs.
        ranks: the processes that share the work.
        stop: raises to interrupt.
        say: shows one line to the user.
        verified: count, too, on how many images bounds of the network prove the answer over the ball.
        look: how a deeper look is taken, where one is asked for.
    """

    def __init__(
        self,
        split: Split,
        plans: Sequence[EvalPlan],
        positions: Tensor,
        device: torch.device,
        ranks: Ranks,
        stop: Callable[[], None],
        say: Callable[[str], None],
        verified: bool = False,
        look: Look | None = None,
    ) -> None:
        self.split, self.plans, self.positions, self.device, self.ranks = (
            split,
            plans,
            positions,
            device,
            ranks,
        )
        self.verified, self.chance = verified, chance_of(split, positions)
        self.look = look
        self._standing: Tensor | None = None  # what of the own share stood in the last validation
        self._stop, self._say = stop, each_once(say)  # each validation would say it again

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """{clean_acc, robust_acc, n, chance, fgsm_acc, verified_acc, threats}, in [0, 1].

        It is the same on every rank. robust_acc is None without attacks. fgsm_acc is left out when the plan
        has no FGSM stage, and verified_acc where nothing is proven. threats: the name of each ball of a union
        -> robust accuracy in it; left out for one ball.
        """
        total = self._shared(lambda: self._count(model, self._own))
        n = total["n"]
        row: dict[str, Any] = {"clean_acc": total["clean"] / n, "robust_acc": None, "n": n}
        row["chance"] = self.chance
        if self.plans[0].attacks:
            row["robust_acc"] = total["robust"] / n
            if len(self.plans) > 1:
                row["threats"] = {name: total[f"in {name}"] / n for name in map(_name, self.plans)}
        if FGSM in total:
            row["fgsm_acc"] = total[FGSM] / n
        if self.verified:
            row["verified_acc"] = total["verified"] / n
        return row

    def look_deeper(self, model: nn.Module) -> dict[str, Any]:
        """{look: {n, standing, left}} of the model that was validated last, the same on every rank.

        n: images looked at. standing: how many of them stand under the validation's attacks. left: how many
        still under those of the look. Empty where nothing says how to look.
        """
        look = self.look
        if look is None:
            return {}
        total = self._shared(lambda: self._count_deeper(model, look))
        return {"look": {name: total[f"look {name}"] for name in ("n", "standing", "left")}}

    @property
    def _own(self) -> Tensor:
        """Positions of the images that this rank measures."""
        return self.positions[self.ranks.rank :: self.ranks.world]

    def _shared(self, count: Callable[[], dict[str, int]]) -> Counter[str]:
        """The sums of what all ranks count. A fault of one is raised on all."""
        counts: dict[str, int] = {}
        with caught() as block:
            counts = count()
        self.ranks.barrier()  # shares differ in length, and a rank that was stopped comes early
        raise_everywhere(self.ranks, block.fault)
        total: Counter[str] = Counter()
        for part in self.ranks.gather(counts):
            total.update(part)
        return total

    def _count(self, model: nn.Module, positions: Tensor) -> dict[str, int]:
        """Number of images, and how many are right: clean, under all attacks, under FGSM if planned."""
        if not len(positions):
            return {"n": 0, "clean": 0, "robust": 0}
        results = [self._evaluated(model, plan, positions) for plan in self.plans]
        first, standing = results[0], torch.stack([result.survivors for result in results]).all(0)
        self._standing = standing
        counts = {"n": first.n, "clean": int(first.correct.sum()), "robust": int(standing.sum())}
        if len(results) > 1:
            pairs = zip(map(_name, self.plans), results, strict=True)
            counts |= {f"in {name}": int(result.survivors.sum()) for name, result in pairs}
        if FGSM in first.stages:
            counts[FGSM] = int(torch.stack([result.stages[FGSM] for result in results]).all(0).sum())
        if self.verified:
            counts["verified"] = self._count_verified(model, positions)
        return counts

    def _evaluated(self, model: nn.Module, plan: EvalPlan, positions: Tensor) -> Evaluation:
        """The verdicts under one plan."""
        evaluation = RobustEvaluation(model, plan, stop=self._stop, say=self._say)
        return evaluation.run(self.split, positions, self.device)

    def _count_deeper(self, model: nn.Module, look: Look) -> dict[str, int]:
        """Of some images, evenly spread: their number, and how many stand under both lists of attacks."""
        positions, survivors = self._own, self._standing
        if survivors is None:  # no image is this rank's
            return {}
        ordered = positions[self.split.ids[positions].argsort()]  # as those of the result
        most = max(1, look.images // self.ranks.world)
        places = torch.linspace(0, len(ordered) - 1, min(most, len(ordered))).long()
        standing = ordered[places][survivors[places]]
        counts = {"look n": len(places), "look standing": len(standing), "look left": 0}
        if len(standing):
            left = [self._evaluated(model, plan, standing).survivors for plan in look.plans]
            counts["look left"] = int(torch.stack(left).all(0).sum())
        return counts

    def _count_verified(self, model: nn.Module, positions: Tensor) -> int:
        """On how many images IBP or CROWN-IBP proves the right answer over the whole ball."""
        program, proven = program_of(model, self.split.shape), 0
        with frozen(model), torch.no_grad():
            for x, y, _ in self.split.stream(positions.split(_PROVEN_AT_ONCE), self.device):
                least = margins(program, x, y, self.plans[0].ball, method="crown-ibp")
                proven += int((least > 0).all(1).sum())
        return proven

    def seconds(self, model: nn.Module, clock: Callable[[], float]) -> float:
        """Estimated seconds of one validation, measured on a part of its images; clock: () -> seconds."""
        part = self.positions[:: max(1, len(self.positions) // 64)]
        began = clock()
        for plan in self.plans:
            RobustEvaluation(model, plan, stop=self._stop).run(self.split, part, self.device)
        return (clock() - began) * len(self.positions) / len(part) / self.ranks.world
