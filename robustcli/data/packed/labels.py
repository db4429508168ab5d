"""Labels as packed files store them, numbers or names, and the classes that they count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robustcli.data.layout.words import in_order
from robustcli.errors import DataError

_MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Labels:
    """names: of the classes, in the order that numbers count. by_number: whether labels are numbers."""

    names: tuple[str, ...]
    by_number: bool

    @classmethod
    def of(cls, names: Sequence[str] | None, read: Callable[[], Sequence[str]], where: str) -> Labels:
        """How labels are to be understood.

        Args:
            names: of the classes, as a file or `data.classes` lists them; None where nothing does.
            read: labels as text: all of them where `names` is None, else as many as tell numbers from names.
            where: for messages.

        Raises:
            DataError: no label, or a number too large for a class.
        """
        found = read()
        numbers = [text for text in found if text.isascii() and text.removeprefix("-").isdigit()]
        by_number = 2 * len(numbers) >= len(found)  # a damaged label does not make numbers into names
        if names is not None:
            return cls(tuple(names), by_number)
        if not by_number:
            return cls(in_order(set(found)), False)
        highest = max((int(text) for text in numbers if len(text) < 12), default=-1)
        if not 0 <= highest < _MOST_CLASSES:
            what = f"the largest label is {highest}" if found else "no image has a label"
            hint = "labels count the classes from 0, or are their names"
            raise DataError(what, where=where, hint=hint, code="E-CLASS")
        return cls(tuple(str(k) for k in range(highest + 1)), True)

    def numbers(self, texts: Sequence[str | None], classes: Sequence[str]) -> list[int | None]:
        """Place of each label among `classes`, which have all of `names`; None for a label that is none."""
        place = {name: k for k, name in enumerate(classes)}
        if self.by_number:
            known = {str(k): place[name] for k, name in enumerate(self.names)}
        else:
            known = place
        return [None if text is None else known.get(_plain(text, self.by_number)) for text in texts]

    def fault(self, text: str | None, absent: str) -> str:
        """Why a label is none; absent: what is said where none stands."""
        if text is None:
            return absent
        return f"label {text[:80]!r} is none of the {len(self.names)} classes"


def _plain(text: str, number: bool) -> str:
    """007 is 7."""
    if not number or not (text.isascii() and text.isdigit()) or len(text) > 12:
        return text
    return str(int(text))
