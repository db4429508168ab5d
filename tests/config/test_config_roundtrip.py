"""Properties over configs made from the schema: what is written reads back, a mistake is found and named."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustcli.config.bind import Registries
from robustcli.config.dump import dump_config
from robustcli.config.load import load_config
from robustcli.config.number import format_number, parse_number, resolve_plain
from robustcli.config.schema import Config
from robustcli.config.tree import leaves
from robustcli.config.yaml_text import write_tree
from robustcli.errors import ConfigError

COUNTS = [30, pytest.param(1000, marks=pytest.mark.slow)]


def _settings(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def _load(path: Path, text: str, registries: Registries) -> Any:
    path.write_text(text, encoding="utf-8")
    return load_config(path, environ={}, registries=registries)


@pytest.mark.parametrize("count", COUNTS)
def test_dump_then_load_is_equal(
    count: int, config_strategies: ModuleType, registries: Registries, tmp_path: Path
) -> None:
    seen = 0

    @_settings(count)
    @given(raw=config_strategies.raw_configs())
    def check(raw: dict[str, Any]) -> None:
        nonlocal seen
        config = Config.model_validate(raw)
        text = dump_config(config)
        loaded = _load(tmp_path / "c.yaml", text, registries)
        assert loaded.config == config
        assert dump_config(loaded.config) == text
        assert set(loaded.origins) == {".".join(path) for path, _ in leaves(config.model_dump(mode="json"))}
        assert all(origin.startswith(str(tmp_path)) for origin in loaded.origins.values()), (
            "a full dump leaves nothing to defaults"
        )
        seen += 1

    check()
    assert seen >= count // 2


@pytest.mark.parametrize("count", COUNTS)
def test_a_partial_file_means_the_defaults_for_the_rest(
    count: int, config_strategies: ModuleType, registries: Registries, tmp_path: Path
) -> None:
    @_settings(count)
    @given(raw=config_strategies.raw_configs().filter(bool))
    def check(raw: dict[str, Any]) -> None:
        loaded = _load(tmp_path / "c.yaml", write_tree(raw), registries)
        assert loaded.config == Config.model_validate(raw)
        written = {key for key, origin in loaded.origins.items() if origin != "default"}
        assert all(
            any(key == ".".join(path) or key.startswith(".".join(path) + ".") for key in written)
            for path, value in leaves(raw)
            if value not in ([], {})
        )

    check()


def _set(data: Any, path: tuple[str, ...], value: Any, rename: str | None = None) -> None:
    for part in path[:-1]:
        data = data[int(part)] if isinstance(data, list) else data[part]
    if rename is not None:
        value = data.pop(path[-1])
        data[rename] = value
    elif isinstance(data, list):
        data[int(path[-1])] = value
    else:
        data[path[-1]] = value


def _wrong(path: tuple[str, ...], value: Any) -> list[Any]:
    """Values of a kind or size that the place of `value` cannot take.

    Only the schema's own numbers all have a lower bound.
    """
    spec = path[0] in ("attacks", "adversary", "model", "objective") or path[1:2] in (
        ("optimizer",),
        ("schedule",),
        ("val_attack",),
        ("front",),
    )
    if isinstance(value, bool):
        return ["no", 1, "on", None, {"x": 1}]
    if isinstance(value, (int, float)) or re.fullmatch(r"[\d.]+/[\d.]+", str(value)):  # 2/255 is a number
        return [True, "010", "1:30", "8/0", ".nan", "ten", [1], {"x": 1}] + ([] if spec else [-(10.0**12)])
    if isinstance(value, str):
        return [3.5, True, {"x": 1}]
    return [{"x": 1}, [[1]]]


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_one_mutation_is_found_and_named(
    count: int, config_strategies: ModuleType, registries: Registries, tmp_path: Path
) -> None:
    seen: set[str] = set()

    @_settings(count)
    @given(raw=config_strategies.raw_configs(), data=st.data())
    def check(raw: dict[str, Any], data: st.DataObject) -> None:
        full = Config.model_validate(raw).model_dump(mode="json")
        skipped = ("model.options.", "model.label", "eval.fail_under")
        places = [
            (path, value)
            for path, value in leaves(full)
            if not ".".join(path).startswith(skipped) and value not in ([], {})
        ]
        section = data.draw(
            st.sampled_from(sorted({path[0] for path, _ in places}))
        )  # every section alike, however many keys it has
        path, value = data.draw(st.sampled_from([place for place in places if place[0][0] == section]))
        reference = full["model"]["name"].startswith(("run:", "torchvision:", "x."))
        if data.draw(st.booleans()) and not path[-1].isdigit() and not (path[0] == "model" and reference):
            bad = path[-1] + "q"
            _set(full, path, None, rename=bad)
            named = (
                (*path[:-1], "name")
                if path[-1] == "name" and len(path) > 2 and path[-2].isdigit()
                else (*path[:-1], bad)
            )
        else:
            _set(full, path, data.draw(st.sampled_from(_wrong(path, value))))
            named = path
        text = write_tree(full)
        with pytest.raises(ConfigError) as caught:
            _load(tmp_path / "c.yaml", text, registries)
        dotted = ".".join(named)
        hits = [
            problem
            for problem in caught.value.problems
            if re.search(rf"c\.yaml:\d+: {re.escape(dotted)}[.:]", problem) or _parent_named(problem, named)
        ]
        assert hits, (dotted, caught.value.problems)
        line = int(re.search(r":(\d+): ", hits[0]).group(1))  # type: ignore[union-attr]
        assert line <= len(text.splitlines())
        seen.add(named[0])

    check()
    assert len(seen) >= 8, "mutations reach every section"


def _parent_named(problem: str, path: tuple[str, ...]) -> bool:
    """An element of a list parameter is named by the parameter."""
    return path[-1].isdigit() and f": {'.'.join(path[:-1])}: " in problem


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_numbers_print_and_read_back(value: float) -> None:
    assert parse_number(format_number(value)) == value
    assert parse_number(repr(value)) == value
    assert math.copysign(1, parse_number(repr(value))) == math.copysign(1, value)


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_a_plain_word_is_a_known_constant_a_decimal_number_or_itself(text: str) -> None:
    value = resolve_plain(text)
    if isinstance(value, str):
        assert value == text
    elif isinstance(value, bool) or value is None:
        assert text.lower() in ("true", "false", "null", "~", "")
    else:
        assert float(text) == value and text.isascii() and "_" not in text
