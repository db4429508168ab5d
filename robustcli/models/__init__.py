"""Models: every architecture takes normalised input, and `build_model` puts the normalisation in front of it.

One file per architecture, registered in `robustcli.registry.models`. Outside models (torchvision, timm, a user's
factory) go through `build_model` and `load_model` too.
"""

from __future__ import annotations

from robustcli.models.build import build_model, build_plugin
from robustcli.models.info import ModelInfo
from robustcli.models.meta import model_from_meta, model_meta
from robustcli.models.normalised import NormalisedModel, parse_normalize
from robustcli.models.size import check_classes, count_parameters, fingerprint, flops
from robustcli.models.source import load_model

__all__ = [
    "ModelInfo",
    "NormalisedModel",
    "build_model",
    "build_plugin",
    "check_classes",
    "count_parameters",
    "fingerprint",
    "flops",
    "load_model",
    "model_from_meta",
    "model_meta",
    "parse_normalize",
]
