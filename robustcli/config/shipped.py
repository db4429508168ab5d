"""The configs that come with the package, and how a CONFIG argument finds a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from robustcli.config.position import problem, read_text, reason
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
    root = next(
        (folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), None
    )
    if root is None:
        return {}
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def list_shipped() -> list[ShippedConfig]:
    """Every shipped config with its command and summary, for `config ls`."""
    found = []
    for name, path in shipped_configs().items():
        comments = []
        for line in read_text(path).splitlines():
            if not line.startswith("#"):
                break
            comments.append(line.lstrip("# ").rstrip())
        found.append(ShippedConfig(name, path, comments[0] if comments else "", " ".join(comments[1:])))
    return found


def cat_config(source: str | Path) -> str:
    """The text of a config file, for `config cat`. Raises ConfigError."""
    return read_text(find_config(source))


def copy_config(source: str | Path, target: str | Path) -> Path:
    """Copy a config, for `config cp`; a directory as target keeps the file's name. Raises ConfigError when the target exists."""
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
    """The file that `source` names: a path, or a shipped name with or without `configs/` and `.yaml`. Raises ConfigError."""
    text = str(source)
    if "\0" in text or not text:
        raise problem(f"{text!r} is not a path")
    path, shipped = Path(text), shipped_configs()
    name = text.replace(os.sep, "/").removeprefix("./")
    bare = name.removesuffix(".yaml").removesuffix(".yml")
    is_name = isinstance(source, str) and bare == name and name in shipped
    if os.path.lexists(path) and not is_name:
        return path
    if (found := shipped.get(bare.removeprefix("configs/"))) is not None:
        return found
    hint = (
        suggestion(bare.removeprefix("configs/"), list(shipped)).strip()
        or "`robustcli config ls` lists the shipped ones"
    )
    raise problem(f"no such file and no shipped config of this name; {hint}", text)
