"""The evidence of a guarded model in a database: alarms with their images, observations, and a log.

It is one SQLite file, or a PostgreSQL database for several hosts; SQLAlchemy speaks to both.
"""

from robustcli.errors import ResourceError

try:
    from robustcli.guard.store.database import address
    from robustcli.guard.store.evidence import EvidenceStore
    from robustcli.guard.store.rows import Entry, Evidence, Limits, Observation, Review, Seen
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "sqlalchemy":
        raise
    raise ResourceError(
        "the evidence store needs SQLAlchemy, which is not installed",
        hint="pip install 'robustcli[guard]'",
        code="E-EXTRA",
    ) from error

__all__ = ["Entry", "Evidence", "EvidenceStore", "Limits", "Observation", "Review", "Seen", "address"]
