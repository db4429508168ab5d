"""The guarded model of a verb, and where its evidence goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from robustcli.config.spec import GUARD
from robustcli.guard.answer import Guarded
from robustcli.guard.evidence import Keeper
from robustcli.guard.reference import reference_of
from robustcli.guard.store import EvidenceStore, Limits, address
from robustcli.guard.webhook import ENVIRONMENT, Webhook
from robustcli.models.guarded import GuardedModel
from robustcli.models.source import load_model
from robustcli.runtime.device import pick_device
from robustcli.store.latest import resolve_run


@dataclass(frozen=True)
class Opening:
    """What is opened, and where.

    Args:
        guard: the folder that `guard fit` wrote, with or without `guard:` in front.
        plugin: `FILE.py:factory` that makes a network of the guard; None where there is no such network.
        device: of the model.
        store: file or URL of the evidence.
        webhook: address that is told of alarms; "" takes that of the environment, if it has one.
        webhook_image: whether it gets the images too.
        store_mb: MB of images that the store may hold. store_days: how long it holds them.
    """

    guard: str
    device: str
    store: str
    webhook: str = ""
    webhook_image: bool = False
    plugin: str | None = None
    store_mb: float = 1024.0
    store_days: float = 90.0

    @property
    def place(self) -> str:
        """The store as messages name it."""
        return address(self.store)

    @property
    def limits(self) -> Limits:
        """What the store may hold."""
        return Limits(bytes=int(self.store_mb * 1e6), days=self.store_days)

    @property
    def reference(self) -> str:
        """The guard as a model is named."""
        return self.guard if self.guard.startswith(GUARD) else GUARD + self.guard


def open_guard(opening: Opening) -> Guarded:
    """The guarded model in eval mode on its device. Raises as `load_model`."""
    device = pick_device(opening.device)
    return cast(Guarded, load_model(opening.reference, plugin=opening.plugin, device=device))


def open_keeper(opening: Opening, model: Guarded, say: Callable[[str], None]) -> Keeper:
    """What keeps the evidence of this model, and what its guard was fitted on, for `guard status`.

    say: told when the webhook does not take alarms.
    """
    url = opening.webhook or os.environ.get(ENVIRONMENT, "")
    webhook = None
    if url:
        webhook = Webhook(url, images=opening.webhook_image, say=say)
    store = EvidenceStore.open(opening.store, create=True, limits=opening.limits)
    if isinstance(model, GuardedModel):
        reference = reference_of(resolve_run(Path(opening.guard.removeprefix(GUARD))))
        if reference is not None:
            store.remember(model.sha256, reference.to_json())
    return Keeper(store, model.sha256, webhook)
