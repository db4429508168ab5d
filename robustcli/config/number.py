"""Scalars of a config: what a plain YAML word means, and the four value types Number, Int, Flag and Text.

YAML 1.1 turns `1e-3` into text, `010` into 8, `1:30` into 90 and `no` into False. Here a word is null, true/false, a
decimal number, or itself, never anything else; what is wanted as a number and is not one is an error that says why.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_DECIMAL = r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(_DECIMAL)
_FRACTION = re.compile(rf"({_DECIMAL})(?: ?/ ?({_DECIMAL}))?")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_YES, _NO = ("yes", "on", "y", "true"), ("no", "off", "n", "false")
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
    if _FLOAT.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) and not _vanished(text, value) else text
    return text


def shown(value: Any) -> str:
    """`value` as it is quoted in a message, short and on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list, tuple)):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value[:200] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:56] + "...'"


def parse_number(value: Any) -> float:
    """A finite float from an int, a float, or text such as `8/255`, `0.031`, `1e-3`, `.5`. Raises ValueError; bool is refused."""
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
    match = _FRACTION.fullmatch(text) if len(text) <= 2 * _DIGITS else None
    if match is None:
        raise ValueError(f"expected a number such as 8/255, 0.03 or 1e-3, got {shown(text)}{_trap(text)}")
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


def _trap(text: str) -> str:
    """Why a word that looks like a number is none, or an empty string."""
    if re.fullmatch(r"[-+]?0[0-9]+(\.[0-9]*)?", text):
        return f"; a leading zero means octal elsewhere: write {text.lstrip('+-0') or '0'}"
    if re.fullmatch(r"[-+]?0[xXoObB][0-9a-fA-F_]+", text):
        return "; write it in decimal"
    if re.fullmatch(r"[-+]?[0-9]+(:[0-9.]+)+", text):
        return "; base 60 is not read here: write one decimal number"
    if re.fullmatch(r"[-+]?[0-9][0-9_.]*_[0-9_.]*", text):
        return f"; write {text.replace('_', '')}"
    if text.lstrip("+-").lstrip(".").lower() in ("inf", "infinity", "nan"):
        return "; it must be finite"
    return ""


def parse_int(value: Any) -> int:
    """A whole number, |v| < 2**63, from an int or text such as `10`. Raises ValueError; bool and float are refused."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        hint = (
            f"; write {int(value)}"
            if isinstance(value, float) and value.is_integer() and abs(value) < INT_LIMIT
            else ""
        )
        raise ValueError(f"expected a whole number, got {shown(value)}{hint}")
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _DIGITS or not _INTEGER.fullmatch(text):
            raise ValueError(f"expected a whole number, got {shown(value)}{_trap(text)}")
        value = int(text)
    if abs(value) >= INT_LIMIT:
        raise ValueError("must be smaller than 2**63 in size")
    return int(value)


def parse_flag(value: Any) -> bool:
    """`true` or `false`, nothing else. Raises ValueError that says what to write for yes, on, no, off, 1 and 0."""
    if isinstance(value, bool):
        return value
    word = str(value).lower() if isinstance(value, (str, int)) else ""
    meant = "true" if word in (*_YES, "1") else "false" if word in (*_NO, "0") else ""
    raise ValueError(f"expected true or false, got {shown(value)}" + (f"; write {meant}" if meant else ""))


def parse_text(value: Any) -> str:
    """One line of text without control characters (they would reach a terminal or a path). Raises ValueError."""
    if isinstance(value, (bool, int, float)):
        raise ValueError(f"expected text, got {shown(value)}; put it in quotes")
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {shown(value)}")
    bad = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    if bad is not None:
        raise ValueError(f"control character {shown(bad)} in text")
    return value


def format_number(value: float) -> int | float | str:
    """The shortest form that reads back as the same float: 10, 0.1, or `8/255` where value == k/255 exactly."""
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    k = round(value * 255) if abs(value) < 1e6 else 0
    return f"{k}/255" if len(repr(value)) > 6 and k / 255 == value else value


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
