"""A few images through a network that is not ours: its contract, or the error that explains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.modes import frozen, undisturbed
from robustcli.errors import ConfigError, RobustCliError, out_of_memory
from robustcli.foreign import foreign_fault
from robustcli.models.architectures.blocks import seeded
from robustcli.models.complaint import first_line
from robustcli.models.contract.reading import Contract, found, kind_of, logits_of
from robustcli.models.contract.refusal import refused, refused_probability

#: What an error says that another size or number of channels may mend.
_SHAPE = re.compile("size|shape|channel|height|width|dimension", re.IGNORECASE)
_ROWS = 3  # more than one, so that a batch that is not kept shows
_RESHAPING = ("View", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Select", "Slice", "ToCopy", "Alias", "T")


def images(shape: Sequence[int], device: torch.device) -> Tensor:
    """A few random images [3, C, H, W] in [0, 1] of this shape, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(_ROWS, *shape, generator=generator).to(device)


def take(net: nn.Module, x: Tensor, name: str) -> tuple[Contract, int]:
    """The contract of a network in eval mode, and its number of classes K.

    Nothing of the network is changed (`core.untouched`), and no gradient or random generator either.

    Args:
        net: the network.
        x: images [B, C, H, W], B >= 2, as it will be given them.
        name: what messages call it.

    Raises:
        ConfigError: it cannot take such images, or what it returns is not logits (E-MODEL).
    """
    with seeded(0), undisturbed(net), frozen(net):
        contract, out = _first_answer(net, x, name)
        logits = logits_of(out, training=False, rows=len(x))
        contract = replace(contract, kind=kind_of(out), one_logit=logits.dim() == 1 or logits.shape[1] == 1)
        contract = replace(contract, squeezed=_squeezed(net, x, contract, logits))
        if not x.is_meta:
            contract = _with_gradient(net, x, name, contract)
    return contract, 2 if contract.one_logit else logits.shape[1]


def _first_answer(net: nn.Module, x: Tensor, name: str) -> tuple[Contract, Any]:
    """The answer in the first type of pixels that the network takes: float32, else that of its weights."""
    fault: Exception | None = None
    for dtype in (None, *_other_types(net)):
        given = x.clone() if dtype is None else x.to(dtype)
        before = given.clone()
        try:
            with torch.no_grad():
                out = net(given)
        except RobustCliError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            fault = fault or error
            continue
        return Contract(dtype=dtype, writes=not (x.is_meta or torch.equal(given, before))), out
    assert fault is not None
    count = f"{len(x)} images of {'x'.join(map(str, x.shape[1:]))}"
    hint = f"call net.eval() and try it on {count}"
    if _SHAPE.search(str(fault)):
        hint = f"set data.size, {_other_channels(x.shape[1])}or choose another model"
    raise explained(fault, f"{name} cannot take {count}", hint) from fault


def _squeezed(net: nn.Module, x: Tensor, contract: Contract, logits: Tensor) -> int:
    """`Contract.squeezed`, from batches of two images and of one; logits: the answer to all of x.

    Raises ConfigError where the first axis of the answer is not the batch: [K, B] passes for [B, K] at B = K.
    A network that fails on so few images may do on more.
    """
    width = logits[0].numel()
    for rows in (2, 1):
        try:
            with torch.no_grad():
                out = contract.call(net, x[:rows])
        except Exception as error:
            if out_of_memory(error):
                raise
            return 0
        few = logits_of(out, training=False, rows=rows, squeezed=width)
        if few[0].numel() != width:
            raise refused(out, few, rows, training=False)
        answer = found(out, False)
    assert answer is not None
    return width if answer.dim() < logits.dim() else 0


def _other_channels(channels: int) -> str:
    """The key that gives grey images three channels, or turns colour into grey."""
    return {1: "data.channels=3 for a network of colour, ", 3: "data.channels=1 for one of grey, "}.get(
        channels, ""
    )


def explained(error: Exception, what: str, hint: str) -> ConfigError:
    """The error for a network that fails on the first images: E-PLUGIN with its line in a user's file."""
    users = foreign_fault(error)
    return ConfigError(
        f"{what}: {type(error).__name__}: {first_line(error)}",
        where="" if users is None else users.where,
        hint=hint,
        code="E-MODEL" if users is None else "E-PLUGIN",
    )


def _other_types(net: nn.Module) -> list[torch.dtype]:
    """The floating types of the weights, float32 left out, in the order in which they come."""
    tensors = [*net.parameters(), *net.buffers()]
    kinds = dict.fromkeys(tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return [dtype for dtype in kinds if dtype is not torch.float32]


def _with_gradient(net: nn.Module, x: Tensor, name: str, contract: Contract) -> Contract:
    """The contract with what one backward pass to the images needs.

    That the network has no gradient is no fault here: the evaluation says so, and searches without one.
    """
    point = x.detach().clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = contract.ask(net, point.clone())
            if contract.one_logit and _ends_in_sigmoid(logits):
                raise refused_probability(name)
            torch.autograd.grad(logits.sum(), point, allow_unused=True)
    except RuntimeError as error:
        if "cudnn RNN backward" in str(error):
            return replace(contract, cudnn=False)
    return contract


def _ends_in_sigmoid(logits: Tensor) -> bool:
    """Whether the last operation before the two classes were made of one output is a sigmoid."""
    node: Any = logits.grad_fn
    while node is not None:
        if node.name().startswith("Sigmoid"):
            return True
        arithmetic = node.name().startswith(("Cat", "Neg", "Div"))  # (-z/2, z/2)
        if not arithmetic and not node.name().startswith(_RESHAPING):
            return False
        node = next((before for before, _ in node.next_functions if before is not None), None)
    return False
