"""Where the numbers come from: hashes, environment, and the command that makes them again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from robustcli.records.eval import EvalRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import digest_name
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import Block, Command, Facts, Grid, Light, Notice, Section, Text, code
from robustcli.reporting.page.words import described, listed, model_of
from robustcli.reporting.tables import Table

State = Literal["same", "changed", "unknown"]
_WORDS: Mapping[State, tuple[Light, str]] = {
    "same": ("good", "SAME"),
    "changed": ("bad", "STALE"),
    "unknown": ("none", "NOT CHECKED"),
}
EVIDENCE = "EVIDENCE.db"  # which file it was is not recorded
_UNCHECKED = (
    "This page was made when the run ended, or there is nothing to compare. `robustcli report RUN` compares"
    " the record with what lies there then: code, model, configuration and data."
)


@dataclass(frozen=True)
class Check:
    """Whether something that the numbers depend on is still what was measured.

    what: "code", "model", "config", "data" or "records". told: what was found, or why it was not looked at.
    """

    what: str
    state: State
    told: str


def stale(checks: Sequence[Check]) -> list[str]:
    """What has changed, in words."""
    return [f"{check.what}: {check.told}" for check in checks if check.state == "changed"]


def origin_section(run: Dossier, checks: Sequence[Check]) -> Section:
    """How to make the numbers again, and whether what they belong to is still here."""
    blocks: list[Block] = [Text("The same again, from the directory where it ran:"), Command(command_of(run))]
    if not checks:
        blocks.append(Text(_UNCHECKED))
    if plugin := _plugin(run):
        digest = code(plugin.get("sha256"))
        blocks.append(
            Text(f"{code(plugin.get('file'))} is the file with the SHA-256 {digest}; name its path.")
        )
    if flags := flags_of(run):
        blocks.append(Text(f"Add what no configuration holds: {listed([code(flag) for flag in flags])}."))
    blocks += [Notice(*_WORDS[check.state], f"{check.what}: {check.told}.") for check in checks]
    if hashes := hashes_of(run):
        blocks.append(Text("SHA-256 of what the numbers belong to:"))
        blocks.append(Facts([(digest_name(name, value), code(value)) for name, value in hashes]))
    blocks.append(Grid(_environment(run)))
    return Section("origin", "Origin of the numbers", blocks)


def command_of(run: Dossier) -> str:
    """The command that runs it again."""
    words = ["robustcli", *run.verb.split()]
    if run.verb == "demo" and "guard" in run.parts:
        words.append("guard")
    if run.verb == "guard update":
        words += [EVIDENCE, str((run.document.get("before") or {}).get("path", "GUARD"))]
    if run.verb == "transfer":
        models = dict.fromkeys(row.source_reference for row in run.of(TransferRow))
        words += ["--models", ",".join(models)]
    if plugin := _plugin(run):
        words += ["--plugin", f"{plugin.get('file')}:{plugin.get('factory')}"]
    if run.config and run.verb != "demo":
        words.append(_config_of(run))
    return shlex.join(words)


def _config_of(run: Dossier) -> str:
    """Its configuration, as it is found from the directory where it ran: absolute where that is another."""
    config = run.path / "config.resolved.yaml"
    if str(run.path) != run.document.get("run", str(run.path)):
        config = config.resolve()
    return f"./{config}" if str(config).startswith("-") else str(config)


def _plugin(run: Dossier) -> Mapping[str, Any]:
    """The record of the user's code that makes the network; empty where there is none."""
    model = run.config.get("model")
    plugin = model.get("plugin") if isinstance(model, Mapping) else None
    return plugin if isinstance(plugin, Mapping) else {}


def flags_of(run: Dossier) -> list[str]:
    """Flags that the command had and that no configuration holds, as far as the records tell."""
    found = []
    for row in run.of(EvalRow):
        name, at, _ = row.attack.partition("@")
        if at and ".py:" in name:
            found.append(f"--attack-plugin {name}")
        elif run.verb == "eval" and row.attack.startswith("transfer:"):
            hashes = row.attack.split(":")[1].split(",")
            found += [f"--surrogate MODEL, whose hash begins with {begin}" for begin in hashes if begin]
    if run.verb == "guard update":
        found.append(f"the file of evidence in place of {EVIDENCE}")
    if run.document.get("cross_check"):
        found.append("--cross-check torchattacks")
    return list(dict.fromkeys(found))


def hashes_of(run: Dossier) -> list[tuple[str, str]]:
    """Name -> SHA-256 of model, data, code and so on, as the record has them."""
    row = described(run)
    found = dict(row.hashes) if row is not None else {}
    if "code" not in found and run.environment.get("code"):
        found["code"] = str(run.environment["code"])
    if run.document.get("sha256"):
        found["guard"] = str(run.document["sha256"])
    return [(name, str(value)) for name, value in found.items() if value]


def _environment(run: Dossier) -> Table:
    lines = [[name, _shown(value)] for name, value in run.environment.items() if name != "code"]
    return Table("environment", ["", "version"], lines)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def subject_of(run: Dossier) -> str:
    """Verb, model and data in a few words."""
    data = run.config.get("data")
    name = data.get("name") if isinstance(data, Mapping) else data
    if run.verb == "transfer":
        return f"{code(run.verb)} between models on {code(name)}"
    return f"{code(run.verb)} of {code(model_of(run))} on {code(name)}" if run.config else code(run.verb)
