"""The configs that come with the package, and how a CONFIG argument finds a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from robustcli.config.config_files import problem, read_text, reason
from robustcli.errors import ConfigError
from robustcli.registry import suggestion


@dataclass(frozen=True)
class ShippedConfig:
    """One config of the package: its name, file, the command of its first line and the comment after it."""

    name: str
    path: Path
    command: str
    summary: str


def shipped_configs() -> dict[str, Path]:
    """`smoke/digits` -> file, from the installed package, else from the source tree."""
    package = Path(__file__).resolve().parents[1]
    for root in (package / "configs", package.parent / "configs"):
        if root.is_dir():
            files = sorted(root.rglob("*.yaml"))
            return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}
    return {}


def list_shipped() -> list[ShippedConfig]:
    """Every shipped config with its command and summary, for `config ls`."""
    configs = []
    for name, path in shipped_configs().items():
        command, *rest = _comments(path) or [""]
        configs.append(ShippedConfig(name, path, command, " ".join(rest)))
    return configs


def _comments(path: Path) -> list[str]:
    """The comment lines that a file begins with."""
    lines = takewhile(lambda line: line.startswith("#"), read_text(path).splitlines())
    return [line.lstrip("# ").rstrip() for line in lines]


def cat_config(source: str | Path) -> str:
    """The text of a config file, for `config cat`. Raises ConfigError."""
    return read_text(find_config(source))


def copy_config(source: str | Path, target: str | Path) -> Path:
    """Copy a config, for `config cp`; a directory as target keeps the file's name.

    Raises ConfigError when the target exists or cannot be written.
    """
    path = find_config(source)
    text = read_text(path)
    destination = Path(target)
    if destination.is_dir():
        destination = destination / path.name
    try:
        with open(destination, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            "the file exists", where=str(destination), hint="choose another name or remove it"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the copy: {reason(error)}", where=repr(str(destination))) from None
    return destination


def find_config(source: str | Path) -> Path:
    """The file that `source` names. Raises ConfigError.

    It is a path, or the name of a shipped config, with or without `configs/` and `.yaml`.
    """
    text = str(source)
    if "\0" in text or not text:
        raise problem(f"{text!r} is not a path")
    path, shipped = Path(text), shipped_configs()
    normalised = text.replace(os.sep, "/").removeprefix("./")
    stem = normalised.removesuffix(".yaml").removesuffix(".yml")
    is_name = isinstance(source, str) and stem == normalised and normalised in shipped
    if os.path.lexists(path) and not is_name:
        return path
    name = stem.removeprefix("configs/")
    if name in shipped:
        return shipped[name]
    hint = suggestion(name, list(shipped)).strip() or "`robustcli config ls` lists the shipped ones"
    raise problem(f"no such file and no shipped config of this name; {hint}", text)
