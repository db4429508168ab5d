"""Checkpoints that survive kill -9 at any instruction and never load silently wrong.

    ROOT/step-00001200/{GROUP.safetensors, manifest.json}     one directory per save; the manifest is written
    last ROOT/last, ROOT/best                                      one line each: the name of a step directory

Order of a save: temporary directory in ROOT -> files, each fsynced -> manifest -> rename -> fsync(ROOT) ->
read back and verify -> move the pointers -> prune. So at every moment `last` names a verified directory.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from robustcli.errors import CheckpointError, ResourceError
from robustcli.regular import read_regular
from robustcli.store import manifest as manifests
from robustcli.store import tensorfile
from robustcli.store.atomic import fsync_dir, tmp_name, write_new
from robustcli.store.disk import DISK_FULL, explained, preflight
from robustcli.store.manifest import Manifest
from robustcli.store.retention import (
    ASIDE,
    check_tag,
    point,
    prune,
    remove,
    resolve_checkpoint,
    step_name,
)
from robustcli.store.snapshot import verify_checkpoint

_BLOCK, _OVERHEAD = 4096, 16384  # bytes: a file takes whole blocks; directories and pointers take some more
fail_point: Callable[[str], None] = lambda name: None  # noqa: E731  (tests put a SIGKILL here)


def save_checkpoint(
    root: Path,
    step: int,
    groups: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    *,
    tags: Sequence[str] = ("last",),
    keep: int = 2,
) -> Path:
    """Write `groups` and `meta` as ROOT/step-N, verify it, point `tags` to it, prune; all or nothing.

    Args:
        root: directory of the checkpoints of one run; the caller holds the lock of the run.
        step: optimiser steps done, 0 <= step < 10^18. A step saved before is replaced; the same content is
            not written twice.
        groups: {"model": state_dict, "optimizer": {name: tensor}}; plain tensors of any dtype, shape and
            device. Tied tensors stay tied.
        meta: plain JSON data, finite numbers (tuples come back as lists).
        tags: pointers to move: "last", "best".
        keep: newest checkpoints that stay, >= 2, besides those under a pointer.

    Returns the directory.

    Raises ResourceError E-DISK (after pruning and one retry), E-WRITE, E-VERIFY; NumericsError: NaN or Inf in
    `meta`; ValueError: a bad name, `keep` < 2, or a tensor that cannot be stored. The last good checkpoint is
    untouched.
    """
    if keep < 2:
        raise ValueError(f"keep={keep}: at least 2 checkpoints must stay, one to fall back to")
    final, tags = root / step_name(step), [check_tag(tag) for tag in tags]
    files, document = _encode(step, groups, meta)
    try:
        _publish(final, files, document, tags)
    except ResourceError as error:
        if error.code != DISK_FULL or getattr(error.__cause__, "errno", 0) == errno.EFBIG:
            raise
        _make_room(root)
        _publish(final, files, document, tags)
    fail_point("before-prune")
    prune(root, step, keep)
    with explained(root):
        remove(_aside(final))
    fail_point("after-prune")
    return final


def _encode(
    step: int, groups: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]
) -> tuple[dict[str, bytes], bytes]:
    """(file name -> content, manifest) of a checkpoint."""
    files: dict[str, bytes] = {}
    aliases: dict[str, dict[str, str]] = {}
    for group, tensors in groups.items():
        files[manifests.file_name(group)], aliases[group] = tensorfile.encode(tensors)
    proofs = {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    return files, manifests.encode(Manifest(step, proofs, aliases, dict(meta)))


def _space_needed(files: Mapping[str, bytes], document: bytes) -> int:
    """Bytes on the disk: each file takes whole blocks."""
    blocks = sum(-(-len(data) // _BLOCK) for data in (*files.values(), document))
    return blocks * _BLOCK + _OVERHEAD


def _publish(final: Path, files: Mapping[str, bytes], document: bytes, tags: Sequence[str]) -> None:
    """Write the directory `final`, unless it holds just this, verify it, and point the tags to it."""
    root, need = final.parent, _space_needed(files, document)
    with explained(root, need):
        root.mkdir(exist_ok=True)  # without its parents: a run that was removed is not made again
        if not _holds(final, document):
            preflight(root, need)
            _write(final, files, document)
            _verify(final, document)
        for tag in tags:
            point(root, tag, final.name)
            fail_point("after-pointer")


def _write(final: Path, files: Mapping[str, bytes], document: bytes) -> None:
    """All steps up to the durable rename. Raises OSError; `final` then holds what it held before."""
    root, aside = final.parent, _aside(final)
    tmp = root / tmp_name(final.name + "-")
    try:
        tmp.mkdir()
        fail_point("after-tmp")
        for name, data in files.items():
            write_new(tmp / name, data, fail_point)
        write_new(tmp / manifests.NAME, document)
        fsync_dir(tmp)
        fail_point("after-manifest")
        if os.path.lexists(final):
            remove(aside)
            os.replace(final, aside)
            fail_point("after-aside")
        os.replace(tmp, final)
    except BaseException:
        remove(tmp)
        if os.path.lexists(aside) and not os.path.lexists(final):
            os.replace(aside, final)
        raise
    fail_point("after-replace")
    fsync_dir(root)


def _verify(final: Path, document: bytes) -> None:
    """Raises ResourceError E-VERIFY when the disk gives back other bytes; `final` then has the old ones."""
    if _holds(final, document):
        return
    remove(final)
    aside = _aside(final)
    if os.path.lexists(aside):
        os.replace(aside, final)
    raise ResourceError(
        "the checkpoint just written reads back differently",
        where=str(final),
        hint="check the disk",
        code="E-VERIFY",
    )


def _aside(final: Path) -> Path:
    """Where a directory waits while a new save of the same step takes its place."""
    return final.with_name(ASIDE + final.name)


def _holds(path: Path, document: bytes) -> bool:
    """Whether `path` is an intact checkpoint with exactly this manifest, read back from the disk."""
    try:
        if read_regular(path / manifests.NAME, manifests.MAX_BYTES) != document:
            return False
        verify_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _make_room(root: Path) -> None:
    """Remove the checkpoints that serve as fallback, but only when `last` itself is proven."""
    try:
        last = verify_checkpoint(resolve_checkpoint(root, "last"))
    except CheckpointError:
        return
    prune(root, last.step, 0)
