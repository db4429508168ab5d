"""Scalars of a config: what a plain YAML word means, and the four value types Number, Int, Flag and Text.

YAML 1.1 turns `1e-3` into text, `010` into 8, `1:30` into 90 and `no` into False. Here a plain word is null,
true, false, a decimal number, or itself. Where a number is wanted and the word is none, the error says why.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from robustcli.config.wording import shown, with_hint

_DECIMAL = r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(_DECIMAL)
_FRACTION = re.compile(rf"({_DECIMAL})(?: ?/ ?({_DECIMAL}))?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_FLAG_HINTS = {
    **dict.fromkeys(("yes", "on", "y", "true", "1"), "write true"),
    **dict.fromkeys(("no", "off", "n", "false", "0"), "write false"),
}
_DIGITS = 64  # longer numbers are mistakes, and int() refuses very long ones with a ValueError of its own
INT_LIMIT = 2**63

Scalar: TypeAlias = "str | int | float | bool | None"


def resolve_plain(text: str) -> Scalar:
    """The value of an unquoted word: null, bool, decimal int, finite decimal float, else `text` itself."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _DIGITS:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _FLOAT.fullmatch(text):
        return text
    value = float(text)
    if math.isfinite(value) and not _vanished(text, value):
        return value
    return text


def parse_number(value: Any) -> float:
    """A finite float from an int, a float, or text such as `8/255`, `0.031`, `1e-3`, `.5`.

    Raises ValueError; a bool is refused as well.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected a number such as 8/255, 0.03 or 1e-3, got {shown(value)}")
    try:
        number = _fraction(value.strip()) if isinstance(value, str) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, got {shown(value)}")
    return number


def _fraction(text: str) -> float:
    if len(text) > 2 * _DIGITS or (match := _FRACTION.fullmatch(text)) is None:
        what = f"expected a number such as 8/255, 0.03 or 1e-3, got {shown(text)}"
        raise ValueError(with_hint(what, _why_no_number(text)))
    over, under = match.group(1), match.group(2) or "1"
    top, bottom = float(over), float(under)
    if bottom == 0.0:
        raise ValueError(f"division by zero in {shown(text)}")
    number = top / bottom
    if _vanished(over, top) or (number == 0.0 and top != 0.0):
        raise ValueError(f"{shown(text)} is too close to zero for a float")
    return number


def _vanished(text: str, value: float) -> bool:
    """A non-zero literal that underflowed to 0: it must not pass for a zero."""
    return value == 0.0 and re.search("[1-9]", re.split("[eE]", text)[0]) is not None


def _why_no_number(text: str) -> str:
    """The hint for a word that only looks like a number; empty for any other word."""
    if re.fullmatch(r"[-+]?0[0-9]+(\.[0-9]*)?", text):
        return f"a leading zero means octal elsewhere: write {text.lstrip('+-0') or '0'}"
    if re.fullmatch(r"[-+]?0[xXoObB][0-9a-fA-F_]+", text):
        return "write it in decimal"
    if re.fullmatch(r"[-+]?[0-9]+(:[0-9.]+)+", text):
        return "base 60 is not read here: write one decimal number"
    if re.fullmatch(r"[-+]?[0-9][0-9_.]*_[0-9_.]*", text):
        return f"write {text.replace('_', '')}"
    if text.lstrip("+-").lstrip(".").lower() in ("inf", "infinity", "nan"):
        return "it must be finite"
    return ""


def parse_int(value: Any) -> int:
    """A whole number, |v| < 2**63, from an int or text such as `10`.

    Raises ValueError; a bool and a float are refused as well.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(with_hint(f"expected a whole number, got {shown(value)}", _same_as_int(value)))
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _DIGITS or not _INTEGER.fullmatch(text):
            what = f"expected a whole number, got {shown(value)}"
            raise ValueError(with_hint(what, _why_no_number(text)))
        value = int(text)
    if abs(value) >= INT_LIMIT:
        raise ValueError("must be smaller than 2**63 in size")
    return int(value)


def _same_as_int(value: Any) -> str:
    """The hint for a float with a whole value, such as 3.0; empty for anything else."""
    if isinstance(value, float) and value.is_integer() and abs(value) < INT_LIMIT:
        return f"write {int(value)}"
    return ""


def parse_flag(value: Any) -> bool:
    """`true` or `false`, nothing else.

    Raises ValueError; for yes, on, no, off, 1 and 0 it says what to write.
    """
    if isinstance(value, bool):
        return value
    hint = ""
    if isinstance(value, (str, int)):
        hint = _FLAG_HINTS.get(str(value).lower(), "")
    raise ValueError(with_hint(f"expected true or false, got {shown(value)}", hint))


def parse_text(value: Any) -> str:
    """One line of text. Raises ValueError; control characters are refused: they would reach a terminal."""
    if isinstance(value, (bool, int, float)):
        raise ValueError(f"expected text, got {shown(value)}; put it in quotes")
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {shown(value)}")
    for character in value:
        if unicodedata.category(character) == "Cs":  # how Python keeps such a byte
            raise ValueError(f"text that is not UTF-8, at {shown(character)}")
        if unicodedata.category(character) in ("Cc", "Zl", "Zp"):
            raise ValueError(f"control character {shown(character)} in text")
    return value


def format_number(value: float) -> int | float | str:
    """The shortest form that reads back as the same float: 10, 0.1, or `8/255` where it is exact."""
    value = float(value)  # an int has no `is_integer` before Python 3.12
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    if abs(value) >= 1e6 or len(repr(value)) <= 6:
        return value
    k = round(value * 255)
    if k / 255 == value:
        return f"{k}/255"
    return value


_NUMBER_SCHEMA = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": rf"^{_FRACTION.pattern}$"}]}

Number = Annotated[
    float,
    BeforeValidator(parse_number),
    PlainSerializer(format_number, when_used="json"),
    WithJsonSchema(_NUMBER_SCHEMA),
]
Int = Annotated[int, BeforeValidator(parse_int)]
Flag = Annotated[bool, BeforeValidator(parse_flag)]
Text = Annotated[str, BeforeValidator(parse_text)]
