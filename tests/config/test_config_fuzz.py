"""Whatever the bytes are: a Loaded or a ConfigError, nothing else, in less than two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustcli.config import yaml_text
from robustcli.config.bind import Registries
from robustcli.config.dump import dump_config
from robustcli.config.load import Loaded, load_config
from robustcli.errors import ConfigError

Generator = Callable[[int, int], Iterator[tuple[str, bytes]]]


def _outcome(path: Path, registries: Registries) -> Loaded | ConfigError:
    began = time.process_time()
    result: Loaded | ConfigError
    try:
        result = load_config(path, environ={}, registries=registries)
    except ConfigError as error:
        result = error
    assert time.process_time() - began < 2.0
    return result


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_any_bytes(
    count: int,
    fuzzed_configs: Generator,
    registries: Registries,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.yaml"
    loaded = 0
    for made, data in fuzzed_configs(count, count):
        path.write_bytes(data)
        try:
            result = _outcome(path, registries)
            if isinstance(result, ConfigError):
                assert result.exit_code == 2 and result.problems and "\n" not in result.line()
                assert all(problem.isprintable() and len(problem) < 1000 for problem in result.problems)
            else:
                loaded += 1
                again = tmp_path / "again.yaml"
                again.write_text(dump_config(result.config), encoding="utf-8")
                assert load_config(again, environ={}, registries=registries).config == result.config
        except BaseException as error:
            error.add_note(f"{made}: {data[:300]!r}") if hasattr(error, "add_note") else None
            raise
    assert {item.name for item in tmp_path.iterdir()} <= {"again.yaml", "c.yaml"}, "a config created a file"
    assert 0 < loaded < count, "the generator makes both kinds"


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_without_libyaml_the_same(
    count: int,
    fuzzed_configs: Generator,
    registries: Registries,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where PyYAML lacks its C parser, the same files load, to the same values."""
    if yaml_text._LOADER is yaml.SafeLoader:
        pytest.skip("this PyYAML has no C parser to compare with")
    path = tmp_path / "c.yaml"
    differ: list[Any] = []
    for made, data in fuzzed_configs(count, 7 + count):
        if len(data) > 200_000:
            continue  # the pure parser needs a second per MiB
        path.write_bytes(data)
        fast = _outcome(path, registries)
        with monkeypatch.context() as patch:
            patch.setattr(yaml_text, "_LOADER", yaml.SafeLoader)
            slow = _outcome(path, registries)
        same_kind = isinstance(fast, Loaded) == isinstance(slow, Loaded)
        if not same_kind or (
            isinstance(fast, Loaded)
            and isinstance(slow, Loaded)
            and (fast.config, fast.origins) != (slow.config, slow.origins)
        ):
            differ.append((made, data, str(fast)[:200], str(slow)[:200]))
    assert not differ


def test_generator_is_reproducible(fuzzed_configs: Generator) -> None:
    first, again, other = (list(fuzzed_configs(40, seed)) for seed in (1, 1, 2))
    assert first == again and first != other and len(first) == 40
