"""Decides whether a configuration may continue a run.

Every key of the schema is classified here. A test fails for a key that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from robustcli.errors import UsageError

#: Dotted key, or a prefix of keys, -> what a change of it means. The longest prefix that matches decides.
#: harmless: may change freely.  compatible: may change, with a warning.  identity: makes another experiment.
CLASSES: dict[str, str] = {
    "name": "harmless",
    "out": "harmless",
    "attacks": "harmless",
    "eval": "harmless",
    "attack": "harmless",
    "defences": "harmless",
    "guard": "harmless",
    "certify": "harmless",
    "thresholds": "harmless",
    "data.workers": "harmless",
    "data.timeout": "harmless",
    "data.storage": "harmless",
    "data.cache": "harmless",
    "data.root": "harmless",
    "data.download": "harmless",
    "device": "compatible",
    "threads": "compatible",
    "deterministic": "compatible",
    "train.epochs": "compatible",
    "train.steps": "compatible",
    "train.minutes": "compatible",
    "train.save_every": "compatible",
    "train.keep": "compatible",
    "train.validate_every": "compatible",
    "train.val_attack": "compatible",
    "train.val_n": "compatible",
    "train.parallel": "compatible",
    "train.micro_batch": "compatible",
    "train.oom": "harmless",
    "train.trackers": "harmless",
    "train.recompute": "compatible",
    "train.compile": "compatible",
    "train.patience": "compatible",
    "seed": "identity",
    "precision": "identity",
    "data": "identity",
    "model": "identity",
    "ball": "identity",
    "objective": "identity",
    "regularizers": "identity",
    "adversary": "identity",
    "search": "identity",
    "train": "identity",
}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a.b": leaf} of a nested mapping; lists and empty mappings are leaves."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix.rstrip("."): tree}
    leaves: dict[str, Any] = {}
    for key, branch in tree.items():
        leaves |= flatten(branch, f"{prefix}{key}.")
    return leaves


def classify(key: str) -> str:
    """harmless, compatible or identity; "" for a key that is not classified: another version's."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        kind = CLASSES.get(".".join(parts[:length]))
        if kind:
            return kind
    return ""


def changed(stored: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (stored, now)} of all leaves that differ; a missing leaf counts as None."""
    old, new = flatten(stored), flatten(now)
    pairs = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: (before, after) for key, (before, after) in pairs.items() if before != after}


def check_resume(
    stored: Mapping[str, Any], now: Mapping[str, Any], override: Sequence[str], warn: Callable[[str], None]
) -> list[str]:
    """Compare two configurations; returns one line for each identity key that was overridden.

    Args:
        stored: the configuration of the run, as a tree.
        now: the present one, as a tree.
        override: keys, or sections of keys, whose change the user allows.
        warn: told of every compatible and every overridden change.

    Raises:
        UsageError: identity keys differ that `override` does not cover; all of them are named.
    """
    refused: list[str] = []
    overridden: list[str] = []
    for key, (old, new) in changed(stored, now).items():
        kind = classify(key)
        difference = f"{key}: {new!r} (the run has {old!r})"
        if kind == "compatible":
            warn(
                f"resuming with {key}: {new!r} instead of {old!r}; "
                "results are no longer those of the uninterrupted run"
            )
        elif kind in ("identity", "") and _covers(override, key):
            overridden.append(difference)
        elif kind in ("identity", ""):
            refused.append(difference)
    if refused:
        keys = " ".join(f"--override-resume {text.partition(':')[0]}" for text in refused)
        raise UsageError(
            f"cannot resume another experiment: {'; '.join(refused)}",
            hint=f"start a new run, or add {keys}",
            code="E-RESUME",
        )
    for text in overridden:
        warn(f"resume overridden: {text}")
    return overridden


def _covers(override: Sequence[str], key: str) -> bool:
    """Whether `override` names the key, or a section that it lies in."""
    return any(key == name or key.startswith(f"{name}.") for name in override)
