"""Many processes, one measurement: which of them this is, which shards it takes, how far the others are.

All ranks run the same program over the same samples, and read from shared files what a decision depends on:
so all decide the same. Rank 0 writes the run and speaks. They share no connection. One that dies holds
nothing up, and the others take what it had not finished.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from robustcli.errors import PeerError, ResourceError, UsageError

if sys.platform != "win32":
    import fcntl

#: RANK/WORLD:FOLDER, set by our launcher for each of its processes. They leave files for each other there.
TEAM = "ROBUSTCLI_TEAM"
#: Process id of that launcher, which is the parent of each of them.
LAUNCHER = "ROBUSTCLI_LAUNCHER"
_TEAM = re.compile(r"(\d{1,4})/(\d{1,4}):(/.+)", re.ASCII | re.DOTALL)
#: A file UNMET-RANK in that folder: this rank has found a gate that is not met.
UNMET = "unmet"
_POLL = 0.05  # seconds between two looks at what the others have done
_BUSY = {errno.EAGAIN, errno.EACCES}


def heed_launcher() -> None:
    """Raises PeerError where the launcher of this process is gone.

    Whoever waits for another rank calls it: without a launcher nobody starts a lost one again.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher and launcher != str(os.getppid()):
        raise PeerError("the process that started this one is gone", hint="start the command again")


class Team:
    """Rank r of `world` processes that measure together. ``Team()`` is a process alone.

    Args:
        rank, world: 0 <= rank < world.
        folder: where they leave files for each other; a process alone has none.
        again: this process takes the place of a rank 0 that was lost.
    """

    def __init__(
        self, rank: int = 0, world: int = 1, folder: Path | None = None, *, again: bool = False
    ) -> None:
        self.rank, self.world, self.again, self._folder = rank, world, again, folder
        self._rounds = 0

    @classmethod
    def here(cls) -> Team:
        """The team that the launcher's environment names; a process alone without one. Raises UsageError."""
        text = os.environ.get(TEAM, "")
        if not text:
            return cls()
        match = _TEAM.fullmatch(text)
        if not match or int(match[1]) >= int(match[2]):
            raise UsageError(f"{TEAM}={text!r} is not RANK/WORLD:FOLDER", where="environment")
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return cls(int(match[1]), int(match[2]), Path(match[3]), again=again)

    @property
    def main(self) -> bool:
        """Whether this process writes the run and speaks for all."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    @property
    def folder(self) -> Path:
        """Where the ranks leave files for each other."""
        assert self._folder is not None, "a process alone shares nothing"
        return self._folder

    def round(self) -> Path:
        """The folder of the next work that is shared; all ranks ask for the same works in the same order."""
        self._rounds += 1
        place = self.folder / f"round-{self._rounds}"
        place.mkdir(exist_ok=True)
        return place

    # ---- the start -----------------------------------------------------------------------------------------

    def loaded(self) -> None:
        """Tell that this rank has data and model."""
        if self.many:
            (self.folder / f"loaded-{self.rank}").touch()

    def await_first(self) -> None:
        """Wait until rank 0 has data and model: what it downloads, the others find. Raises PeerError."""
        while not self.main and not (self.folder / "loaded-0").exists():
            heed_launcher()
            time.sleep(_POLL)

    # ---- the end -------------------------------------------------------------------------------------------

    def unmet(self) -> None:
        """Tell that this rank ends with exit code 1 for a gate: a Python that cannot start has the same."""
        if self.many:
            with suppress(OSError):
                (self.folder / f"{UNMET}-{self.rank}").touch()

    # ---- how far they are ----------------------------------------------------------------------------------

    def tell(self, units: float) -> None:
        """Tell the others how many units of work this rank has in hand that are done, but in no shard yet."""
        if self.many:
            place, fresh = self.folder / f"inside-{self.rank}", self.folder / f"fresh-{self.rank}"
            with suppress(OSError):  # a lost line of progress is no failure
                fresh.write_text(json.dumps(units))
                fresh.replace(place)

    def told(self) -> float:
        """Units that the other ranks have in hand. The launcher removes what a lost rank has told."""
        return sum(self._inside(rank) for rank in range(self.world) if rank != self.rank)

    def _inside(self, rank: int) -> float:
        try:
            return float(json.loads((self.folder / f"inside-{rank}").read_text()))
        except (OSError, ValueError, TypeError):
            return 0.0

    # ---- who does what -------------------------------------------------------------------------------------

    def shares(
        self,
        numbers: Sequence[int],
        arrived: Callable[[int], bool],
        idle: Callable[[], None] = lambda: None,
    ) -> Iterator[list[int]]:
        """Numbers of shards that this rank measures next, until all are there; a process alone gets all.

        The caller has saved all of them when it asks for the next ones. First turns are long, the last ones
        are single shards, so that all ranks end together.

        Args:
            numbers: of all shards that are wanted and not there yet.
            arrived: whether the shard is there, whoever has measured it.
            idle: called now and then while other ranks measure the last shards; may raise to interrupt.

        Raises PeerError where it would wait and the launcher is gone.
        """
        if not self.many:
            if numbers:
                yield list(numbers)
            return
        claims, left = Claims(self.round() / "claims"), list(numbers)
        try:
            while left := [number for number in left if not arrived(number)]:
                mine = self._take(claims, left, arrived)
                if mine:
                    yield mine
                    claims.release(mine)
                else:
                    heed_launcher()
                    idle()
                    time.sleep(_POLL)
        finally:
            claims.close()

    def _take(self, claims: Claims, left: Sequence[int], arrived: Callable[[int], bool]) -> list[int]:
        """The first free shards of `left`: half of what falls to one rank, at least one."""
        mine: list[int] = []
        for number in left:
            if len(mine) == -(-len(left) // (2 * self.world)):
                break
            if claims.take(number):
                if arrived(number):  # between two looks
                    claims.release([number])
                else:
                    mine.append(number)
        return mine


class Claims:
    """Which process works on which shard: for each a lock on one byte of a file, which dies with its holder.

    Children do not inherit these locks. A process opens a file of claims once: closing it anywhere in the
    process frees them all.

    Raises ResourceError: the file cannot be opened or locked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _no_claims(path, error) from error

    def take(self, number: int) -> bool:
        """Claim a shard; False where another process has it."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise _no_claims(self._path, error) from error
        return True

    def release(self, numbers: Sequence[int]) -> None:
        """Give shards back."""
        for number in numbers:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, number)

    def close(self) -> None:
        """Give all of them back."""
        os.close(self._fd)


def _no_claims(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"processes cannot share work: {error.strerror or error}",
        where=str(path),
        hint="set TMPDIR to a local disk, or leave --nproc out",
    )
