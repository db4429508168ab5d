"""Children of this process that a test may kill."""

from forking import forked, leftovers

__all__ = ["forked", "leftovers"]
