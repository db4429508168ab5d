"""Gates are run in this process, on runs made of records: see tests/support/gated.py."""

from functools import cache
from pathlib import Path

import pytest
from commands import cli as bare_cli

from robustcli.cli import app

__all__ = ["bare_cli"]
_BUILD = cache(app.build)  # a tenth of a second, which these tests need not spend a hundred times


@pytest.fixture
def cli(bare_cli, monkeypatch):
    """Run a command; no run leaves a report unless it is asked for one."""
    monkeypatch.setattr(app, "build", _BUILD)
    monkeypatch.setenv("ROBUSTCLI_NO_REPORT", "1")
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)
    return bare_cli


@pytest.fixture
def gate(cli):
    """Write a YAML of thresholds, and judge a run by it."""

    def call(run, thresholds, *flags):
        Path("gate.yaml").write_text(f"thresholds:\n{thresholds}")
        return cli("gate", run, "--thresholds", "gate.yaml", *flags)

    return call
