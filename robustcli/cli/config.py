"""`robustcli config ls|cat|cp|validate|show|schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from robustcli.cli.call import Call
from robustcli.cli.options import complete_config
from robustcli.terminal.console import Console

_HELP = "Look at configurations: shipped ones, your own, where each value comes from."
app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    epilog="Examples:\n\n`robustcli config ls`\n\n`robustcli config show train/digits --origin`",
)
Source = Annotated[
    str, typer.Argument(help="A file or the name of a shipped configuration.", autocompletion=complete_config)
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="CONFIG (a file or a shipped name) and key=value settings.", metavar="[CONFIG] [KEY=VALUE]..."
    ),
]
Origin = Annotated[
    bool, typer.Option("--origin", help="Say where each value comes from.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default=False)]


def _answer(verb: str, as_json: bool, document: dict[str, Any], text: str) -> None:
    console = Console(json=as_json)
    console.document(
        {"schema_version": 1, "ok": True, "verb": f"config {verb}", "run": None, "seconds": 0.0, **document}
    )
    console.result(text)


@app.command("ls", epilog="Examples:\n\n`robustcli config ls`\n\n`robustcli config ls --json`")
def ls(as_json: AsJson = False) -> None:
    """Shipped configurations: name, what it is, the command that runs it."""
    from robustcli.config.shipped import list_shipped

    found = list_shipped()
    rows = [{"name": item.name, "summary": item.summary, "command": item.command} for item in found]
    width = max((len(item.name) for item in found), default=0)
    _answer(
        "ls", as_json, {"configs": rows}, "\n".join(f"{item.name:{width}}  {item.command}" for item in found)
    )


@app.command(
    "cat",
    epilog="Examples:\n\n`robustcli config cat train/digits`\n\n`robustcli config cat smoke/digits --json`",
)
def cat(source: Source, as_json: AsJson = False) -> None:
    """The text of a configuration."""
    from robustcli.config.shipped import cat_config

    text = cat_config(source)
    _answer("cat", as_json, {"text": text}, text.rstrip("\n"))


@app.command(
    "cp",
    epilog="Examples:\n\n`robustcli config cp train/digits my.yaml`\n\n`robustcli config cp train/folder mine/photos.yaml`",
)
def cp(
    source: Source,
    target: Annotated[Path, typer.Argument(help="A new file; an existing one is never replaced.")],
    as_json: AsJson = False,
) -> None:
    """Copy a configuration, to change it."""
    from robustcli.config.shipped import copy_config

    path = copy_config(source, target)
    _answer("cp", as_json, {"path": str(path)}, str(path))


@app.command(
    "validate",
    epilog="Examples:\n\n`robustcli config validate train/digits`\n\n`robustcli config validate train/digits ball.eps=8/255`",
)
def validate(words: Words = None, as_json: AsJson = False) -> None:
    """Check a configuration without running it; all mistakes in one pass, exit 2 when there is one."""
    call = Call("config", {"words": words or []}, Console(json=as_json))
    call.load()
    _answer("validate", as_json, {"problems": []}, f"{call.source() or 'defaults'}: valid")


@app.command(
    "show",
    epilog="Examples:\n\n`robustcli config show train/digits --origin`\n\n`robustcli config show train/digits ball.eps=0.05`",
)
def show(words: Words = None, origin: Origin = False, as_json: AsJson = False) -> None:
    """The resolved configuration as YAML, or every value with its origin."""
    from robustcli.config.dump import dump_config
    from robustcli.config.view import show_rows

    loaded = Call("config", {"words": words or []}, Console(json=as_json)).load()
    rows = show_rows(loaded)
    text = (
        "\n".join(f"{row.key}: {row.value}  # {row.origin}" for row in rows)
        if origin
        else dump_config(loaded.config).rstrip("\n")
    )
    _answer(
        "show", as_json, {"config": loaded.config.model_dump(mode="json"), "origins": loaded.origins}, text
    )


@app.command(
    "schema", epilog="Examples:\n\n`robustcli config schema > schema.json`\n\n`robustcli config schema`"
)
def schema() -> None:
    """The JSON Schema of a configuration, for editors."""
    from robustcli.config.schema import json_schema

    Console().result(json.dumps(json_schema(), indent=2))
