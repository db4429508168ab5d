"""Subcommands of `robustcli guard` are found by their files."""

import importlib
import sys

from typer.testing import CliRunner

from robustcli.cli import guard

AS_VERB = """
POSITION, HELP, EXAMPLES, FLAGS = 1, "First.", ("robustcli a", "robustcli b"), ("json",)
def run(call):
    return {"said": call.verb, "as_json": call.on("json")}
"""
AS_COMMAND = """
POSITION = 2
def register(app):
    @app.command("second")
    def second(word: str) -> None:
        print("said", word)
"""


def test_a_new_file_is_a_new_subcommand(tmp_path, monkeypatch):
    """Either form; an underscore becomes a hyphen, and documents say `guard SUB`."""
    (tmp_path / "first_one.py").write_text(AS_VERB)
    (tmp_path / "second.py").write_text(AS_COMMAND)
    monkeypatch.setattr(guard, "__path__", [*guard.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    try:
        app = guard.app()
        verb = CliRunner().invoke(app, ["first-one", "--json"])
        assert verb.exit_code == 0
        assert '"verb": "guard first-one", "said": "guard first-one", "as_json": true' in verb.output
        assert CliRunner().invoke(app, ["second", "so"]).output == "said so\n"
    finally:
        for name in ("first_one", "second"):
            sys.modules.pop(f"{guard.__name__}.{name}", None)
