"""Reading checkpoints: proven byte by byte before anything is parsed.

An older checkpoint takes the place of a damaged last one, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from robustcli.errors import CheckpointError
from robustcli.store import manifest as manifests
from robustcli.store import tensorfile
from robustcli.store.manifest import Manifest
from robustcli.store.retention import candidates, pointed, step_of
from robustcli.store.sealed import proven


@dataclass(frozen=True)
class Snapshot:
    """One verified checkpoint in memory. sha256: of its manifest, hence of all its content."""

    path: Path
    step: int
    groups: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]
    sha256: str


def load_checkpoint(path: Path) -> Snapshot:
    """One checkpoint directory, proven byte by byte before it is parsed. A damaged one has no substitute.

    Raises CheckpointError: E-CKPT-MISSING, E-CKPT-HASH (file, expected, got) or E-CKPT-FORMAT.
    """
    manifest = manifests.read(path)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, data in _proven(path, manifest):
        group = manifests.group_name(name)
        groups[group] = tensorfile.decode(data, manifest.aliases.get(group, {}), str(path / name))
    return Snapshot(path, manifest.step, groups, manifest.meta, manifest.sha256)


def verify_checkpoint(path: Path) -> Manifest:
    """Prove sizes and hashes of a directory without building tensors. Raises as `load_checkpoint`."""
    manifest = manifests.read(path)
    for _ in _proven(path, manifest):
        continue
    return manifest


def latest_good(root: Path, warn: Callable[[str], None]) -> Snapshot | None:
    """The checkpoint under `last`, else the newest older one that verifies; None when there never was one.

    Reads only. `warn` is called once when the checkpoint is not the one under `last`.
    Raises CheckpointError when there are checkpoints and none of them verifies: starting over would lose a
    run silently.
    """
    problems: list[str] = []
    for path in _in_order(root, problems):
        try:
            snapshot = load_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            others = ""
            if len(problems) > 1:
                others = f" (+{len(problems) - 1} more)"
            warn(f"falling back to {path.name}: {problems[0]}{others}")
        return snapshot
    if not problems:
        return None
    raise CheckpointError(
        f"no checkpoint is intact: {problems[0]}",
        where=str(root),
        hint="--overwrite starts anew",
        code="E-CKPT-HASH",
    )


def _proven(path: Path, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file after its size and hash were checked."""
    for name, (expected, size) in manifest.files.items():
        yield name, proven(path / name, expected, size)


def _in_order(root: Path, problems: list[str]) -> list[Path]:
    """Checkpoints in the order in which to try them; what is wrong with the pointer is added to `problems`.

    `last` comes first, then older ones from new to old, then later ones from old to new. Without a usable
    pointer the order is from new to old.
    """
    newest_first = candidates(root)
    try:
        name = pointed(root, "last")
    except CheckpointError as error:
        problems.append(str(error))
        return newest_first
    if name is None:
        if newest_first:
            problems.append("there is no pointer 'last'")
        return newest_first
    last = int(name.removeprefix("step-"))
    if last not in map(step_of, newest_first):
        problems.append(f"'last' points to {name}, which is not there")
    older = [path for path in newest_first if step_of(path) <= last]
    later = [path for path in reversed(newest_first) if step_of(path) > last]
    return older + later
