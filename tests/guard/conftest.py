"""Commands run in this process and in forked children, with a guarded model that needs no training."""

import pytest
from commands import cli, forked
from guarded import Stub

from robustcli.jobs.guard import run, serve

__all__ = ["cli", "forked"]


@pytest.fixture
def stub(monkeypatch):
    """Whatever GUARD says, it is this model."""
    model = Stub()
    for job in (run, serve):
        monkeypatch.setattr(job, "open_guard", lambda opening: model)
    return model
