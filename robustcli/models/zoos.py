"""Foreign collections of architectures: which prefix of a name stands for which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from robustcli.models.backbone import Backbone
from robustcli.models.info import ModelInfo
from robustcli.models.timm_zoo import build_timm, timm_classes
from robustcli.models.torchvision_zoo import build_torchvision, torchvision_classes


class Build(Protocol):
    """``NAME`` or ``NAME@WEIGHTS`` -> the network; see `build_torchvision`."""

    def __call__(self, spec: str, info: ModelInfo, *, download: bool, meta: bool) -> Backbone: ...


@dataclass(frozen=True)
class Zoo:
    """One collection. classes: the number of classes of the pretrained weights of ``NAME@WEIGHTS``."""

    name: str
    build: Build
    classes: Callable[[str], int]


_ZOOS = {
    "torchvision:": Zoo("torchvision", build_torchvision, torchvision_classes),
    "timm:": Zoo("timm", build_timm, timm_classes),
}


def split_zoo(name: str) -> tuple[Zoo | None, str]:
    """``torchvision:NAME@WEIGHTS`` -> (torchvision, ``NAME@WEIGHTS``); a name of no zoo -> (None, name)."""
    prefix, colon, spec = name.partition(":")
    zoo = _ZOOS.get(prefix + colon)
    if zoo is None:
        return None, name
    return zoo, spec
