"""The robust validation of a run, shared by all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.data.split import Split
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.runtime.distributed import Ranks
from robustcli.training.faults import caught, settle

FGSM = "fgsm"  # label of the one-step attack in a validation that watches for catastrophic overfitting


class Validation:
    """Clean and robust accuracy of a model on chosen validation images; each rank measures its share.

    Args:
        split: the validation split. plan: attacks and ball; positions: int64 [m] in the split.
        device: where it runs. ranks: who shares the work. stop: raises to interrupt. say: one line to the user.
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
    ) -> None:
        self.split, self.plan, self.positions, self.device, self.ranks = split, plan, positions, device, ranks
        self._stop, self._say = stop, say

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        """{n, clean_acc, robust_acc (None without attacks), fgsm_acc where the plan has that stage}, the same on every rank."""
        mine = self.positions[self.ranks.rank :: self.ranks.world]
        counts: dict[str, int] = {}
        with caught() as met:
            counts = self._count(model, mine)
        self.ranks.barrier()  # shares differ in length, and a rank that was stopped comes early
        settle(self.ranks, met.fault)
        gathered = self.ranks.gather(counts)
        total = {
            name: sum(part.get(name, 0) for part in gathered)
            for name in dict.fromkeys(name for part in gathered for name in part)
        }
        n = total["n"]
        robust = total["robust"] / n if self.plan.attacks else None
        row: dict[str, Any] = {"clean_acc": total["clean"] / n, "robust_acc": robust, "n": n}
        return row | ({"fgsm_acc": total[FGSM] / n} if FGSM in total else {})

    def _count(self, model: nn.Module, positions: Tensor) -> dict[str, int]:
        if not len(positions):
            return {"n": 0, "clean": 0, "robust": 0}
        result = RobustEvaluation(model, self.plan, stop=self._stop, say=self._say).run(
            self.split, positions, self.device
        )
        counts = {"n": result.n, "clean": int(result.correct.sum()), "robust": int(result.survivors.sum())}
        return counts | {
            label: int(standing.sum()) for label, standing in result.stages.items() if label == FGSM
        }

    def seconds(self, model: nn.Module) -> float:
        """Estimated seconds of one validation, from a sixteenth of it."""
        part = self.positions[:: max(1, len(self.positions) // 64)]
        began = time.perf_counter()
        RobustEvaluation(model, self.plan, stop=self._stop).run(self.split, part, self.device)
        # An untrained model falls at once; a trained one is attacked to the end by about half of its images.
        return (time.perf_counter() - began) * len(self.positions) / len(part) * 2 / self.ranks.world
