"""Gates are run in this process, on runs made of records: see tests/support/gated.py."""

from pathlib import Path

import pytest
from commands import cli

__all__ = ["cli"]


@pytest.fixture
def gate(cli, tmp_path):
    """Write a YAML of thresholds, and judge a run by it."""

    def call(run, thresholds, *flags):
        Path("gate.yaml").write_text(f"thresholds:\n{thresholds}")
        return cli("gate", run, "--thresholds", "gate.yaml", *flags)

    return call
