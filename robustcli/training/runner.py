"""One training step from raw images, and what follows when it fails."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustcli.core.types import LossTerms
from robustcli.errors import NumericsError
from robustcli.training.feed import Images
from robustcli.training.remedies import less_memory, located
from robustcli.training.saved import step_seed
from robustcli.training.step import Step
from robustcli.training.trainplan import Progress, TrainPlan


class StepRunner:
    """Sets the learning rate, augments the images and makes the step.

    After out-of-memory it halves the micro-batch and tries again.

    Args:
        step: attacks and descends.
        plan: learning rate, augmentation, seed, and what to do after out-of-memory.
        say: shows one line to the user.

    Attributes:
        offending: the images of a step whose loss or gradient was not finite; empty while there is none.
    """

    def __init__(self, step: Step, plan: TrainPlan, say: Callable[[str], None]) -> None:
        self.step, self.plan = step, plan
        self.offending: dict[str, Tensor] = {}
        self._groups = step.settings.optimizer.param_groups
        self._base_lrs = [float(group["lr"]) for group in self._groups]
        self._say = say
        self._said: set[str] = set()

    def learning_rate(self, t: float) -> float:
        """Learning rate of the first parameter group at the share t of the run."""
        return self._base_lrs[0] * self.plan.factor(t)

    def __call__(self, images: Images, epoch: int, t: float, progress: Progress) -> None:
        """Make the step at the share t of the run and add its loss terms to `progress`.

        A step that raises changes neither weights nor state.
        """
        factor = self.plan.factor(t)
        for group, base in zip(self._groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        x, y, ids = images
        x, y_soft = self.plan.augmented(x, y, ids, epoch)
        terms = None
        while terms is None:
            terms = self._attempt((x, y, ids), y_soft, epoch, t, progress)
        progress.add(terms)
        self._say_notes()

    def _attempt(
        self, images: Images, y_soft: Tensor | None, epoch: int, t: float, progress: Progress
    ) -> LossTerms | None:
        """The loss terms of the step; None when memory ran out.

        The micro-batch is then halved for the next attempt.
        """
        x, y, ids = images
        seed, rank = self.plan.seed, self.step.settings.ranks.rank
        torch.manual_seed(step_seed(seed, progress.step) + rank)
        try:
            return self.step(
                x, y, ids, seed=seed, epoch=epoch, y_soft=y_soft, progress=t, number=progress.step
            )
        except torch.OutOfMemoryError:
            progress.micro_batch = less_memory(self.step, len(x), self.plan.oom)
            self._say(
                f"out of memory: going on with {progress.micro_batch} images in a pass; "
                "gradients are added up to the same batch"
            )
            return None
        except NumericsError as error:
            if not error.elsewhere:
                self.offending = {"x": x.detach().cpu().contiguous(), "y": y.cpu(), "ids": ids.cpu()}
            raise located(error, progress.step, float(self._groups[0]["lr"]), ids) from None

    def _say_notes(self) -> None:
        """Tell the user, once, where the step does not run as asked."""
        forward = self.step.descent.forward
        notes = [forward.note, forward.way, self.step.way]
        if self.step.twin_note:
            notes.append(f"the attack searches on the model itself: {self.step.twin_note}")
        for note in notes:
            if note and note not in self._said:
                self._said.add(note)
                self._say(note)
