"""`robustcli config ls|cat|cp|validate|show|schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from robustcli.cli.call import Call
from robustcli.cli.options import WORDS, WORDS_METAVAR, complete_config, examples
from robustcli.terminal.console import Console

_HELP = "Look at configurations: shipped ones, your own, where each value comes from."
app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    epilog=examples("robustcli config ls", "robustcli config show train/digits --origin"),
)
Source = Annotated[
    str, typer.Argument(help="A file or the name of a shipped configuration.", autocompletion=complete_config)
]
Words = Annotated[list[str] | None, typer.Argument(help=WORDS, metavar=WORDS_METAVAR)]
Origin = Annotated[
    bool, typer.Option("--origin", help="Say where each value comes from.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default=False)]


def _answer(verb: str, as_json: bool, document: dict[str, Any], text: str) -> None:
    """Print the document with --json, else the text."""
    console = Console(json=as_json)
    head = {"ok": True, "verb": f"config {verb}", "run": None, "seconds": 0.0}
    console.document({**head, **document})
    console.result(text)


@app.command("ls", epilog=examples("robustcli config ls", "robustcli config ls --json"))
def ls(as_json: AsJson = False) -> None:
    """Shipped configurations: name, what it is, the command that runs it."""
    from robustcli.config.shipped import list_shipped

    configs = list_shipped()
    rows = [{"name": item.name, "summary": item.summary, "command": item.command} for item in configs]
    width = max((len(item.name) for item in configs), default=0)
    lines = [f"{item.name:{width}}  {item.command}" for item in configs]
    _answer("ls", as_json, {"configs": rows}, "\n".join(lines))


@app.command(
    "cat",
    epilog=examples("robustcli config cat train/digits", "robustcli config cat smoke/digits --json"),
)
def cat(source: Source, as_json: AsJson = False) -> None:
    """The text of a configuration."""
    from robustcli.config.shipped import cat_config

    text = cat_config(source)
    _answer("cat", as_json, {"text": text}, text.rstrip("\n"))


@app.command(
    "cp",
    epilog=examples(
        "robustcli config cp train/digits my.yaml", "robustcli config cp train/folder mine/photos.yaml"
    ),
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
    epilog=examples(
        "robustcli config validate train/digits", "robustcli config validate train/digits ball.eps=8/255"
    ),
)
def validate(words: Words = None, as_json: AsJson = False) -> None:
    """Check a configuration without running it; all mistakes in one pass, exit 2 when there is one."""
    call = Call("config", {"words": words}, Console(json=as_json))
    call.load()
    _answer("validate", as_json, {"problems": []}, f"{call.source() or 'defaults'}: valid")


@app.command(
    "show",
    epilog=examples(
        "robustcli config show train/digits --origin", "robustcli config show train/digits ball.eps=0.05"
    ),
)
def show(words: Words = None, origin: Origin = False, as_json: AsJson = False) -> None:
    """The resolved configuration as YAML, or every value with its origin."""
    from robustcli.config.view import show_rows
    from robustcli.config.written import filled, resolved_yaml, written_out

    loaded = Call("config", {"words": words}, Console(json=as_json)).load()
    text = resolved_yaml(loaded.config).rstrip("\n")
    if origin:
        text = "\n".join(f"{row.key}: {row.value}  # {row.origin}" for row in show_rows(loaded))
    tree = loaded.config.model_dump(mode="json")
    methods = {key: f"default of {name}" for key, name in filled(tree).items()}
    document = {"config": written_out(tree), "origins": {**loaded.origins, **methods}}
    _answer("show", as_json, document, text)


@app.command("schema", epilog=examples("robustcli config schema > schema.json", "robustcli config schema"))
def schema() -> None:
    """The JSON Schema of a configuration, for editors."""
    from robustcli.config.schema import json_schema

    Console().result(json.dumps(json_schema(), indent=2))
