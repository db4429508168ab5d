"""Keeps a repeated work from repeating its messages."""

from __future__ import annotations

from collections.abc import Callable


def each_once(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say` without repetitions: a text is passed on the first time only."""
    heard: set[str] = set()

    def once(text: str) -> None:
        if text not in heard:
            heard.add(text)
            say(text)

    return once
