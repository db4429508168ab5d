"""How a checkpoint says which network it holds: shared by whoever saves and whoever loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from robustcli.config.spec import PluginConfig
from robustcli.errors import CheckpointError, ConfigError, RobustCliError
from robustcli.foreign import PLUGIN
from robustcli.models.build import build_model
from robustcli.models.factory import build_plugin
from robustcli.models.front import put_in_front
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import NormalisedModel
from robustcli.models.plugin import record_of
from robustcli.models.size import as_json, differences, fingerprint


def model_meta(model: NormalisedModel, classes: Sequence[str]) -> dict[str, Any]:
    """The model's part of a checkpoint's manifest, in JSON types only.

    ``{"model": {"arch", "params", "info"}, "fingerprint", "classes"}``; of a user's network also
    ``model.plugin``, its file, factory and hash; of one with something in front ``model.front``, its name and
    parameters.

    Args:
        model: made by `build_model` or `build_plugin`.
        classes: names of the classes in label order, K of them.

    Raises ValueError when the model has no `info` (a foreign module) or K does not fit.
    """
    if model.info is None or not model.arch:
        raise ValueError("only a model made by build_model can be described")
    if len(classes) != model.info.num_classes:
        raise ValueError(f"{len(classes)} class names for {model.info.num_classes} classes")
    described = {"arch": model.arch, "params": model.params, "info": model.info.as_dict()}
    if model.plugin is not None:
        described["plugin"] = model.plugin.model_dump()
    if model.front_spec is not None:
        described["front"] = model.front_spec
    return {
        "model": as_json(described),
        "fingerprint": fingerprint(model),
        "classes": [str(name) for name in classes],
    }


def model_from_meta(
    meta: Mapping[str, Any], *, plugin: str | None = None, where: str = ""
) -> NormalisedModel:
    """The network that `model_meta` described, not yet trained, with its class names.

    The caller loads its weights.

    Args:
        meta: a manifest's meta; other keys are ignored.
        plugin: ``file.py:factory``, needed when the network is a user's: a checkpoint alone never runs code.
        where: the checkpoint's path, for messages.

    Raises:
        CheckpointError: E-CKPT-META for a damaged description, E-CKPT-ARCH when the network built now is not
        the one described (its code changed), or when a plugin is needed.
    """
    arch, params, info, classes = _read(meta, where)
    if arch.startswith(PLUGIN):
        plugin = _required(plugin, arch, _recorded(meta, where), where)
        model = _fronted(_restored(build_plugin(plugin, params, info, seed=0), info), meta, where)
        _compare(meta, model, where)
    else:
        plan = _fronted(_restored(_build(arch, params, info, where, meta=True), info), meta, where)
        _compare(meta, plan, where)  # before memory is taken for the weights
        model = _fronted(_restored(_build(arch, params, info, where), info), meta, where)
    model.classes = classes
    return model


def _recorded(meta: Mapping[str, Any], where: str) -> PluginConfig | None:
    """The user's code that made the network; None in a checkpoint that does not say."""
    stored = meta["model"].get("plugin")
    try:
        return None if stored is None else PluginConfig.model_validate(stored)
    except ValidationError as error:
        raise _unclear("model.plugin is no record of a file, a factory and a hash", where) from error


def _required(plugin: str | None, arch: str, recorded: PluginConfig | None, where: str) -> str:
    """The user's code that is given. Raises CheckpointError when it is missing or another."""
    if plugin is None:
        spec = f"FILE.py:{arch.removeprefix(PLUGIN)}" if recorded is None else recorded.spec
        raise CheckpointError(
            f"the checkpoint holds a user's model ({arch})",
            where=where,
            hint=f"pass --plugin {spec}",
            code="E-CKPT-ARCH",
        )
    if recorded is not None and not recorded.same_code(given := record_of(plugin)):
        raise CheckpointError(
            f"the checkpoint's network was made by {recorded.label}, and --plugin is {given.label}",
            where=where,
            hint="give the file as it was then, or take the weights alone: "
            f"--model {where}/model.safetensors",
            code="E-CKPT-ARCH",
        )
    return plugin


def _build(
    arch: str, params: dict[str, Any], info: ModelInfo, where: str, *, meta: bool = False
) -> NormalisedModel:
    try:
        return build_model(arch, params, info, seed=0, meta=meta)
    except ConfigError as error:
        raise CheckpointError(
            f"the checkpoint describes a model that cannot be built: {error.what}",
            where=where,
            code="E-CKPT-META",
        ) from error


def _fronted(model: NormalisedModel, meta: Mapping[str, Any], where: str) -> NormalisedModel:
    """`model` with what stood in front of it. Raises CheckpointError for what cannot be built."""
    front = meta["model"].get("front")
    if front is None:
        return model
    try:
        put_in_front(model, str(front["name"]), dict(front["params"]), seed=0)
    except (KeyError, TypeError, ValueError) as error:
        raise _unclear("model.front is no name with parameters", where) from error
    except ConfigError as error:
        raise _unclear(f"what stands in front of the model cannot be built: {error.what}", where) from error
    return model


def _compare(meta: Mapping[str, Any], model: NormalisedModel, where: str) -> None:
    expected, got = meta.get("fingerprint"), fingerprint(model)
    if not isinstance(expected, Mapping):
        raise CheckpointError(
            "the checkpoint has no fingerprint of its model", where=where, code="E-CKPT-META"
        )
    faults = differences(_with_later(expected, meta["model"]["params"], got), got)
    if faults:
        raise CheckpointError(
            f"the checkpoint holds another network: {'; '.join(faults[:5])}",
            where=where,
            hint="its code or its file changed since it was saved",
            code="E-CKPT-ARCH",
        )


def _with_later(
    expected: Mapping[str, Any], described: Mapping[str, Any], got: Mapping[str, Any]
) -> dict[str, Any]:
    """The stored fingerprint, with parameters that a later version added.

    Their defaults mean what the network was before.
    """
    stored = expected.get("params")
    if not isinstance(stored, Mapping):
        return dict(expected)
    later = {key: v for key, v in got["params"].items() if key not in stored and key not in described}
    return {**expected, "params": {**stored, **later}}


def _restored(model: NormalisedModel, info: ModelInfo) -> NormalisedModel:
    """`model` with the stored normalisation, which may differ from torchvision's after fine-tuning."""
    model.info = info
    model.set_normalisation(info.mean, info.std)
    return model


def _read(meta: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any], ModelInfo, tuple[str, ...]]:
    """arch, params, info, classes; CheckpointError E-CKPT-META when one is missing or of the wrong type."""
    try:
        described, classes = meta["model"], meta["classes"]
        arch, params, info = described["arch"], described["params"], ModelInfo(**described["info"])
        if not (
            isinstance(arch, str)
            and isinstance(params, dict)
            and all(isinstance(name, str) for name in classes)
            and len(classes) == info.num_classes
        ):
            raise ValueError("a field has the wrong type or length")
    except KeyError as error:
        raise _unclear(f"missing {error}", where) from error
    except (TypeError, ValueError, RobustCliError) as error:
        raise _unclear(str(error), where) from error
    return arch, params, info, tuple(classes)


def _unclear(fault: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint does not say which model it holds: {fault}", where=where, code="E-CKPT-META"
    )
