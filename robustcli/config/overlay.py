"""The layers below and above the file, each a tree: the schema's defaults, environment, command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustcli.config.assign import insert
from robustcli.config.number import Scalar, resolve_plain
from robustcli.config.schema import Config, known_keys, rules, text_keys
from robustcli.config.thresholds import key_path
from robustcli.config.tree import DEFAULT, Fault, Node, from_python
from robustcli.config.wording import with_hint
from robustcli.config.yaml_text import read_flow
from robustcli.errors import ConfigError
from robustcli.registry import suggestion

PREFIX = "ROBUSTCLI_"
#: What follows ROBUSTCLI_ in names that are switches of the program or of its tests, not config keys.
RESERVED_ENVIRONMENT = frozenset(
    {
        *("DEBUG", "DOCUMENT_FILE", "FAIL_POINT", "FULL_COUNTS", "NO_COLOR", "NO_REPORT", "PG_TIMEOUT"),
        *("LAUNCHER", "REFERENCE", "RUN_FILE", "TEAM"),
    }
)


@dataclass(frozen=True)
class Override:
    """`key=value` from the command line.

    Args:
        key: dotted path.
        value: a YAML scalar or flow collection.
        origin: the flag that it came from.
    """

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


def read_value(text: str, origin: str, faults: list[Fault], path: str) -> Node:
    """The value for the key at `path`: text that begins with a bracket, a brace or a quote is YAML.

    Any other text is one unquoted word, with `#`, `*` and `:` in it.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        return Node(_word(text, path), origin)
    inner: list[Fault] = []
    node = read_flow(text, origin, inner)
    faults += [Fault(".".join(filter(None, (path, fault.path))), fault.what, origin) for fault in inner]
    return node or Node(None, origin)


def _word(text: str, path: str) -> Scalar:
    """What an unquoted word means. A text key takes `2024` as text, because a shell removes quotes."""
    value = resolve_plain(text)
    if value is not None and tuple(path.split(".")) in text_keys():
        return text
    return value


def default_layer() -> Node:
    """The schema's defaults."""
    return from_python(Config().model_dump(mode="json"), DEFAULT)


def environment_layer(environ: Mapping[str, str], faults: list[Fault]) -> Node:
    """ROBUSTCLI_A__B=value as a.b. Reserved names are skipped; any other name that is no key is a fault."""
    layer = Node({}, "environment")
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        short = variable.removeprefix(PREFIX)
        if short in RESERVED_ENVIRONMENT:
            continue
        origin, path = f"environment {variable}", short.lower().split("__")
        if path[0] not in Config.model_fields or "" in path:
            faults.append(Fault("", with_hint("no such setting", _nearest_variable(short)), origin))
            continue
        value = read_value(environ[variable], origin, faults, ".".join(path))
        layer = insert(layer, path, value, rules(), faults)
    return layer


def _nearest_variable(short: str) -> str:
    """The hint that names the closest variable: by its whole path first, then by its section alone."""
    names = _variables()
    alike = [name for name in names if ("__" in name) == ("__" in short)]
    close = suggestion(short.upper(), alike) or suggestion(short.partition("__")[0].upper(), names)
    return re.sub(r"'(\w+)'", rf"'{PREFIX}\1'", close).strip()


def _variables() -> list[str]:
    """The environment's name of every key that is in no list, without the prefix."""
    names: list[str] = []
    for section, keys in known_keys().items():
        if "*" not in section:
            names += ["__".join((*section, key)).upper() for key in keys]
    return names


def override_layer(overrides: Sequence[Override], faults: list[Fault]) -> Node:
    """The command line; of two assignments to one key the later wins."""
    layer = Node({}, "command line")
    for item in overrides:
        value = read_value(item.value, item.origin, faults, item.key)
        layer = insert(layer, key_path(item.key), value, rules(), faults)
    return layer
