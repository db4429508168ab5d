"""The outer half of a training step: loss, gradients, agreement of all ranks, optimiser."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor, nn

from robustcli.core.slope import needs_whole_backward
from robustcli.core.types import Batch, LossTerms
from robustcli.errors import ConfigError, NumericsError, ResourceError, out_of_memory
from robustcli.training.faults import shared_faults
from robustcli.training.forward import Forward, Shared
from robustcli.training.hook import Hook, StepContext
from robustcli.training.settings import StepSettings

_LOWER = "lower the learning rate, or clip with train.grad_clip"


class Descent:
    """theta <- theta - lr * optimiser(grad_theta [objective + regularisers]).

    The gradient is the mean over micro-batches and ranks.

    Args:
        settings: model, objective, regularisers, optimiser, hooks, clipping, loss scaling and ranks; see
            `StepSettings`. Gradients and BatchNorm statistics are averaged over the ranks.

    Attributes:
        forward: the model as it is trained.
        hooks: those of the settings. A hook that averages weights runs last, so that it sees the step's final
            weights.
    """

    def __init__(self, settings: StepSettings) -> None:
        self.model, self.optimizer, self.ranks = settings.model, settings.optimizer, settings.ranks
        self.objective, self.regularizers = settings.objective, settings.regularizers
        self.scaler, self.grad_clip = settings.scaler, settings.grad_clip
        self.hooks = sorted(settings.hooks, key=_averages)
        # Weights that a hook has moved for the loss go back before another hook looks at them.
        movers = [hook for hook in self.hooks if _moves(hook)]
        self._afterwards = [*reversed(movers), *(hook for hook in self.hooks if not _moves(hook))]
        self.forward = Forward(
            settings.model,
            dtype=settings.dtype,
            data_parallel=settings.data_parallel,
            compiled=settings.compiled,
            race=settings.race,
        )

    def __call__(self, batches: Sequence[Batch], progress: float) -> LossTerms:
        """One update from the micro-batches of one batch. Each micro-batch counts by its share of the images.

        Raises NumericsError (loss or gradient not finite), torch.OutOfMemoryError or Interrupted, the same on
        all ranks. Parameters, buffers and hooks are then as before.
        """
        buffers = _copies(self.model.buffers())
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        context = StepContext(self.model, lambda wanted: self._gradients(batches, wanted), progress)
        try:
            terms = self._accumulate(batches, context)
        except BaseException as error:
            for hook in reversed(self.hooks):
                hook.undo(context)
            _write_back(buffers)
            self.optimizer.zero_grad(set_to_none=True)
            if needs_whole_backward(error):
                raise _reentrant() from error
            raise
        with _final("the optimiser's step"):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            for hook in self._afterwards:
                hook.after_step(context)
        return terms

    def _accumulate(self, batches: Sequence[Batch], context: StepContext) -> LossTerms:
        """The loss terms. Afterwards `.grad` holds what the optimiser needs, the same on all ranks."""
        with shared_faults(self.ranks):
            for hook in self.hooks:
                hook.before_loss(context)
            terms = self._backward(batches)
            if self._checks_early:
                terms, _ = _read(terms)
        with _final("averaging the gradients"):
            self._average()
            return self._check_gradient(terms)

    @property
    def _checks_early(self) -> bool:
        """Whether the loss is looked at before the gradients are averaged or unscaled, which costs a wait.

        Several ranks must agree on it, and an unscaled gradient cannot be unscaled again.
        """
        return self.ranks.world > 1 or self.scaler.is_enabled()

    def _backward(self, batches: Sequence[Batch]) -> LossTerms:
        """Add the gradients of all micro-batches to `.grad`; return the means of loss and parts, detached."""
        images = sum(len(batch.y) for batch in batches)
        totals: list[Tensor] = []
        parts: defaultdict[str, list[Tensor]] = defaultdict(list)
        for batch in batches:
            terms, share = self._terms(batch), len(batch.y) / images
            total = terms.total * share
            self.scaler.scale(total).backward()
            totals.append(total.detach())
            for name, value in terms.parts.items():
                parts[name].append(value.detach() * share)
        means = {name: reduce(torch.add, values) for name, values in parts.items()}
        return LossTerms(reduce(torch.add, totals), means)

    def _terms(self, batch: Batch) -> LossTerms:
        """Objective and regularisers of one micro-batch, with their graph."""
        model = Shared(self.forward)
        terms = self.objective(model, batch)
        if not self.regularizers:
            return terms
        added = {name: regularizer(model, batch) for name, regularizer in self.regularizers.items()}
        total = terms.total + torch.stack(list(added.values())).sum()
        return LossTerms(total, {**terms.parts, **{name: value.detach() for name, value in added.items()}})

    def _gradients(self, batches: Sequence[Batch], wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        """See `StepContext.gradients`."""
        buffers = _copies(self.model.buffers())
        images = sum(len(batch.y) for batch in batches)
        sums = [torch.zeros_like(parameter) for parameter in wanted]
        with shared_faults(self.ranks):
            try:
                for batch in batches:
                    total = self._terms(batch).total * (len(batch.y) / images)
                    grads = torch.autograd.grad(total, list(wanted), allow_unused=True)
                    for into, grad in zip(sums, grads, strict=True):
                        if grad is not None:
                            into.add_(grad)
            finally:
                _write_back(buffers)
        with _final("averaging the gradients"):
            self.ranks.mean(sums)
        return sums

    def _average(self) -> None:
        """Replace gradients and float buffers (BatchNorm statistics) by their means over the ranks."""
        if self.ranks.world == 1:
            return
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:  # the same list on every rank
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.mean(self._present_gradients())
        self.ranks.mean([buffer for buffer in self.model.buffers() if buffer.is_floating_point()])

    def _check_gradient(self, terms: LossTerms) -> LossTerms:
        """Undo the loss scaling and clip the gradient; returns the terms on the CPU.

        Raises NumericsError for a loss or a gradient that is not finite; for a gradient not under fp16 loss
        scaling.
        """
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(self._present_gradients())
        # fp16 gradients overflow now and then: the scaler skips such a step and lowers its scale.
        finite = self.scaler.is_enabled()
        if not self._checks_early:
            terms, finite = _read(terms, norm)
        elif not finite:
            finite = bool(torch.isfinite(norm))
        if not finite:
            raise NumericsError("the gradient is not finite", hint=_LOWER)
        if self.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.grad_clip, norm)
        return terms

    def _present_gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]


def _read(terms: LossTerms, *more: Tensor) -> tuple[LossTerms, bool]:
    """(the terms on the CPU, whether `more` is finite): all numbers come in one copy, for which one waits.

    Raises NumericsError for a loss that is not finite.
    """
    values = [terms.total, *terms.parts.values(), *more]
    numbers = torch.stack([value.to(terms.total.device) for value in values]).cpu()
    total, *rest = numbers.unbind()
    if not bool(torch.isfinite(total)):
        raise NumericsError("the loss is not finite", hint=_LOWER)
    finite = all(bool(torch.isfinite(value)) for value in rest[len(terms.parts) :])
    return LossTerms(total, dict(zip(terms.parts, rest, strict=False))), finite


def _reentrant() -> ConfigError:
    return ConfigError(
        "this objective, regulariser or hook differentiates inside the step, which re-entrant checkpointing"
        " of the network does not bear",
        hint="write checkpoint(..., use_reentrant=False) in the network",
        code="E-MODEL",
    )


def _moves(hook: Hook) -> bool:
    """Whether the hook acts before the loss, and may have moved the weights."""
    return type(hook).before_loss is not Hook.before_loss


def _averages(hook: Hook) -> bool:
    """Whether this kind of hook averages weights."""
    return type(hook).averaged is not Hook.averaged


def _copies(buffers: Iterator[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(buffer, copy of its present content) for each buffer."""
    return [(buffer, buffer.clone()) for buffer in buffers]


def _write_back(copies: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, before in copies:
        buffer.copy_(before)


@contextmanager
def _final(what: str) -> Iterator[None]:
    """Turn out-of-memory inside into ResourceError E-OOM, which ends the run.

    Some weights, or some ranks, may have gone on already, so the step cannot be tried again.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        hint = "lower train.batch_size, or set train.micro_batch; go on with --resume"
        raise ResourceError(f"no memory for {what}", hint=hint, code="E-OOM") from error
