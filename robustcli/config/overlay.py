"""The layers above the file: environment and command line, each read into a tree of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from robustcli.config.number import resolve_plain
from robustcli.config.schema import Config, known_keys, rules, text_keys
from robustcli.config.tree import DEFAULT, Fault, Node, from_python, insert
from robustcli.errors import ConfigError
from robustcli.registry import suggestion

PREFIX = "ROBUSTCLI_"
# what follows ROBUSTCLI_ in names that are switches of the program or its tests, not config keys
RESERVED_ENVIRONMENT = frozenset(
    {"DEBUG", "FAIL_POINT", "FULL_COUNTS", "NO_COLOR", "PG_TIMEOUT", "REFERENCE", "RUN_FILE"}
)

ReadFlow = Callable[
    [str, str, list[Fault]], "Node | None"
]  # (text, origin, faults) -> tree of a quoted or flow value


@dataclass(frozen=True)
class Override:
    """`key=value` from the command line; `value` is a YAML scalar or flow collection, `origin` the flag it came from."""

    key: str
    value: str
    origin: str


def parse_assignment(text: str, origin: str) -> Override:
    """`a.b=c` or `attacks.0.steps=40`. Raises ConfigError when there is no key or no `=`."""
    key, equals, value = text.partition("=")
    key = key.strip(" ")
    if not equals:
        raise _assignment_error(origin, f"expected key=value such as ball.eps=8/255, got {text[:80]!r}")
    if not re.fullmatch(r"[^\s.=]+(\.[^\s.=]+)*", key):
        raise _assignment_error(origin, f"{key[:80]!r} is not a dotted key such as ball.eps")
    return Override(key, value, origin)


def _assignment_error(origin: str, what: str) -> ConfigError:
    return ConfigError(f"{origin}: {what}", problems=[f"{origin}: {what}"])


def read_value(text: str, origin: str, faults: list[Fault], read_flow: ReadFlow, path: str) -> Node:
    """One value: `[…]`, `{…}` and quotes are YAML, any other text is one unquoted word, `#`, `*` and `:` included."""
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        value = resolve_plain(text)
        literal = (
            value is not None and tuple(path.split(".")) in text_keys()
        )  # a shell cannot quote 2024 for us
        return Node(text if literal else value, origin)
    found: list[Fault] = []
    node = read_flow(text, origin, found)
    faults += [
        Fault(".".join(part for part in (path, fault.path) if part), fault.what, origin) for fault in found
    ]
    return node if node is not None else Node(None, origin)


def default_layer() -> Node:
    """The schema's defaults."""
    return from_python(Config().model_dump(mode="json"), DEFAULT)


def environment_layer(environ: Mapping[str, str], faults: list[Fault], read_flow: ReadFlow) -> Node:
    """ROBUSTCLI_A__B=value as a.b; reserved names are left alone, any other name of ours that is no key is a fault."""
    layer = Node({}, "environment")
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        short = variable.removeprefix(PREFIX)
        if short in RESERVED_ENVIRONMENT:
            continue
        origin, path = f"environment {variable}", short.lower().split("__")
        if path[0] not in Config.model_fields or "" in path:
            faults.append(Fault("", f"no such setting{_nearest_variable(short)}", origin))
            continue
        value = read_value(environ[variable], origin, faults, read_flow, ".".join(path))
        layer = insert(layer, path, value, rules())
    return layer


def _nearest_variable(short: str) -> str:
    """The closest variable by name, the whole path first, then its section alone."""
    names = [
        "__".join((*at, key)).upper() for at, keys in known_keys().items() if "*" not in at for key in keys
    ]
    close = suggestion(
        short.upper(), [name for name in names if ("__" in name) == ("__" in short)]
    ) or suggestion(short.partition("__")[0].upper(), names)
    return "; " + re.sub(r"'(\w+)'", rf"'{PREFIX}\1'", close).strip() if close else ""


def override_layer(overrides: Sequence[Override], faults: list[Fault], read_flow: ReadFlow) -> Node:
    """The command line; of two assignments to one key the later wins."""
    layer = Node({}, "command line")
    for item in overrides:
        value = read_value(item.value, item.origin, faults, read_flow, item.key)
        layer = insert(layer, item.key.split("."), value, rules())
    return layer
