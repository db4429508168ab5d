"""What a report is made of. Two writers stand on it: `page.html` and `page.markdown`.

A text is plain. Words between backticks are code in both writers; everything else in it is shown as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from robustcli.errors import printable
from robustcli.reporting.picture import Picture
from robustcli.reporting.tables import Table

#: How far a number is to be trusted. "none": there is no number.
Light = Literal["good", "care", "bad", "none"]


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list. Without items nothing is shown."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and values, such as hashes."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Command:
    """What to type into a shell."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table. folded: it is long, and closed until somebody opens it."""

    table: Table
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A picture. file: where its PNG lies, seen from the report; "" for one that lies in the page alone."""

    picture: Picture
    file: str = ""


@dataclass(frozen=True)
class Notice:
    """A warning or an all-clear, with its word in front: colour alone says nothing."""

    light: Light
    word: str
    text: str


Block = Text | Bullets | Facts | Command | Grid | Figure | Notice


@dataclass(frozen=True)
class Section:
    """One question and its answer. key: stable, for links."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Number:
    """One of the numbers on top: its name, its value, and what it is a share of."""

    name: str
    value: str
    about: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a reader must know in ten seconds.

    Args:
        light: how far to trust it. word: the same in one or two words.
        sentence: what was found.
        numbers: three at most.
        trust: one sentence about reliability.
    """

    light: Light
    word: str
    sentence: str
    numbers: Sequence[Number]
    trust: str


@dataclass(frozen=True)
class Chapter:
    """One run. name: of the run. subject: verb, model and data in a few words. parts: the runs inside it."""

    name: str
    subject: str
    verdict: Verdict
    sections: Sequence[Section]
    parts: Sequence[Chapter] = ()


@dataclass(frozen=True)
class Report:
    """All of it. common: sections about all runs together. made: by which version, when."""

    title: str
    chapters: Sequence[Chapter]
    made: str
    common: Sequence[Section] = ()


def code(name: object) -> str:
    """A name, whatever it holds, as code inside a text."""
    return f"`{printable(str(name)).replace('`', ' ')}`"


def filled(section: Section) -> bool:
    """Whether a section has anything to show."""
    return any(_shows(block) for block in section.blocks)


def _shows(block: Block) -> bool:
    if isinstance(block, Bullets):
        return bool(block.items)
    if isinstance(block, Facts):
        return bool(block.pairs)
    if isinstance(block, Grid):
        return bool(block.table.rows)
    return True
