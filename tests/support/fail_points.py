"""The moments of a save at which a test may kill it, in order, as `checkpoint.fail_point` names them."""

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
