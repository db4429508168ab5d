"""Foreign collections of architectures: which prefix of a name stands for which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from robustcli.models.backbone import Backbone
from robustcli.models.hf_zoo import build_hf, hf_classes
from robustcli.models.info import ModelInfo
from robustcli.models.timm_zoo import build_timm, timm_classes
from robustcli.models.torchvision_zoo import build_torchvision, torchvision_classes


class Build(Protocol):
    """``NAME`` or ``NAME@WEIGHTS`` -> the network; see `build_torchvision`."""

    def __call__(self, spec: str, info: ModelInfo, *, download: bool, meta: bool) -> Backbone: ...


class Classes(Protocol):
    """``NAME@WEIGHTS`` -> number of classes of the pretrained weights."""

    def __call__(self, spec: str, *, download: bool) -> int: ...


@dataclass(frozen=True)
class Zoo:
    """One collection.

    Args:
        classes: the number of classes of the pretrained weights of ``NAME@WEIGHTS``.
        always: whether every name stands for pretrained weights, and not ``NAME@WEIGHTS`` alone.
    """

    name: str
    build: Build
    classes: Classes
    always: bool = False

    def pretrained(self, spec: str) -> bool:
        """Whether this name stands for pretrained weights."""
        return self.always or "@" in spec


_ZOOS = {
    "torchvision:": Zoo("torchvision", build_torchvision, torchvision_classes),
    "timm:": Zoo("timm", build_timm, timm_classes),
    "hf:": Zoo("hf", build_hf, hf_classes, always=True),
}


def split_zoo(name: str) -> tuple[Zoo | None, str]:
    """``torchvision:NAME@WEIGHTS`` -> (torchvision, ``NAME@WEIGHTS``); a name of no zoo -> (None, name)."""
    prefix, colon, spec = name.partition(":")
    zoo = _ZOOS.get(prefix + colon)
    if zoo is None:
        return None, name
    return zoo, spec
