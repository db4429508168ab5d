"""The configs that come with the package, and what the `config` verb does with them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from robustcli.config.bind import Registries
from robustcli.config.dump import dump_config
from robustcli.config.load import load_config
from robustcli.config.schema import Config, json_schema
from robustcli.config.shipped import cat_config, copy_config, find_config, list_shipped, shipped_configs
from robustcli.config.view import show_rows
from robustcli.errors import ConfigError

NAMES = sorted(shipped_configs())


@pytest.fixture(scope="module")
def real() -> Registries:
    return Registries.discover()


def test_every_kind_is_shipped() -> None:
    assert {"smoke/digits", "train/digits", "train/folder", "eval/digits", "attack/digits"} <= set(NAMES)
    assert {name.partition("/")[0] for name in NAMES} >= {"smoke", "train", "eval", "attack"}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config_loads(name: str, real: Registries, tmp_path: Path) -> None:
    loaded = load_config(name, environ={}, registries=real)
    assert loaded.path == shipped_configs()[name]
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(loaded.config), encoding="utf-8")
    assert load_config(again, environ={}, registries=real).config == loaded.config


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config_style(name: str) -> None:
    text = shipped_configs()[name].read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 160
    words = shlex.split(lines[0].removeprefix("# "))
    if words[1] == "guard":  # a subcommand, which may take a store and a guard before its CONFIG
        assert words[2] in ("fit", "update")
        words[2:] = [words[-1]]
    verb = "train" if name.startswith("smoke/") else name.partition("/")[0]
    if "\nthresholds:\n" in text:  # an evaluation that also judges
        verb = "gate"
    assert lines[0].startswith("# robustcli ") and words[1:3] == [verb, name]
    assert lines[1].startswith("# ") and len(lines[1]) > 10, "the second line says what it is"
    assert not re.search(r"^extends:", text, re.M), "a copied config must stand alone"
    for eps in re.findall(r"\beps: ([^,}\s]+)", text):
        if not re.fullmatch(r"[0-9]+/255", eps) and float(eps) <= 1:  # larger: l2, l1, or pixels
            assert float(eps) * 255 % 1 > 1e-6, f"write {eps} as k/255"


def test_list_has_command_and_summary() -> None:
    listed = list_shipped()
    assert [item.name for item in listed] == NAMES
    assert all(
        item.command.startswith("robustcli ") and item.summary and item.path.is_file() for item in listed
    )


@pytest.mark.parametrize(
    "source",
    ["smoke/digits", "smoke/digits.yaml", "configs/smoke/digits.yaml", "./configs/smoke/digits.yaml"],
)
def test_shipped_names_work_anywhere(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(source) == shipped_configs()["smoke/digits"]
    assert cat_config(source).startswith("# robustcli train smoke/digits\n")


def test_a_file_is_found_before_a_shipped_config_and_a_folder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke" / "digits").mkdir(parents=True)
    assert find_config("smoke/digits") == shipped_configs()["smoke/digits"]
    (tmp_path / "smoke" / "digits.yaml").write_text("seed: 1\n")
    assert find_config("smoke/digits.yaml") == Path("smoke/digits.yaml")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("smoke/digit", "did you mean 'smoke/digits'?"),
        ("train/digitz.yaml", "did you mean 'train/digits'?"),
        ("zzz", "`robustcli config ls` lists"),
    ],
)
def test_unknown_names_get_the_closest(
    source: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(source, environ={}, bind=False)
    assert caught.value.problems == [
        f"{source}: no such file and no shipped config of this name; "
        f"{caught.value.problems[0].partition('; ')[2]}"
    ]
    assert hint in caught.value.problems[0] and caught.value.exit_code == 2


def test_copy(tmp_path: Path, real: Registries) -> None:
    target = copy_config("train/digits", tmp_path / "my.yaml")
    assert target == tmp_path / "my.yaml"
    assert load_config(target, environ={}, registries=real).path == target
    assert copy_config("train/digits", tmp_path) == tmp_path / "digits.yaml"
    for bad in (target, tmp_path / "no" / "such" / "folder.yaml", "a\0b"):
        before = target.read_text()
        with pytest.raises(ConfigError):
            copy_config("smoke/fake", bad)
        assert target.read_text() == before


def test_show_has_every_leaf_with_its_origin(loader: Any) -> None:
    rows = show_rows(loader("ball: {eps: 8/255}\n", "deterministic=true"))
    shown = {row.key: (row.value, row.origin.rpartition("/")[2]) for row in rows}
    assert shown["ball.eps"] == ("8/255", "c.yaml:1") and shown["deterministic"] == ("true", "command line")
    assert (
        shown["threads"] == ("null", "default")
        and shown["adversary.steps"] == ("10", "default")
        and shown["eval.fail_under"] == ("{}", "default")
    )
    assert len(shown) == len(rows) > 50


def test_json_schema_describes_every_key() -> None:
    schema = json_schema()
    json.dumps(schema, allow_nan=False)
    assert (
        schema["$schema"].startswith("https://json-schema.org/") and schema["additionalProperties"] is False
    )
    assert set(schema["properties"]) == {*Config.model_fields, "extends"}
    for name, definition in schema["$defs"].items():
        for key, value in definition.get("properties", {}).items():
            assert value.get("description") or value.get("$ref") or name == "Spec", (name, key)
    text = json.dumps(schema)
    assert '"ge"' not in text and '"lt"' not in text, "bounds are in JSON Schema's words"
    eps = schema["$defs"]["BallConfig"]["properties"]["eps"]
    assert any(
        re.fullmatch(part["pattern"], "8/255")
        for option in eps["anyOf"]
        for part in option.get("anyOf", ())
        if "pattern" in part
    )
    adversary = schema["$defs"]["Spec"]["anyOf"]
    assert {"type": "string"} in adversary and any(part.get("type") == "object" for part in adversary)


def test_dump_writes_radii_as_fractions_and_everything_else_plain() -> None:
    text = dump_config(
        Config.model_validate(
            {
                "ball": {"eps": 8 / 255},
                "train": {"epochs": 30},
                "data": {"val_fraction": 0.2},
                "name": "010",
                "out": "no",
            }
        )
    )
    assert (
        "eps: 8/255" in text
        and "epochs: 30\n" in text
        and "val_fraction: 0.2\n" in text
        and "name: '010'\n" in text
        and "out: 'no'\n" in text
    )
