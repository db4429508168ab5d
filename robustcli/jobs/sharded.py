"""The header of an evaluation's shards: all that their verdicts depend on.

Shards with different headers belong to different evaluations.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from robustcli.assembly.rows import hashes_of
from robustcli.assembly.setting import Setting
from robustcli.evaluation.header import Header
from robustcli.evaluation.plan import EvalPlan
from robustcli.records.alarm import Alarm
from robustcli.runtime.seed import PACKAGE, hash_tree

_JUDGING = ("attacks", "core", "defences", "evaluation", "models")  # the source that a verdict depends on
_KNOWN = (
    "torch",
    "torchvision",
    "timm",
    "robustcli",
)  # their versions are in env.json; ours is in the code hash


def header_of(
    setting: Setting, model: nn.Module, plan: EvalPlan, ids: Tensor, alarms: Sequence[Alarm]
) -> Header:
    """The header: model, data, source of the judging code, final plan, and samples `ids`, int64 [n]."""
    config, data, hashes = setting.config, setting.data, hashes_of(setting, model)
    about = {
        "data": data.name,
        "split": config.eval.split,
        "model": config.model.label,
        "classes": list(data.classes),
        "hashes": hashes,
    }
    return Header.of(
        plan,
        ids,
        size=config.eval.shard_size,
        about=about,
        alarms=[alarm.to_json() for alarm in alarms],
        model=f"{hashes['model']} {forward_digest(model)}",
        data=f"{data.digest} {config.eval.split}",
        code="-".join(hash_tree(PACKAGE / name)[:16] for name in _JUDGING),
    )


def forward_digest(model: nn.Module) -> str:
    """Hash of a model's structure and of the source of its modules; its weights do not tell these."""
    digest = hashlib.sha256(repr(model).encode())
    kinds = {type(module) for module in model.modules()}
    for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        if kind.__module__.partition(".")[0] not in _KNOWN:
            digest.update(_source(kind))
    return digest.hexdigest()[:16]


def _source(kind: type) -> bytes:
    """The source file of a class; b"" for one that has none, which is hashed by its name alone."""
    try:
        return Path(inspect.getsourcefile(kind) or "").read_bytes()
    except (TypeError, OSError):
        return b""
