"""Names of tensors in a file and in our network, both ways, by patterns such as ``layer{1}.{0}.*``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

_HOLE = re.compile(r"\{([01])\}|\*")
_Rule = tuple[str, str]  # (pattern of the one side, pattern of the other)


class Names:
    """The names of one layout; empty patterns leave all names as they are.

    patterns: as `facts.LayoutFacts` has them; both sides of a pair have the same numbers in the same order.
    """

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self._patterns = dict(patterns) or {"*": "*"}

    def ours(self, name: str) -> str | None:
        """The name in our network, None for a tensor that it has no place for."""
        return _first(self._to_ours, name)

    def theirs(self, name: str) -> str:
        """The name in the file; a name that is not our network's is itself."""
        return _first(self._to_theirs, name) or name

    @cached_property
    def _to_ours(self) -> list[tuple[re.Pattern[str], _Rule]]:
        return [(_compiled(a), (a, b)) for a, b in self._patterns.items()]

    @cached_property
    def _to_theirs(self) -> list[tuple[re.Pattern[str], _Rule]]:
        return [(_compiled(b), (b, a)) for a, b in self._patterns.items()]


def _first(rules: list[tuple[re.Pattern[str], _Rule]], name: str) -> str | None:
    for pattern, (source, target) in rules:
        match = pattern.fullmatch(name)
        if match is not None:
            return _filled(source, target, match)
    return None


def _compiled(pattern: str) -> re.Pattern[str]:
    """``a{1}.*`` as a regular expression: a group for each number and for the rest."""
    parts, at = [], 0
    for hole in _HOLE.finditer(pattern):
        parts += [re.escape(pattern[at : hole.start()]), r"(\d{1,6})" if hole[1] else "(.+)"]
        at = hole.end()
    return re.compile("".join(parts) + re.escape(pattern[at:]))


def _filled(source: str, target: str, match: re.Match[str]) -> str:
    """`target` with the numbers and the rest that `source` matched; each number counts from its own start."""
    starts = [hole[1] for hole in _HOLE.finditer(source)]
    found = iter(zip(starts, match.groups(), strict=True))

    def put(hole: re.Match[str]) -> str:
        start, text = next(found)
        return text if start is None else str(int(text) - int(start) + int(hole[1] or 0))

    return _HOLE.sub(put, target)
