"""Commands run in this process and in forked children, with a guarded model that needs no training.

The tests of this folder are those of the extras guard and serve; without them none is collected.
"""

from importlib.util import find_spec

import pytest
from commands import cli, forked

__all__ = ["cli", "forked"]

_EXTRAS = ("sqlalchemy", "fastapi", "httpx")
if not all(find_spec(name) for name in _EXTRAS):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def stub(monkeypatch):
    """Whatever GUARD says, it is this model."""
    from guarded import Stub

    from robustcli.jobs.guard import run, serve

    model = Stub()
    for job in (run, serve):
        monkeypatch.setattr(job, "open_guard", lambda opening: model)
    return model
