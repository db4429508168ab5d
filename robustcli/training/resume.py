"""May this configuration continue that run? Every key of the schema is classified; a test fails for one that is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from robustcli.errors import UsageError

#: Longest matching prefix decides. harmless: free. compatible: allowed with a warning. identity: another experiment.
CLASSES: dict[str, str] = {
    "name": "harmless",
    "out": "harmless",
    "attacks": "harmless",
    "eval": "harmless",
    "attack": "harmless",
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
    """{"a.b": leaf}; lists are leaves."""
    if isinstance(tree, Mapping) and tree:
        return {k: v for key, part in tree.items() for k, v in flatten(part, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): tree}


def classify(key: str) -> str:
    """harmless, compatible or identity. Raises KeyError for a key nobody classified."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        found = CLASSES.get(".".join(parts[:length]))
        if found:
            return found
    raise KeyError(f"{key} is not classified in training/resume.py")


def changed(stored: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (stored, now)} of all differing leaves; a missing one counts as None."""
    old, new = flatten(stored), flatten(now)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def check_resume(
    stored: Mapping[str, Any], now: Mapping[str, Any], override: Sequence[str], warn: Callable[[str], None]
) -> list[str]:
    """Compare configurations; returns the identity keys that were overridden.

    Raises:
        UsageError: an identity key differs and is not under any key of `override`; all of them are named.
    """
    refused: list[str] = []
    overridden: list[str] = []
    for key, (old, new) in changed(stored, now).items():
        kind = classify(key)
        if kind == "compatible":
            warn(
                f"resuming with {key}: {new!r} instead of {old!r}; results are no longer those of the uninterrupted run"
            )
        elif kind == "identity":
            allowed = any(key == word or key.startswith(f"{word}.") for word in override)
            (overridden if allowed else refused).append(f"{key}: {new!r} (the run has {old!r})")
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
