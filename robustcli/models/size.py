"""What a model is: parameters, fingerprint, classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from robustcli.errors import ConfigError, DataError
from robustcli.models.contract.probe import images, take
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import NormalisedModel


def count_parameters(model: nn.Module) -> int:
    """Number of scalars in the parameters; a tied one counts once, buffers do not."""
    return sum(p.numel() for p in model.parameters())


def as_json(value: Any) -> Any:
    """`value` as JSON gives it back, with lists for tuples: fingerprints compare equal after a save."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """What must agree before weights are loaded, in JSON types only.

    Keys: arch, params, num_classes, shape, mean, std, and shapes, a SHA-256 over (key, shape, dtype) of the
    state. A foreign module (no NormalisedModel) answers with its class name and the hash.
    """
    rows = sorted((key, list(value.shape), str(value.dtype)) for key, value in model.state_dict().items())
    answer: dict[str, Any] = {
        "arch": getattr(model, "arch", "") or type(model).__qualname__,
        "params": {},
        **dict.fromkeys(("num_classes", "shape", "mean", "std")),
        "shapes": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }
    info = getattr(model, "info", None)
    if isinstance(info, ModelInfo):
        answer |= {"num_classes": info.num_classes, "shape": info.shape, "mean": info.mean, "std": info.std}
        answer["params"] = getattr(model, "params", {})
    return dict(as_json(answer))


def differences(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """``key: expected A, got B`` for each entry of two fingerprints that differs."""
    return [
        f"{key}: expected {expected.get(key)}, got {got.get(key)}"
        for key in sorted({*expected, *got})
        if expected.get(key) != got.get(key)
    ]


def check_classes(
    model_num_classes: int, data_classes: int | Sequence[str], model_classes: Sequence[str] | None = None
) -> None:
    """DataError E-CLASSES (exit 3) unless the head fits the data.

    The number of classes is compared first, then their names where both are known.

    Args:
        model_num_classes: K of the logits.
        data_classes: the data set's number of classes, or their names in label order.
        model_classes: names stored in the checkpoint, None when it has none.
    """
    if isinstance(data_classes, int):
        _check_count(model_num_classes, data_classes)
        return
    _check_count(model_num_classes, len(data_classes), _first_five(data_classes))
    for label, (ours, theirs) in enumerate(zip(model_classes or (), data_classes, strict=False)):
        if ours != theirs:
            raise DataError(
                f"class {label} is {ours!r} in the model and {theirs!r} in the data",
                hint="labels must mean the same: rename or reorder the classes",
                code="E-CLASSES",
            )


def _check_count(expected: int, count: int, names: str = "") -> None:
    if count != expected:
        raise DataError(
            f"the model has {expected} classes, the data have {count}{names}",
            hint="use the data set it was trained on, or train a new head",
            code="E-CLASSES",
        )


def _first_five(names: Sequence[str]) -> str:
    """`` (ant, bee, cat)``, with an ellipsis in place of the sixth and later names; empty without names."""
    if not names:
        return ""
    shown = list(names[:5])
    if len(names) > 5:
        shown.append("…")
    return f" ({', '.join(shown)})"


def probe(model: NormalisedModel) -> None:
    """A few images of the data's shape through a backbone that is not ours: finds and sets its contract.

    Raises ConfigError when it cannot take them, or returns anything but logits [B, K].
    """
    info = model.info
    assert info is not None
    x = images(info.shape, model.mean.device)
    contract, classes = take(model.backbone, model.normalise(x), model.arch)
    if classes != info.num_classes:
        raise ConfigError(
            f"{model.arch} is not a classifier of {info.num_classes} classes: its logits are [B, {classes}]",
            hint="give the last layer as many outputs as the data have classes",
            code="E-MODEL",
        )
    model.contract = contract
