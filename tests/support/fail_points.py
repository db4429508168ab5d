"""The moments of a save at which a test may kill it, in their order: the names that `checkpoint.fail_point` is told."""

from __future__ import annotations

FAIL_POINTS = (
    "after-tmp",
    "after-write",
    "after-fsync",
    "after-manifest",
    "after-aside",
    "after-replace",
    "after-pointer",
    "before-prune",
    "after-prune",
)
