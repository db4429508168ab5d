"""The outer half of a training step: loss, gradients, agreement of all ranks, optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.errors import NumericsError, ResourceError, out_of_memory
from robustcli.runtime.distributed import Ranks, solo
from robustcli.training.faults import caught, settle
from robustcli.training.forward import Forward, Shared
from robustcli.training.hooks import Hook, StepContext

Objective = Callable[[Classifier, Batch], LossTerms]
Regularizer = Callable[[Classifier, Batch], Tensor]


class Descent:
    """theta <- theta - lr * optimiser(mean over micro-batches and ranks of grad_theta [objective + regularisers]).

    Args:
        model: the unwrapped classifier.
        objective: (model, Batch) -> LossTerms, parameters bound.
        optimizer: updates the model's parameters.
        forward: the model as it is trained.
        regularizers: name -> (model, Batch) -> scalar, already weighted; added to the objective. They share its passes.
        hooks: surround the step; those that average weights come last whatever their order here.
        grad_clip: largest global l2 norm of the gradient, or None.
        scaler: torch.amp.GradScaler for fp16, else None.
        ranks: the processes that train together; gradients and BatchNorm statistics are averaged over them.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        forward: Forward,
        regularizers: dict[str, Regularizer] | None = None,
        hooks: Sequence[Hook] = (),
        grad_clip: float | None = None,
        scaler: Any = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.objective, self.optimizer, self.forward = model, objective, optimizer, forward
        self.regularizers, self.grad_clip, self.scaler = regularizers or {}, grad_clip, scaler
        self.hooks = sorted(hooks, key=lambda hook: type(hook).averaged is not Hook.averaged)
        self.ranks = ranks or solo()

    def __call__(self, batches: Sequence[Batch], progress: float) -> LossTerms:
        """One update from micro-batches of one batch; each counts by its share of the images.

        Raises NumericsError (loss or gradient not finite), torch.OutOfMemoryError or Interrupted, the same on all ranks; parameters,
        buffers and hooks are then as before.
        """
        buffers = [(b, b.clone()) for b in self.model.buffers()]
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        context = StepContext(self.model, lambda wanted: self._gradients(batches, wanted), progress)
        try:
            terms = self._descend(batches, context)
        except BaseException:
            for hook in reversed(self.hooks):
                hook.undo(context)
            for buffer, before in buffers:
                buffer.copy_(before)
            self.optimizer.zero_grad(set_to_none=True)
            raise
        with _final("the optimiser's step"):
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            for hook in self.hooks:
                hook.after_step(context)
        return terms

    def _descend(self, batches: Sequence[Batch], context: StepContext) -> LossTerms:
        with caught() as met:
            for hook in self.hooks:
                hook.before_loss(context)
            terms = self._backward(batches)
            if not bool(torch.isfinite(terms.total)):
                raise NumericsError(
                    "the loss is not finite", hint="lower the learning rate, or clip with train.grad_clip"
                )
        settle(self.ranks, met.fault)
        with _final("averaging the gradients"):
            self._average()
            self._check_gradient()
        for hook in self.hooks:
            hook.after_backward(context)
        return terms

    def _backward(self, batches: Sequence[Batch]) -> LossTerms:
        """Add the gradients of all micro-batches to `.grad`; the means of loss and parts, detached."""
        rows = sum(len(batch.y) for batch in batches)
        sums: dict[str, Tensor] = {}
        for batch in batches:
            terms, share = self._terms(batch), len(batch.y) / rows
            total = terms.total if len(batches) == 1 else terms.total * share
            (total if self.scaler is None else self.scaler.scale(total)).backward()
            for name, value in {"": terms.total, **terms.parts}.items():
                value = value.detach() if len(batches) == 1 else value.detach() * share
                sums[name] = sums[name] + value if name in sums else value
        return LossTerms(sums.pop(""), sums)

    def _terms(self, batch: Batch) -> LossTerms:
        model = Shared(self.forward)
        terms = self.objective(model, batch)
        if not self.regularizers:
            return terms
        added = {name: regularizer(model, batch) for name, regularizer in self.regularizers.items()}
        total = terms.total + torch.stack(list(added.values())).sum()
        return LossTerms(total, {**terms.parts, **{name: value.detach() for name, value in added.items()}})

    def _gradients(self, batches: Sequence[Batch], wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        """See `StepContext.gradients`."""
        buffers = [(b, b.clone()) for b in self.model.buffers()]
        rows = sum(len(batch.y) for batch in batches)
        sums = [torch.zeros_like(p) for p in wanted]
        with caught() as met:
            for batch in batches:
                total = self._terms(batch).total * (len(batch.y) / rows)
                found = torch.autograd.grad(total, list(wanted), allow_unused=True)
                for into, grad in zip(sums, found, strict=True):
                    if grad is not None:
                        into.add_(grad)
        for buffer, before in buffers:
            buffer.copy_(before)
        settle(self.ranks, met.fault)
        with _final("averaging the gradients"):
            self.ranks.mean(sums)
        return sums

    def _average(self) -> None:
        """Gradients and floating buffers (BatchNorm statistics) become their means over the ranks."""
        if self.ranks.world == 1:
            return
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:  # the same list on every rank
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.mean([p.grad for p in self.model.parameters() if p.grad is not None])
        self.ranks.mean([b for b in self.model.buffers() if b.is_floating_point()])

    def _check_gradient(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        # fp16 gradients overflow now and then: the scaler skips such a step and lowers its scale.
        if self.scaler is None and not bool(torch.isfinite(norm)):
            raise NumericsError(
                "the gradient is not finite", hint="lower the learning rate, or clip with train.grad_clip"
            )
        if self.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.grad_clip, norm)


@contextmanager
def _final(what: str) -> Iterator[None]:
    """Out of memory inside ends the run: some weights, or some ranks, may have gone on already, so the step cannot be tried again."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        hint = "lower train.batch_size, or set train.micro_batch; go on with --resume"
        raise ResourceError(f"no memory for {what}", hint=hint, code="E-OOM") from error
