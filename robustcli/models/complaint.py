"""What code from outside says when it fails."""

from __future__ import annotations


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of the error's text, at most `most` characters of it; empty when it has no text."""
    lines = str(error).splitlines() or [""]
    return lines[0][:most]
