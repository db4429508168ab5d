"""What a word or a number of a config means, and why the others mean nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from robustcli.config.number import (
    INT_LIMIT,
    format_number,
    parse_flag,
    parse_int,
    parse_number,
    parse_text,
    resolve_plain,
)
from robustcli.config.spec import normalize_numbers
from robustcli.config.wording import shown


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("8/255", 8 / 255), ("0.031", 0.031), ("1e-3", 1e-3), (".5", 0.5), ("5.", 5.0), ("+2", 2.0),
        ("-1.5e+2", -150.0), ("8 / 255", 8 / 255), (" 8/255 ", 8 / 255), ("2.5/255", 2.5 / 255),
        ("1/1e3", 1e-3), (3, 3.0), (0.25, 0.25), (0, 0.0), ("0", 0.0), ("-0", 0.0), ("0e999", 0.0),
        ("0.0/5", 0.0),
    ],
)  # fmt: skip
def test_numbers(value: Any, number: float) -> None:
    assert parse_number(value) == number


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (True, "expected a number"), (None, "got nothing"), ([1], "got a list"), ({}, "got a mapping"),
        ("", "expected a number"), ("8/0", "division by zero"), ("8/0.0", "division by zero"),
        ("1/1e-400", "division by zero"), ("nan", "finite"), (".nan", "finite"), (".inf", "finite"),
        ("-inf", "finite"), (math.inf, "finite"), (math.nan, "finite"), ("1e999", "finite"),
        ("1/1e-308/2", "expected"), ("1e-999", "too close to zero"), ("1e-300/1e300", "too close"),
        (10**400, "finite"), ("010", "write 10"), ("-007", "write 7"), ("00", "write 0"),
        ("08/255", "expected"), ("0x1f", "decimal"), ("0b1", "decimal"), ("1:30", "base 60"),
        ("1_000", "write 1000"), ("8/255/2", "expected"), ("1e", "expected"), ("e5", "expected"),
        ("1 000", "expected"), ("8//255", "expected"), ("\u0661", "expected"), ("no", "expected"),
        ("1" * 200, "expected"), ("1,5", "expected"),
    ],
)  # fmt: skip
def test_not_numbers(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_number(value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (7, 7),
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        (INT_LIMIT - 1, INT_LIMIT - 1),
        (-(INT_LIMIT - 1), 1 - INT_LIMIT),
    ],
)
def test_ints(value: Any, number: int) -> None:
    assert parse_int(value) == number and type(parse_int(value)) is int


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (True, "got true"), (1.0, "write 1"), (1.5, "got 1.5"), ("1e3", "whole"), ("1.0", "whole"),
        ("010", "write 10"), ("1:30", "base 60"), ("", "whole"), (None, "nothing"), (INT_LIMIT, "2\\*\\*63"),
        (str(INT_LIMIT), "2\\*\\*63"), ("9" * 5000, "whole"), ("1_000", "write 1000"), (math.nan, "nan"),
        (math.inf, "inf"), ([], "a list"),
    ],
)  # fmt: skip
def test_not_ints(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_int(value)


def test_flags_are_true_and_false_only() -> None:
    assert parse_flag(True) is True and parse_flag(False) is False
    for word, meant in {
        "yes": "true",
        "on": "true",
        "Y": "true",
        "1": "true",
        "NO": "false",
        "off": "false",
        "n": "false",
        "0": "false",
    }.items():
        with pytest.raises(ValueError, match=f"write {meant}$"):
            parse_flag(word)
    for value in (None, [], 2, 0.5, "maybe"):
        with pytest.raises(ValueError, match="expected true or false, got"):
            parse_flag(value)


def test_text_is_one_clean_line() -> None:
    for text in ("", "a b", "ü", "日本", "no", "\u202e"):
        assert parse_text(text) == text
    for bad in ("a\0b", "a\nb", "\x1b[31m", "a\u2028b", "\x85"):
        with pytest.raises(ValueError, match="control character"):
            parse_text(bad)
    with pytest.raises(ValueError, match="not UTF-8"):
        parse_text("\ud800")
    for value, why in ((7, "quotes"), (True, "quotes"), (None, "nothing"), ([], "a list")):
        with pytest.raises(ValueError, match=why):
            parse_text(value)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("", None), ("~", None), ("null", None), ("true", True), ("FALSE", False), ("12", 12), ("-3", -3),
        ("1e-3", 1e-3), ("0.5", 0.5), ("+.5", 0.5), ("1e3", 1000.0), ("no", "no"), ("on", "on"),
        ("Yes", "Yes"), ("010", "010"), ("0o17", "0o17"), ("0x1f", "0x1f"), ("1:30", "1:30"),
        ("1_000", "1_000"), ("2020-01-01", "2020-01-01"), (".inf", ".inf"), (".nan", ".nan"),
        ("1e999", "1e999"), ("1e-999", "1e-999"), ("8/255", "8/255"), ("nULL", "nULL"), ("9" * 65, "9" * 65),
    ],
)  # fmt: skip
def test_plain_words(word: str, value: Any) -> None:
    result = resolve_plain(word)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (0.5 / 255, 0.5 / 255),
        (0.1, 0.1),
        (51 / 255, 0.2),
        (10.0, 10),
        (1e300, 1e300),
        (0.03, 0.03),
        (-8 / 255, "-8/255"),
    ],
)
def test_formatted(value: float, text: Any) -> None:
    assert format_number(value) == text and type(format_number(value)) is type(text)
    assert parse_number(format_number(value)) == value


def test_normalize_numbers() -> None:
    assert normalize_numbers("0.5,1/4") == ((0.5,), (0.25,))
    assert normalize_numbers("1,2,3,4,5,6") == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    for bad in ("", "0.5", "1,2,3", "0.5,0", "0.5,-1", "a,b", "imagenet,1", ",".join("1" * 64)):
        with pytest.raises(ValueError):
            normalize_numbers(bad)


def test_shown_is_short_and_on_one_line() -> None:
    assert [shown(v) for v in (None, True, [], {}, 3, "a")] == [
        "nothing",
        "true",
        "a list",
        "a mapping",
        "3",
        "'a'",
    ]
    assert len(shown("x" * 10**6)) <= 60 and "\n" not in shown("a\nb")
