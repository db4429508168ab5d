"""What there is to say is said at its first time only."""

from __future__ import annotations

from collections.abc import Callable


def each_once(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say` for a work that is repeated: a text that was said before is left out."""
    heard: set[str] = set()

    def once(text: str) -> None:
        if text not in heard:
            heard.add(text)
            say(text)

    return once
