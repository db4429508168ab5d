"""After the first save there is always a loadable, verified checkpoint.

That holds whatever is killed, damaged, pruned or resumed in between.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import torch
from fail_points import FAIL_POINTS
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from robustcli.errors import CheckpointError
from robustcli.store import checkpoint
from robustcli.store.checkpoint import save_checkpoint
from robustcli.store.retention import candidates, pointed, prune, sweep
from robustcli.store.snapshot import latest_good


def save(root: Path, step: int, tags: tuple[str, ...]) -> None:
    save_checkpoint(root, step, {"model": {"w": torch.full((3,), float(step))}}, {"step": step}, tags=tags)


class Checkpoints(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="robustcli-test-"))
        self.step = 0  # of the job in memory
        self.proven = 0  # step of the last save that returned
        self.damaged = 0  # step whose directory was damaged since; one fault at a time
        self.faulty: Path | None = None  # that directory; a later save may leave it where it is

    @rule(best=st.booleans())
    def train_and_save(self, best: bool) -> None:
        self.step += 1
        save(self.root, self.step, ("last", "best") if best else ("last",))
        self.proven, self.damaged = self.step, 0

    @precondition(lambda self: not self.damaged)
    @rule(point=st.sampled_from(FAIL_POINTS), again=st.booleans())
    def killed_save(self, point: str, again: bool) -> None:
        """The next step, or the same step once more after a resume."""
        step = max(1, self.step if again else self.step + 1)
        pid = os.fork()
        if pid == 0:
            code = 9
            try:
                checkpoint.fail_point = lambda name: (
                    os.kill(os.getpid(), signal.SIGKILL) if name == point else None
                )
                save(self.root, step, ("last",))
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL)
        got = latest_good(self.root, lambda text: None)
        self.proven = max(self.proven, got.step if got else 0)
        self.resume()

    @precondition(lambda self: not self.damaged and len(candidates(self.root)) > 1)
    @precondition(lambda self: self.faulty is None or not self.faulty.exists())
    @rule(seed=st.integers(0, 1000), pointer=st.booleans())
    def damage_the_last(self, seed: int, pointer: bool) -> None:
        r = random.Random(seed)
        if pointer:
            (self.root / "last").write_bytes(r.randbytes(12))
            return
        try:
            name = pointed(self.root, "last")
        except CheckpointError:  # damaged before
            return
        if name is None:
            return
        file = self.root / name / r.choice(["model.safetensors", "manifest.json"])
        data = bytearray(file.read_bytes())
        data[r.randrange(len(data))] ^= 1 + r.randrange(255)
        file.write_bytes(data)
        self.damaged, self.faulty = self.proven, file.parent

    @rule()
    def resume(self) -> None:
        sweep(self.root)
        got = latest_good(self.root, lambda text: None)
        self.step = got.step if got else 0

    @rule()
    def prune(self) -> None:
        if not self.damaged:
            prune(self.root, self.step, 2)

    @invariant()
    def a_verified_checkpoint_exists(self) -> None:
        try:
            got = latest_good(self.root, lambda text: None)
        except CheckpointError as error:
            raise AssertionError(f"everything is lost: {error}") from error
        if self.proven:
            assert (
                got is not None
                and torch.equal(got.groups["model"]["w"], torch.full((3,), float(got.step)))
                and got.meta == {"step": got.step}
            )
            assert got.step >= (self.proven if not self.damaged else 1)

    def teardown(self) -> None:
        shutil.rmtree(self.root)


TestCheckpoints = Checkpoints.TestCase
TestCheckpoints.settings = settings(max_examples=8, stateful_step_count=10, deadline=None, derandomize=True)
