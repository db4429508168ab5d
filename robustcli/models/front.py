"""What is trained in front of a classifier that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from robustcli import registry
from robustcli.errors import ConfigError
from robustcli.facts import DefenceFacts
from robustcli.models.defended import make_defence
from robustcli.models.normalised import NormalisedModel


def put_in_front(
    model: NormalisedModel, name: str, params: Mapping[str, Any], *, seed: int, path: str = "train.front"
) -> None:
    """Build a registered purifier for the images of `model`, and put it in front of it, on its device.

    Args:
        model: a classifier that knows its shape. One that has this purifier already keeps it, weights too.
        name, params: of the purifier; what is missing has its default.
        seed: of its initial weights.
        path: where they were written, for messages.

    Raises ConfigError: an unknown name or parameter, no purifier with a network of its own, or another
    purifier in front of the model.
    """
    info = model.info
    assert info is not None, "only a model that knows its shape is trained"
    with torch.device(model.mean.device if model.mean.is_meta else "cpu"):
        made = make_defence("front", name, params, info.shape, info.num_classes, seed=seed, path=path)
    if not _can(made.facts):
        can = [one.name for one in registry.defences if _can(one.facts)]
        raise ConfigError(
            f"{name!r} has no network of its own to train in front of the model",
            where=path,
            hint=f"take {' or '.join(can)}",
        )
    spec = {"name": name, "params": dict(made.params)}
    if model.front is None:
        model.put_in_front(made.module.to(model.mean.device), spec)
    elif model.front_spec != spec:
        raise ConfigError(
            f"another {(model.front_spec or {}).get('name')} stands in front of this model",
            where=path,
            hint="name the model behind it, or the same parameters to train it further",
        )


def _can(facts: DefenceFacts) -> bool:
    return facts.kind == "purifier" and facts.fit == "training"
