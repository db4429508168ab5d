"""Every document of `--json` that a test prints is held against docs/documents.yaml, see docs/cli.md."""

from functools import cache
from pathlib import Path

import yaml

from robustcli.records.document import ENVELOPE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "documents.yaml"


@cache
def documented():
    """Verb -> keys of its document."""
    return {verb: set(keys) for verb, keys in yaml.safe_load(PAGE.read_text(encoding="utf-8")).items()}


def check(document):
    """Raises AssertionError for a document of a verb, or a key of it, that the page does not have."""
    if not document.get("ok") or "verb" not in document:
        return
    verb = document["verb"]
    known = documented().get("demo guard" if verb == "demo" and "promoted" in document else verb)
    assert known is not None, f"docs/documents.yaml says nothing of `{verb}`: add it, and run make docs"
    unknown = set(document) - known - {*ENVELOPE, "error"}
    assert not unknown, f"docs/documents.yaml lacks {sorted(unknown)} of `{verb}`: add them, make docs"
