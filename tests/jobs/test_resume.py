"""A killed or interrupted training goes on to the same bits."""

import os
import random
import signal
import time

import pytest
import torch
from jobs_support import TINY, final_state, same

from robustcli.store.snapshot import latest_good
from robustcli.store.status import read_status

KILLS, SLOW_KILLS = 25, 200


def _reference(forked, tmp_path, *more):
    began = time.monotonic()
    wait, _ = forked("train", *TINY, "--out", "reference", *more)
    assert wait() == 0, (tmp_path / "err.txt").read_text()
    return final_state(tmp_path / "reference"), time.monotonic() - began


def _kill_and_resume(forked, tmp_path, count, seed, *more):
    expected, seconds = _reference(forked, tmp_path, *more)
    draw = random.Random(seed)
    killed = 0
    for k in range(count):
        out = f"run{k}"
        wait, pid = forked("train", *TINY, "--out", out, *more)
        time.sleep(draw.uniform(0.02, seconds))
        os.kill(pid, signal.SIGKILL)
        killed += wait() == -signal.SIGKILL
        warnings = []
        before = (
            latest_good(tmp_path / out / "checkpoints", warnings.append)
            if (tmp_path / out / "checkpoints").exists()
            else None
        )
        resumed = ("--resume",) if (tmp_path / out / ".lock").exists() else ()
        wait, _ = forked("train", *TINY, "--out", out, *resumed, *more)
        assert wait() == 0, (tmp_path / "err.txt").read_text()
        text = (tmp_path / "err.txt").read_text()
        if before is not None:
            assert f"resuming at step {before.step}" in text
            assert all(
                "there is no pointer" in said for said in warnings
            )  # killed between the first save and its pointer: nothing is lost
        same(final_state(tmp_path / out), expected)
    return killed


@pytest.mark.parametrize("part", [0, 1, *(pytest.param(part, marks=pytest.mark.slow) for part in (2, 3, 4))])
def test_kill_9_at_random_points_then_resume_gives_the_same_bits(forked, tmp_path, part):
    assert _kill_and_resume(forked, tmp_path, KILLS // 5, part) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_kill_9_at_200_random_points(forked, tmp_path, part):
    assert _kill_and_resume(forked, tmp_path, SLOW_KILLS // 10, 100 + part) >= 10


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "more",
    [
        ("precision=bf16", "search.precision=bf16"),
        ("precision=fp32", "search.precision=fp32", "train.attack_bn=train"),
        ("objective=natural", "train.optimizer.name=adamw", "train.optimizer.lr=0.01"),
        pytest.param(
            (
                "objective=mixed",
                "train.schedule=cyclic",
                "data.augment={crop: 1, flip: true}",
                "train.grad_clip=0.5",
            ),
            marks=_SLOW,
        ),
        pytest.param(
            ("model={name: wide_resnet, depth: 10, width: 1, dropout: 0.3}", "train.steps=9"), marks=_SLOW
        ),
        pytest.param(("train.parallel=dp",), marks=_SLOW),
        pytest.param(("objective={name: smoothadv, sigma: 0.3}", "ball={norm: l2, eps: 0.5}"), marks=_SLOW),
    ],
    ids=["bf16", "bn-train", "adamw", "augment", "dropout", "dp", "smoothadv"],
)
@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_the_last_boundary_and_resume_gives_the_same_bits(forked, tmp_path, more, signum):
    expected, seconds = _reference(forked, tmp_path, *more)
    wait, pid = forked("train", *TINY, "--out", "run", *more, err="run.txt")
    said, end = tmp_path / "run.txt", time.monotonic() + 150
    while not (said.exists() and "training " in said.read_text()) and time.monotonic() < end:
        time.sleep(0.001)
    began = time.monotonic()
    os.kill(pid, signum)
    code = wait()
    assert time.monotonic() - began < 25  # 5 s, on a machine with five times the work
    if code != 0:  # it may have finished first
        assert code == 128 + signum
        status = read_status(tmp_path / "run")
        assert (status["state"], status["code"], status["resumable"]) == ("preempted", code, True)
        text = said.read_text()
        assert "preempted at step" in text and "--resume" in text and "Traceback" not in text
    wait, _ = forked("train", *TINY, "--out", "run", *more, "--resume")
    assert wait() == 0, (tmp_path / "err.txt").read_text()
    same(final_state(tmp_path / "run"), expected)


def test_a_key_that_came_later_is_no_other_experiment(forked, tmp_path):
    """Its default is what the run was trained with; another value is another experiment."""
    augment = "data.augment={crop: 1, flip: false}"
    assert forked("train", *TINY, "--out", "run", augment, "train.steps=6")[0]() == 0
    script = """
from robustcli.jobs import resuming
completed = resuming._completed
def older(tree):
    for key in ("rotate", "scale", "translate"):
        del tree["data"]["augment"][key]
    return completed(tree)
resuming._completed = older
"""
    words = ("train", *TINY, "--out", "run", "--resume", "train.steps=9")
    assert forked(*words, augment, prepare=lambda: exec(script, {}))[0]() == 0
    assert (
        forked(
            *words,
            "data.augment={crop: 1, flip: false, rotate: 3}",
            prepare=lambda: exec(script, {}),
            err="err.txt",
        )[0]()
        == 2
    )
    assert "data.augment.rotate" in (tmp_path / "err.txt").read_text()


def test_two_interrupts_end_at_once(forked, tmp_path):
    wait, pid = forked(
        "train",
        *TINY,
        "--out",
        "run",
        "train.steps=100000",
        "train.save_every=100000",
        "train.validate_every=100000",
    )
    end = time.monotonic() + 150
    while not (tmp_path / "err.txt").exists() or "training " not in (tmp_path / "err.txt").read_text():
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGINT)
    assert wait(25) == 130


def test_a_damaged_last_checkpoint_falls_back_with_a_warning(forked, tmp_path):
    expected, _ = _reference(forked, tmp_path)
    wait, _ = forked("train", *TINY, "--out", "run")
    assert wait() == 0
    last = tmp_path / "run" / "checkpoints" / (tmp_path / "run" / "checkpoints" / "last").read_text().strip()
    data = bytearray((last / "model.safetensors").read_bytes())
    data[-3] ^= 4
    (last / "model.safetensors").write_bytes(bytes(data))
    wait, _ = forked("train", *TINY, "--out", "run", "--resume")
    assert wait() == 0
    assert "warning" in (tmp_path / "err.txt").read_text()
    same(final_state(tmp_path / "run"), expected)


def test_log_lines_are_those_of_the_uninterrupted_run(forked, tmp_path):
    import json

    _reference(forked, tmp_path)
    wait, pid = forked("train", *TINY, "--out", "run")
    while not (tmp_path / "run" / "checkpoints" / "last").exists():
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    wait()
    wait, _ = forked("train", *TINY, "--out", "run", "--resume")
    assert wait() == 0
    timing = {"images_per_second", "waiting_share", "seconds", "peak_memory"}
    texts = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("reference", "run")]
    rows = [
        [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines] for lines in texts
    ]
    assert rows[0] == rows[1] and len(rows[0]) >= 2


def test_the_seed_decides_everything(forked, tmp_path):
    first, _ = _reference(forked, tmp_path)
    wait, _ = forked("train", *TINY, "--out", "again")
    assert wait() == 0
    same(final_state(tmp_path / "again"), first)
    wait, _ = forked("train", *TINY, "--out", "other", "seed=1")
    assert wait() == 0
    other = final_state(tmp_path / "other")
    assert any(not torch.equal(first["model"][k], other["model"][k]) for k in first["model"])


def test_a_finished_run_in_minutes_goes_on_to_more_and_not_to_fewer(forked, tmp_path):
    """The probe of the new budget puts another progress into the trainer; the old one has no step left."""
    words = ("train", *TINY, "--out", "run", "train.steps=null", "train.save_every=100000")
    allowed = ("--resume", "--override-resume", "train.minutes")
    assert forked(*words, "train.minutes=0.01")[0]() == 0, (tmp_path / "err.txt").read_text()
    first = read_status(tmp_path / "run")["step"]
    assert forked(*words, "train.minutes=0.03", *allowed)[0]() == 0, (tmp_path / "err.txt").read_text()
    assert read_status(tmp_path / "run")["step"] > first > 0
    assert forked(*words, "train.minutes=0.001", *allowed, err="fewer.txt")[0]() == 2
    assert "of 0.001 minutes already" in (tmp_path / "fewer.txt").read_text()
