"""What training asks of a network that is not ours: logits in train mode too, and weights with a gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.modes import in_mode, undisturbed
from robustcli.core.slope import needs_whole_backward
from robustcli.errors import ConfigError, RobustCliError, out_of_memory
from robustcli.models.architectures.blocks import seeded
from robustcli.models.complaint import first_line
from robustcli.models.contract.probe import explained, images, take
from robustcli.models.contract.reading import Contract
from robustcli.models.normalised import NormalisedModel

_HEADS = (
    "in train mode the network returns several outputs: the first is trained as its logits,"
    " and auxiliary heads get no loss"
)
_LAYOUT = (
    "the network does not run on channels-last images ({}): it is trained in PyTorch's usual memory layout;"
    " .reshape or .flatten(1) in the place of .view is faster"
)


_OVERRUN = (
    "in channels-last layout oneDNN computes strided 1x1 convolutions of fewer than 8 channels wrongly:"
    " the network is trained in PyTorch's usual memory layout"
)
_FEWEST = 8


def keeps_channels_last(model: nn.Module) -> bool:
    """Whether a model may be given channels-last images; a module without a contract may."""
    contract = getattr(model, "contract", None)
    return not overruns(model) and (contract.channels_last if isinstance(contract, Contract) else True)


def overruns(model: nn.Module) -> bool:
    """Whether a channels-last backward pass of a model on the CPU would write outside its memory.

    oneDNN does so for a strided 1x1 convolution of fewer than 8 channels (torch 2.11 and 2.15, AVX2). The
    process then ends at any later moment, so the fault cannot be looked for by trying.
    """
    return any(
        isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < _FEWEST
        and layer.weight.device.type == "cpu"
        for layer in model.modules()
    )


def fit_to_train(model: NormalisedModel, *, channels_last: bool, say: Callable[[str], None]) -> None:
    """Settle how a foreign network is trained: where its logits are in train mode, and its memory layout.

    Args:
        model: on its device, its contract taken in eval mode; it gets the contract of training, and
            channels-last weights where it runs on them.
        channels_last: whether that layout is wanted.
        say: told once what is done otherwise than asked.

    Raises:
        ConfigError E-MODEL: nothing can be trained, the weights have half precision, or the answer in train
        mode is not logits.
    """
    assert model.info is not None
    x = images(model.info.shape, model.mean.device)
    contract, classes = take(model.backbone, model.normalise(x), model.arch)
    model.contract = replace(contract, heads=True)  # a tuple in train mode is read from now on
    _check_weights(model)
    model.contract = replace(contract, heads=_check_train_mode(model, x, classes))
    if model.contract.heads:
        say(_HEADS)
    if channels_last and not is_overrun(model, say):
        _lay_out(model, x, say)


def is_overrun(model: nn.Module, say: Callable[[str], None]) -> bool:
    """`overruns`, and `say` is told."""
    if overruns(model):
        say(_OVERRUN)
        return True
    return False


def _check_weights(model: NormalisedModel) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        count = sum(1 for _ in model.parameters())
        what = f"all {count} parameters are frozen (requires_grad=False)" if count else "it has no parameters"
        raise ConfigError(
            f"{model.arch} cannot be trained: {what}",
            hint="let the factory return a network with requires_grad parameters; eval measures it as it is",
            code="E-MODEL",
        )
    low = {p.dtype for p in trained} - {torch.float32, torch.float64}
    if low:
        kind = str(next(iter(low))).removeprefix("torch.")
        raise ConfigError(
            f"{model.arch} cannot be trained: its weights are {kind}, in which small updates are lost",
            hint="return net.float(); precision=bf16 or fp16 computes in half precision on float32 weights",
            code="E-MODEL",
        )


def _check_train_mode(model: NormalisedModel, x: Tensor, classes: int) -> bool:
    """Whether the network gives a tuple in train mode. Raises ConfigError where it cannot be trained so."""
    with seeded(0), undisturbed(model), in_mode(model, True), torch.enable_grad():
        out = _answer(model, x)
        logits = model.contract.read(out, training=True, rows=len(x))
        reached = _reached(logits, model)
    if logits.shape[1] != classes:
        raise ConfigError(
            f"{model.arch} gives {classes} classes in eval mode and {logits.shape[1]} in train mode",
            hint="return the same logits in both modes",
            code="E-MODEL",
        )
    if not reached:
        raise ConfigError(
            f"{model.arch} cannot be trained: its logits do not depend on a parameter with a gradient",
            hint="its forward must not run under torch.no_grad or detach",
            code="E-MODEL",
        )
    several = isinstance(out, (tuple, list)) and not hasattr(out, "logits")
    if several:
        _check_heads(model, x, reached)
    return several


def _check_heads(model: NormalisedModel, x: Tensor, reached: set[str]) -> None:
    """Raises ConfigError where eval mode uses weights that the first output of train mode does not reach."""
    with seeded(0), undisturbed(model), in_mode(model, False), torch.enable_grad():
        used = _reached(model(x), model)
    lost = sorted(used - reached)
    if lost:
        raise ConfigError(
            f"{model.arch} returns a tuple in train mode, and the first of it does not depend on"
            f" {', '.join(lost[:3])}, which eval mode uses: they would stay untrained",
            hint="return the same logits in both modes, such as the mean of the heads",
            code="E-MODEL",
        )


def _reached(logits: Tensor, model: nn.Module) -> set[str]:
    """The names of the parameters on which the logits depend."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not logits.requires_grad:
        return set()
    try:
        grads = torch.autograd.grad(logits.sum(), list(trained.values()), allow_unused=True)
    except RuntimeError as error:
        if not needs_whole_backward(error):
            raise
        return set(trained)  # such a graph cannot be asked
    return {name for name, grad in zip(trained, grads, strict=True) if grad is not None}


def _answer(model: NormalisedModel, x: Tensor) -> Any:
    """What the network answers in train mode. Raises ConfigError for an exception of the user's code."""
    try:
        return model.contract.call(model.backbone, model.normalise(x))
    except RobustCliError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        hint = "call net.train() and try it on a batch of 3 images"
        raise explained(error, f"{model.arch} fails in train mode", hint) from error


def _lay_out(model: NormalisedModel, x: Tensor, say: Callable[[str], None]) -> None:
    """Bring the weights into channels-last layout, if the network then runs in both modes; else back."""
    fault = ""
    try:
        model.to(memory_format=torch.channels_last)
        laid_out = x.contiguous(memory_format=torch.channels_last)
        with seeded(0), undisturbed(model), torch.no_grad():
            for training in (False, True):
                with in_mode(model, training):
                    model(laid_out)
    except Exception as error:  # whatever a layout breaks, the usual one can do: it ran above
        if out_of_memory(error):
            raise
        fault = f"{type(error).__name__}: {first_line(error, 80)}"
    if fault:
        model.to(memory_format=torch.contiguous_format)
        model.contract = replace(model.contract, channels_last=False)
        say(_LAYOUT.format(fault))
