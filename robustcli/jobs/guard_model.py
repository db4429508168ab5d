"""The guarded model of a verb, and where its evidence goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from robustcli.core.types import reject_of
from robustcli.errors import UsageError
from robustcli.evaluation.alarms import state_digest
from robustcli.guard.answer import Guarded
from robustcli.guard.evidence import Keeper
from robustcli.guard.store import EvidenceStore
from robustcli.guard.webhook import ENVIRONMENT, Webhook
from robustcli.models.source import load_model
from robustcli.runtime.device import pick_device

PREFIX = "guard:"


@dataclass(frozen=True)
class Opening:
    """What is opened, and where.

    Args:
        guard: the folder that `guard fit` wrote, with or without `guard:` in front.
        device: of the model.
        store: file or URL of the evidence.
        webhook: address that is told of alarms; "" takes that of the environment, if it has one.
        webhook_image: whether it gets the images too.
    """

    guard: str
    device: str
    store: str
    webhook: str = ""
    webhook_image: bool = False


def open_guard(opening: Opening) -> Guarded:
    """The guarded model in eval mode on its device. Raises as `load_model`; UsageError for another model."""
    reference = opening.guard if opening.guard.startswith(PREFIX) else PREFIX + opening.guard
    model = load_model(reference, device=pick_device(opening.device))
    if reject_of(model) is None:
        raise UsageError(
            "this is no guarded model",
            where=reference,
            hint="`robustcli guard fit` makes one",
            code="E-MODEL",
        )
    return cast(Guarded, model)


def open_keeper(opening: Opening, model: Guarded, say: Callable[[str], None]) -> Keeper:
    """What keeps the evidence of this model. say: told when the webhook does not take alarms."""
    assert isinstance(model, torch.nn.Module)
    url = opening.webhook or os.environ.get(ENVIRONMENT, "")
    webhook = None
    if url:
        webhook = Webhook(url, images=opening.webhook_image, say=say)
    return Keeper(EvidenceStore.open(opening.store, create=True), state_digest(model), webhook)
