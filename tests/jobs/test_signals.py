"""The real training under signals: one process, two ranks, and two ranks under our launcher."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs_support import IMAGES, WORKER, Job, all_same, hit_at, leave_digest, moments, pick, write_images

from robustcli.assembly.launch import launch
from robustcli.store.retention import resolve_checkpoint
from robustcli.store.snapshot import load_checkpoint
from robustcli.store.status import read_status
from robustcli.terminal.console import Console

pytestmark = pytest.mark.usefixtures("warm")

STRONG = (
    "objective=trades",
    "adversary={name: pgd, steps: 2}",
    "train.hooks=[{name: ema, decay: 0.9}, {name: awp, gamma: 0.02}]",
)
FEEDS = {
    "memory": ("data.storage=memory",),
    "workers": ("data.storage=stream", "data.workers=2"),
    "cached": ("data.storage=cached", "data.cache=cache"),
}
TERM, KILL = signal.SIGTERM, signal.SIGKILL
SECONDS = 25.0  # from a signal to the end of the process: 5 s, on a machine with five times the work


def job(forked: Any, folder: Path, *words: str, ranks: int = 1, feed: str = "memory") -> Job:
    write_images(folder)
    return Job(forked, folder, (*IMAGES, *STRONG, *FEEDS[feed], *words), ranks=ranks)


def preempted(work: Job, out: str, codes: list[int], *, at: int = 0, seconds: float = SECONDS) -> bool:
    """Whether a run was stopped by the signal that rank `at` got: then in time, saved, and it says so.

    Else it was at its end.
    """
    sent = hit_at(work.said(out, at))
    assert sent is not None and time.monotonic() - sent < seconds
    status = read_status(work.folder / out)
    if codes == [0] * work.ranks:
        assert (status["state"], status["code"]) == ("done", 0)
        return False
    assert codes == [143] * work.ranks, (codes, work.texts)
    last = load_checkpoint(resolve_checkpoint(work.folder / out / "checkpoints"))
    assert (status["state"], status["code"], status["resumable"], status["step"]) == (
        "preempted",
        143,
        True,
        last.step,
    )
    assert f"preempted at step {last.step} of 8" in work.texts[0] and "--resume" in work.texts[0]
    return True


def stop_and_resume(work: Job, out: str, moment: int, expected: Path, *, at: int = 0) -> bool:
    stopped = preempted(work, out, work.run(out, hits={moment: TERM}, at=at), at=at)
    all_same(work.finish(out), expected)
    return stopped


# ---- one process -------------------------------------------------------------------------------------------


def test_a_termination_at_any_moment_is_saved_and_resumed_to_the_bit(forked: Any, tmp_path: Path) -> None:
    work = job(forked, tmp_path)
    expected, draw = work.finish("reference"), random.Random(0)
    names = moments(work.said("reference"))
    stopped = [
        stop_and_resume(work, kind, pick(names[: -len(names) // 8], draw, kind), expected)
        for kind in ("start", "attack", "validate", "save")
    ]
    assert all(stopped)


@pytest.mark.slow
@pytest.mark.parametrize("feed", FEEDS)
def test_a_termination_at_20_moments(forked: Any, tmp_path: Path, feed: str) -> None:
    work = job(forked, tmp_path, feed=feed)
    expected, draw = work.finish("reference"), random.Random(feed)
    names = moments(work.said("reference"))
    assert sum(stop_and_resume(work, f"run{k}", pick(names, draw), expected) for k in range(10)) >= 7


@pytest.mark.parametrize(
    "seconds", [0.0, 0.02, *(pytest.param(0.05 * k, marks=pytest.mark.slow) for k in range(1, 10))]
)
def test_a_termination_before_anything_was_begun_leaves_nothing_in_the_way(
    forked: Any, tmp_path: Path, seconds: float
) -> None:
    work = job(forked, tmp_path, "train.steps=3")
    ((wait, pid),) = work.start("run")
    time.sleep(seconds)
    os.kill(pid, TERM)
    sent = time.monotonic()
    code = wait()
    assert time.monotonic() - sent < SECONDS and code in (-TERM, 143, 0)
    status = read_status(tmp_path / "run")
    if code == -TERM:
        assert status.get("state") in (None, "running") and not (tmp_path / "run" / "checkpoints").exists(), (
            "not even a run that could stop"
        )
    else:
        assert (status["state"], status["resumable"]) == ("preempted" if code else "done", True)
    assert load_checkpoint(resolve_checkpoint(work.finish("run") / "checkpoints")).step == 3


# ---- two ranks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("attack", 1),
        *(
            pytest.param(kind, at, marks=pytest.mark.slow)
            for kind in ("start", "feed", "descend", "average", "validate")
            for at in (0, 1)
        ),
    ],
)
def test_a_termination_of_one_rank_stops_both_at_the_same_step(
    forked: Any, tmp_path: Path, kind: str, at: int
) -> None:
    work = job(forked, tmp_path, ranks=2)
    expected = work.finish("reference")
    names = moments(work.said("reference", at))
    moment = pick(names[: -len(names) // 4], random.Random(kind), kind)
    assert stop_and_resume(work, "run", moment, expected, at=at)


@pytest.mark.parametrize(
    "words",
    [
        (),
        (
            "train.hooks=[{name: swa, start: 0.2}]",
            "train.micro_batch=5",
            "precision=bf16",
            "data.cutmix={alpha: 1.0}",
        ),
    ],
)
def test_ranks_end_with_the_same_bits(forked: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    """small_cnn: BatchNorm's buffers are shared too."""
    assert len(set(digests(job(forked, tmp_path, *words, ranks=2), "run"))) == 1


def digests(work: Job, out: str) -> list[str]:
    """The hash that each rank leaves of its own state."""
    work.prepare = lambda rank: leave_digest(work.folder / f"{out}-{rank}.digest")
    work.finish(out)
    found = [(work.folder / f"{out}-{rank}.digest").read_text() for rank in range(work.ranks)]
    assert all(len(text) == 64 for text in found)
    return found


#: Largest difference of any number in weights, average and momentum after 10 steps: 1.3e-6 in five seeds,
#: times 10. (Weights move by 0.18.)
TOLERANCE = 1.3e-5


def test_two_ranks_are_one_process_with_the_same_batch(forked: Any, tmp_path: Path) -> None:
    """Each rank multiplies half of the rows, which rounds otherwise.

    linf: an l2 step divides the small gradient of the KL, and its rounding, by its length.
    """
    words = (
        "model={name: mlp, hidden: [16], activation: silu}",
        "train.steps=10",
        "train.schedule=cosine",
        "train.optimizer.lr=0.01",
    )
    words += ("precision=fp32", "search.precision=fp32")
    two = job(forked, tmp_path, *words, ranks=2)
    alone = Job(forked, tmp_path, two.words)
    assert len(set(digests(two, "two"))) == 1
    groups = [
        load_checkpoint(resolve_checkpoint(path / "checkpoints")).groups
        for path in (alone.finish("alone"), tmp_path / "two")
    ]
    assert groups[0].keys() == groups[1].keys() >= {"model", "live", "optimizer"}
    apart = [
        (tensor - groups[1][name][key]).abs().max()
        for name, group in groups[0].items()
        for key, tensor in group.items()
    ]
    assert 0 < float(torch.stack([t.float() for t in apart]).max()) <= TOLERANCE


# ---- under the launcher ------------------------------------------------------------------------------------

Launched = Callable[..., int]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launched:
    """`launched(work, rank, moment, signum)`: the launcher's exit code for a training that is hit once.

    The command is `robustcli train ... --out run --nproc 2`; the signal comes in the first attempt.
    """

    def start(work: Job, rank: int, moment: int, signum: int, *, restarts: int = 0) -> int:
        (tmp_path / "worker.py").write_text(WORKER)
        monkeypatch.setenv("HIT", json.dumps({"rank": rank, "moment": moment, "signum": int(signum)}))
        monkeypatch.setenv("ROBUSTCLI_PG_TIMEOUT", "60")
        words = ("train", *work.words, "--out", "run", "--overwrite")
        return launch(words, 2, restarts, Console(), command=(sys.executable, str(tmp_path / "worker.py")))

    return start


def reference(forked: Any, tmp_path: Path, rank: int, kind: str, seed: int) -> tuple[Job, Path, int]:
    """Job, uninterrupted run, and a rank's moment after the first checkpoint and before the last eighth."""
    work = job(forked, tmp_path, ranks=2)
    expected = work.finish("reference")
    names = moments(work.said("reference", rank))
    first = [k for k, name in enumerate(names) if name == "feed"][4]
    return work, expected, first + pick(names[first : -len(names) // 8], random.Random(seed), kind)


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        pytest.param(kind, 1, marks=pytest.mark.slow)
        for kind in ("attack", "feed", "descend", "average", "validate")
    ],
)
def test_a_restart_after_a_lost_rank_ends_in_the_same_bits(
    forked: Any, launched: Launched, tmp_path: Path, capfd: Any, kind: str, seed: int
) -> None:
    work, expected, moment = reference(forked, tmp_path, 1, kind, seed)
    assert launched(work, 1, moment, KILL, restarts=1) == 0
    err = capfd.readouterr().err
    assert (
        "warning: rank 1: killed by SIGKILL; restart 1 of 1 from the last checkpoint" in err
        and "resuming at step" in err
    )
    all_same(tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["start", "attack", "descend", "validate"])
def test_without_restarts_the_lost_rank_is_named(
    forked: Any, launched: Launched, tmp_path: Path, capfd: Any, kind: str
) -> None:
    work, expected, moment = reference(forked, tmp_path, 1, "feed" if kind == "start" else kind, 2)
    assert launched(work, 1, 0 if kind == "start" else moment, KILL) == 8
    assert capfd.readouterr().err.splitlines()[-1] == "rank 1: killed by SIGKILL"
    status = read_status(tmp_path / "run")
    assert (status["state"], status["code"]) == ("failed", 8) and status["resumable"] is (kind != "start")
    all_same(work.finish("run"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "signum"), [(0, -TERM), (1, TERM)], ids=["launcher", "one rank"])
def test_a_termination_under_the_launcher(
    forked: Any, launched: Launched, tmp_path: Path, capfd: Any, rank: int, signum: int
) -> None:
    work, expected, moment = reference(forked, tmp_path, rank, "attack", 3)
    assert launched(work, rank, moment, signum) == 143
    sent = hit_at(tmp_path / f"worker-{rank}-0.moments")
    assert sent is not None and time.monotonic() - sent < SECONDS
    status, err = read_status(tmp_path / "run"), capfd.readouterr().err
    assert (status["state"], status["code"], status["resumable"]) == ("preempted", 143, True)
    assert f"preempted at step {status['step']} of 8" in err and "warning" not in err
    all_same(work.finish("run"), expected)
