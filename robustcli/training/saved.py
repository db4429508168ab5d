"""What a training run must remember besides the weights, as named tensors and plain JSON."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustcli.errors import CheckpointError
from robustcli.training.step import Step

Groups = dict[str, dict[str, Tensor]]

#: Between a parameter's name and the name of an optimiser slot.
_SEP = "\x1f"


def pack_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as {"<parameter>US<slot>": tensor}, US the ASCII unit separator.

    Learning rates are left out, because the schedule gives them.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    packed: dict[str, Tensor] = {}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if value is not None:
                packed[f"{names[parameter]}{_SEP}{slot}"] = torch.as_tensor(value)
    return packed


def unpack_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor], *, where: str = ""
) -> None:
    """Inverse of `pack_optimizer`.

    Raises CheckpointError for a parameter or a shape that the model does not have.
    """
    parameters = dict(model.named_parameters())
    _check_slots(packed, where)
    optimizer.state.clear()
    for key, value in packed.items():
        name, _, slot = key.partition(_SEP)
        parameter = parameters.get(name)
        if parameter is None or (value.dim() > 0 and value.shape != parameter.shape):
            raise CheckpointError(
                f"optimizer state for {name!r} does not fit this model",
                where=where,
                hint="resume with the configuration of the run",
            )
        if value.dim() > 0:
            # Momentum takes its parameter's memory format, so that a resumed step runs the same kernels.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        optimizer.state[parameter][slot] = value


def _check_slots(packed: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError unless all parameters that have a state have the same slots."""
    slots: dict[str, set[str]] = {}
    for key in packed:
        name, _, slot = key.partition(_SEP)
        slots.setdefault(name, set()).add(slot)
    if len({frozenset(names) for names in slots.values()}) > 1:
        raise CheckpointError(
            "the optimizer state lacks parts",
            where=where,
            hint="the checkpoint is damaged",
            code="E-CKPT-FORMAT",
        )


def step_seed(seed: int, step: int) -> int:
    """Seed of torch's own generator during one step (dropout).

    It depends on seed and step alone: nothing is saved, and a resumed run draws the same numbers.
    """
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63


def pack_run(step: Step, published: nn.Module) -> Groups:
    """All tensors of a run as named groups.

    `model` is what an evaluation should load. Where `model` is an average of the weights, `live` holds the
    trained weights.
    """
    model, optimizer, scaler = step.settings.model, step.settings.optimizer, step.settings.scaler
    groups: Groups = {
        "model": dict(published.state_dict()),
        "optimizer": pack_optimizer(model, optimizer),
    }
    if published is not model:
        groups["live"] = dict(model.state_dict())
    groups["scaler"] = {key: torch.tensor(value) for key, value in scaler.state_dict().items()}
    for k, hook in enumerate(step.descent.hooks):
        groups[f"hook{k}"] = hook.state()
    groups["step"] = step.state()
    return {name: group for name, group in groups.items() if group or name in ("model", "optimizer")}


def unpack_run(step: Step, groups: Groups, *, where: str = "") -> None:
    """Inverse of `pack_run`. Raises CheckpointError for tensors that do not fit model, optimiser or hooks."""
    model, optimizer, scaler = step.settings.model, step.settings.optimizer, step.settings.scaler
    model.load_state_dict(groups.get("live", groups["model"]))
    unpack_optimizer(model, optimizer, groups.get("optimizer", {}), where=where)
    if "scaler" in groups:
        scaler.load_state_dict({key: value.item() for key, value in groups["scaler"].items()})
    for k, hook in enumerate(step.descent.hooks):
        hook.load(groups.get(f"hook{k}", {}))
    step.load(groups.get("step", {}))
