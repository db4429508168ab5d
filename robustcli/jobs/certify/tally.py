"""How far a certification is, for the progress bar."""

from __future__ import annotations

import time
from collections.abc import Sequence

from robustcli.evaluation.pulse import Beat
from robustcli.records.certify import CertificateRow
from robustcli.runtime.team import Team
from robustcli.terminal.progress import Bar


class Tally:
    """Certified and robust accuracy so far, shown beside the progress bar, inside a shard too."""

    def __init__(self, bar: Bar, total: int, team: Team) -> None:
        self._bar, self._total, self._team, self._began = bar, total, team, time.perf_counter()
        self._n = self._proven = self._standing = self._measured = 0
        self._inside, self._at = 0.0, ""

    def done(self, rows: Sequence[CertificateRow], known: bool) -> None:
        """Add a shard. known: an earlier run or another process measured it."""
        self._n += len(rows)
        self._measured += 0 if known else len(rows)
        self._proven += sum(row.status == "verified" for row in rows)
        self._standing += sum(row.right and row.broken_at is None for row in rows)
        if not known:
            self._inside = 0.0
            self._team.tell(0.0)
        certified, robust = self._proven / self._n, self._standing / self._n
        self._bar.advance(len(rows), certified=f"{certified:.1%}", robust=f"{robust:.1%}")

    def phase(self, name: str) -> None:
        """What is done now."""
        self._at = name
        self._show(name)

    def certified(self, samples: float) -> None:
        """So many samples' worth of proof was done."""
        self._inside += samples
        self._team.tell(self._inside)
        self._show(self._at)

    def beat(self, beat: Beat) -> None:
        """An attack is at work."""
        self._show(beat.words)

    def _show(self, at: str) -> None:
        inside = self._inside + self._team.told()
        self._bar.within(inside, self._left(inside), at=at)

    def _left(self, inside: float) -> float | None:
        """Seconds to the end, at the speed so far; None while nobody knows.

        inside: samples' worth of proof in hand, of all processes.
        """
        done = self._measured + inside
        if not done:
            return None
        seconds = time.perf_counter() - self._began
        return max(0.0, self._total - self._n - inside) * seconds / done
