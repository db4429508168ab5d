"""The robust validation of a run, shared by all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.bounds import margins
from robustcli.core.modes import frozen
from robustcli.data.split import Split
from robustcli.evaluation.plan import EvalPlan
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


class Validation:
    """Clean and robust accuracy of a model on chosen validation images; each rank measures its share.

    Args:
        split: the validation split.
        plan: attacks and ball.
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
        plan: EvalPlan,
        positions: Tensor,
        device: torch.device,
        ranks: Ranks,
        stop: Callable[[], None],
        say: Callable[[str], None],
        verified: bool = False,
        look: Look | None = None,
    ) -> None:
        self.split, self.plan, self.positions, self.device, self.ranks = split, plan, positions, device, ranks
        self.verified, self.chance = verified, chance_of(split, positions)
        self.look = look
        self._standing: Tensor | None = None  # what of the own share stood in the last validation
        self._stop, self._say = stop, each_once(say)  # each validation would say it again

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """{clean_acc, robust_acc, n, chance, fgsm_acc, verified_acc}, the same on every rank; in [0, 1].

        robust_acc is None without attacks. fgsm_acc is left out when the plan has no FGSM stage, and
        verified_acc where nothing is proven.
        """
        total = self._shared(lambda: self._count(model, self._own))
        n = total["n"]
        row: dict[str, Any] = {"clean_acc": total["clean"] / n, "robust_acc": None, "n": n}
        row["chance"] = self.chance
        if self.plan.attacks:
            row["robust_acc"] = total["robust"] / n
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
        evaluation = RobustEvaluation(model, self.plan, stop=self._stop, say=self._say)
        result = evaluation.run(self.split, positions, self.device)
        self._standing = result.survivors
        counts = {"n": result.n, "clean": int(result.correct.sum()), "robust": int(result.survivors.sum())}
        if FGSM in result.stages:
            counts[FGSM] = int(result.stages[FGSM].sum())
        if self.verified:
            counts["verified"] = self._count_verified(model, positions)
        return counts

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
            deep = RobustEvaluation(model, look.plan, stop=self._stop, say=self._say)
            counts["look left"] = int(deep.run(self.split, standing, self.device).survivors.sum())
        return counts

    def _count_verified(self, model: nn.Module, positions: Tensor) -> int:
        """On how many images IBP or CROWN-IBP proves the right answer over the whole ball."""
        program, proven = program_of(model, self.split.shape), 0
        with frozen(model), torch.no_grad():
            for x, y, _ in self.split.stream(positions.split(_PROVEN_AT_ONCE), self.device):
                least = margins(program, x, y, self.plan.ball, method="crown-ibp")
                proven += int((least > 0).all(1).sum())
        return proven

    def seconds(self, model: nn.Module, clock: Callable[[], float]) -> float:
        """Estimated seconds of one validation, measured on a part of its images; clock: () -> seconds."""
        part = self.positions[:: max(1, len(self.positions) // 64)]
        began = clock()
        RobustEvaluation(model, self.plan, stop=self._stop).run(self.split, part, self.device)
        return (clock() - began) * len(self.positions) / len(part) / self.ranks.world
