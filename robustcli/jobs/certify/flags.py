"""What the command line alone says of a certification."""

from __future__ import annotations

from dataclasses import dataclass

from robustcli.jobs.verb_flags import MeasureFlags


@dataclass(frozen=True)
class CertifyFlags(MeasureFlags):
    """`certify`.

    Args:
        resume: go on with the run of this name or directory.
        strict: a suspect or invalid evaluation is an error.
        shard: I/N, measure only this part.
        check: a certificate, or a folder of them, to look at again.
        export: folder for what stays unknown.
    """

    resume: bool = False
    strict: bool = False
    shard: str | None = None
    check: str | None = None
    export: str | None = None
