"""A report as markdown that fits into a comment of a pull request."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from robustcli.errors import printable
from robustcli.reporting.page.blocks import (
    Block,
    Bullets,
    Chapter,
    Command,
    Facts,
    Figure,
    Grid,
    Notice,
    Report,
    Section,
    Text,
    Verdict,
)

#: Characters that a comment on GitHub may have, less some room for those who quote it.
LIMIT = 60_000
_SIGNS = {"good": "🟢", "care": "🟡", "bad": "🔴", "none": "⚪"}
_SPECIAL = re.compile(r"([\\*_\[\]>|~#])")
#: Sections that a comment needs least; the first is left out first where there is no room.
_SPARED = ("standards", "examples", "strength", "classes", "threat", "untested", "origin", "limits")


def markdown_of(report: Report, limit: int = LIMIT) -> str:
    """The text, of at most `limit` characters: where there is no room, sections are left out and named."""
    left_out: list[str] = []
    while len(text := _text(report, left_out)) > limit and len(left_out) < len(_SPARED):
        left_out.append(_SPARED[len(left_out)])
    if len(text) <= limit:
        return text
    return f"{text[: limit - 60].rpartition(chr(10))[0]}\n\nThe rest is in report.html.\n"


def _text(report: Report, left_out: Sequence[str]) -> str:
    parts = [f"# {_plain(report.title)}"]
    parts += [_section(section, 2) for section in report.common]
    for chapter in report.chapters:
        parts += _chapter(chapter, left_out, 2 if len(report.chapters) > 1 else 1)
    if left_out:
        parts.append("Sections left out here are in report.html.")
    parts.append(f"<sub>{_plain(report.made)}</sub>")
    return "\n\n".join(parts) + "\n"


def _chapter(chapter: Chapter, left_out: Sequence[str], depth: int) -> list[str]:
    parts = [_verdict(chapter.verdict), _inline(chapter.subject)]
    if depth > 1:
        parts.insert(0, f"{'#' * depth} {_plain(chapter.name)}")
    parts += [_section(one, depth + 1) for one in chapter.sections if one.key not in left_out]
    for part in chapter.parts:
        parts += [f"{'#' * (depth + 1)} {_plain(part.name)}", _verdict(part.verdict), _inline(part.subject)]
    return parts


def _verdict(verdict: Verdict) -> str:
    lines = [
        f"{_SIGNS[verdict.light]} **{verdict.word}** {_inline(verdict.sentence)}",
        _inline(verdict.trust),
    ]
    if verdict.numbers:
        names = " | ".join(_plain(number.name) for number in verdict.numbers)
        values = " | ".join(f"**{_plain(number.value)}**" for number in verdict.numbers)
        about = " | ".join(_plain(number.about) for number in verdict.numbers)
        ruler = " | ".join(["---"] * len(verdict.numbers))
        lines.append(f"| {names} |\n| {ruler} |\n| {values} |\n| {about} |")
    return "\n\n".join(lines)


def _section(section: Section, depth: int) -> str:
    blocks = [text for block in section.blocks if (text := _block(block))]
    return "\n\n".join([f"{'#' * depth} {_plain(section.title)}", *blocks])


def _block(block: Block) -> str:
    return _WRITERS[type(block)](block)


def _grid(grid: Grid) -> str:
    text = grid.table.markdown().rstrip()
    if not grid.folded:
        return text
    return f"<details><summary>{_plain(grid.table.title)}</summary>\n\n{text}\n\n</details>"


def _figure(figure: Figure) -> str:
    """A link to the file. A picture in the page alone is left out."""
    if not figure.file:
        return ""
    return f"[{_plain(figure.picture.title)}]({figure.file}): {_inline(figure.picture.caption)}"


def _facts(facts: Facts) -> str:
    return "\n".join(f"- {_plain(name)}: {_inline(value)}" for name, value in facts.pairs)


def _bullets(bullets: Bullets) -> str:
    return "\n".join(f"- {_inline(item)}" for item in bullets.items)


_WRITERS: dict[type, Callable[[Any], str]] = {
    Text: lambda block: _inline(block.text),
    Bullets: _bullets,
    Facts: _facts,
    Command: lambda block: f"```bash\n{printable(block.text).replace('```', '` ` `')}\n```",
    Grid: _grid,
    Figure: _figure,
    Notice: lambda block: f"- {_SIGNS[block.light]} **{block.word}** {_inline(block.text)}",
}


def _inline(text: str) -> str:
    """A text in which only backticks have a meaning."""
    pieces = printable(text).split("`")
    if len(pieces) % 2 == 0 or "``" in text:  # one has no partner
        return _plain(text)
    return "`".join(piece if i % 2 else _special(piece) for i, piece in enumerate(pieces))


def _plain(text: str) -> str:
    return _special(printable(text)).replace("`", "\\`")


def _special(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text).replace("<", "&lt;")
