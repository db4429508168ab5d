"""Fits the defences of a guarded model on clean images; its networks stay as they are.

What trains a network of its own has `loss(x) -> scalar` and is trained first. What keeps statistics has
`observe(x, y, logits, net)`, called once for each batch, and `settle()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.core.modes import frozen
from robustcli.data.split import Split
from robustcli.defences.ballot import Behind
from robustcli.errors import NumericsError
from robustcli.models.guarded import Defence, GuardedModel


@dataclass(frozen=True)
class FitPlan:
    """How a defence's own network is trained: Adam, its learning rate falling linearly to 0.

    Args:
        epochs: passes over the images, or None. steps: optimiser steps in place of them, or None.
        lr, batch_size: of a step. seed: of the order of the images.
    """

    epochs: float | None
    steps: int | None
    lr: float
    batch_size: int
    seed: int

    def length(self, images: int) -> int:
        """Optimiser steps for so many images."""
        if self.epochs is None:
            return self.steps or 1
        return max(1, round(self.epochs * -(-images // self.batch_size)))


@dataclass(frozen=True)
class Images:
    """Chosen images of a split: positions int64 [n], and the device they are shown on."""

    split: Split
    positions: Tensor
    device: torch.device

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) of each batch, once."""
        for x, y, _ in self.split.stream(list(self.positions.split(size)), self.device):
            yield x, y

    def shuffled(self, size: int, steps: int, seed: int) -> Iterator[Tensor]:
        """x of `steps` batches; each pass over the images has an order of its own."""
        generator, batches = torch.Generator().manual_seed(seed), list[Tensor]()
        while len(batches) < steps:
            order = torch.randperm(len(self.positions), generator=generator)
            batches += self.positions[order].split(size)
        for x, _, _ in self.split.stream(batches[:steps], self.device):
            yield x


def to_train(guard: GuardedModel) -> list[Defence]:
    """The defences with a network of their own."""
    return [one for one in guard.defences if one.facts.fit == "training"]


def fit_defences(
    guard: GuardedModel,
    images: Images,
    plan: FitPlan,
    *,
    stop: Callable[[], None] = lambda: None,
    done: Callable[[str, float], None] = lambda label, loss: None,
) -> None:
    """Fit all that needs it, in place.

    Args:
        guard: in eval mode, on the device of the images.
        images: clean training images.
        plan: how networks are trained.
        stop: called before each batch; raises to interrupt.
        done: told label and loss after each step.

    Raises NumericsError where a loss is not finite.
    """
    with frozen(guard.members):
        for defence in to_train(guard):
            for loss in _trained(defence, images, plan, stop):
                done(defence.label, loss)
        with torch.no_grad():
            _observed(guard, images, plan.batch_size, stop)


def _trained(defence: Defence, images: Images, plan: FitPlan, stop: Callable[[], None]) -> Iterator[float]:
    """Train the network of one defence; yields the loss of each step."""
    module, steps = defence.module, plan.length(len(images.positions))
    own = list(module.parameters())
    optimizer = torch.optim.Adam(own, lr=plan.lr)
    module.train()
    for step, x in enumerate(images.shuffled(plan.batch_size, steps, plan.seed)):
        stop()
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * (1 - step / steps)
        loss = _loss(module, x)
        if not torch.isfinite(loss):
            raise NumericsError(
                f"the loss of the defence {defence.name!r} is not finite at step {step}",
                where="defences",
                hint="lower guard.fit.lr",
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())
    module.eval()


def _loss(module: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        answer: Tensor = module.loss(x)  # type: ignore[operator]
        return answer


def _observed(guard: GuardedModel, images: Images, size: int, stop: Callable[[], None]) -> None:
    """Show all images once to each defence that keeps statistics."""
    observers: list[nn.Module] = [one.module for one in guard.defences if one.facts.fit == "statistics"]
    if not observers:
        return
    view = Behind(guard.net, guard.each)
    for x, y in images.in_order(size):
        stop()
        logits = guard.net(x)
        for module in observers:
            module.observe(x, y, logits, view)  # type: ignore[operator]
    for module in observers:
        module.settle()  # type: ignore[operator]


@torch.no_grad()
def scores_of(
    guard: GuardedModel, images: Images, size: int, stop: Callable[[], None] = lambda: None
) -> Tensor:
    """Scores float32 [n, D] of the detectors on the CPU, in the order of `guard.detectors`."""
    found = [torch.empty(0, len(guard.detectors))]
    with frozen(guard):
        for x, _ in images.in_order(size):
            stop()
            scores = guard.look(x).scores
            found.append(torch.stack([scores[label] for label in guard.detectors], 1).float().cpu())
    return torch.cat(found)


@torch.no_grad()
def answers_of(
    guard: GuardedModel, images: Images, size: int, stop: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """(answers, labels), int64 [n] on the CPU; the answer K says "reject"."""
    answers, labels = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    with frozen(guard):
        for x, y in images.in_order(size):
            stop()
            answers.append(guard(x).argmax(1).cpu())
            labels.append(y.cpu())
    return torch.cat(answers), torch.cat(labels)
