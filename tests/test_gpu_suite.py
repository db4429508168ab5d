"""Benchmarks that need a GPU or an idle machine, at toy size on a CPU: they run, and notice what is wrong."""

from __future__ import annotations

import importlib
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A benchmark as a module, in an empty directory; torch's global state comes back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    rng, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module
    torch.set_rng_state(rng)
    torch.set_num_threads(threads)


@pytest.fixture
def npz(tmp_path):
    """Images of two shades, a class each."""
    path, y = tmp_path / "small.npz", np.arange(96) % 2
    x = (np.full((96, 3, 8, 8), 64) + 96 * y[:, None, None, None] + np.arange(64).reshape(8, 8) % 7).astype(
        np.uint8
    )
    np.savez(path, x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
    return path


def rows(tmp_path, part):
    document = json.loads((tmp_path / f"gpu_{part}.json").read_text())
    assert (
        document["toy"] is True
        and document["device"] == "cpu"
        and document["environment"]["torch"] == str(torch.__version__)
    )
    return {row["name"]: row for row in document["rows"]}


def test_check_passes_on_honest_code(load, tmp_path, capsys):
    suite = load("gpu_suite")
    assert suite.main(["--part", "check", "--toy", "--out", str(tmp_path)]) == 0
    found = rows(tmp_path, "check")
    ways = ("folded fp32", "folded bf16", "folded bf16, compiled", "growing batches")
    assert all(found[f"flipped verdicts, {way}"]["passed"] for way in ways)
    resumed = found["tensors that differ after a resume"]
    assert resumed["value"] == 0 and resumed["note"] == "of 57 after 12 steps"
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    assert document["passed"] is True and document["left_out"] == [] and document["trained"]["steps"] == 12
    assert "FAILED" not in capsys.readouterr().out and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_a_resume_that_forgets_is_found(load, monkeypatch):
    check, state = load("gpu_check"), load("robustcli.training.saved")
    words = [*load("gpu_suite").TOY, "data.name=fake", "train.steps=6", "train.save_every=2"]
    with monkeypatch.context() as broken:
        broken.setattr(state, "unpack_optimizer", lambda model, optimizer, packed, where="": None)
        row = check.resume(words, "cpu")
        assert row.passed is False and row.value > 0
    assert check.resume(words, "cpu").passed is True
    monkeypatch.setattr(check, "_STOP_AFTER", 10**6)
    assert check.resume(words, "cpu").passed is False


@pytest.mark.slow
def test_a_search_that_finds_nothing_is_found(load, tmp_path, monkeypatch):
    suite, check, twin = load("gpu_suite"), load("gpu_check"), load("robustcli.core.twin").SearchTwin
    trained = suite.command("train", *suite.TOY, "data.name=fake", "train.steps=40")
    monkeypatch.setattr(twin, "__call__", lambda self, x: self._logits(x, self._run) * 0)
    monkeypatch.setattr(twin, "parity", lambda self, x: "")
    found = {
        row.name: row
        for row in check.check(
            trained["run"], "cpu", n=60, short=[*suite.TOY, "data.name=fake", "train.steps=4"]
        )
    }
    assert (
        found["flipped verdicts, folded fp32"].passed is False
        and found["flipped verdicts, growing batches"].passed is True
    )


@pytest.mark.slow
def test_train_and_verdict_on_given_data(load, tmp_path, npz):
    suite = load("gpu_suite")
    shared = ["--toy", "--out", str(tmp_path), "--data", str(npz)]
    assert suite.main(["--part", "train", *shared, "train.batch_size=16", "data.size=null"]) == 0
    found = rows(tmp_path, "train")
    assert found["clean accuracy, n = 32"]["value"] >= found["robust accuracy, PGD-20, n = 32"]["value"]
    document = json.loads((tmp_path / "gpu_train.json").read_text())
    assert (
        document["minutes"] == 0.02
        and document["trained"]["steps"] >= 1
        and document["evaluated"]["attacks"][0]["name"] == "pgd-20"
    )
    code = suite.main(
        ["--part", "verdict", "--toy", "--out", str(tmp_path), "--versions", "rapid", "--n", "6"]
    )
    verdict = json.loads((tmp_path / "gpu_verdict.json").read_text())
    assert (
        code == (0 if verdict["evaluated"]["rapid"]["reliability"] == "ok" else 1)
        and verdict["evaluated"]["rapid"]["n"] == 6
    )


def test_speed(load, tmp_path):
    suite = load("gpu_suite")
    assert suite.main(["--part", "speed", "--toy", "--out", str(tmp_path)]) == 0
    found = rows(tmp_path, "speed")
    assert found["step: plain loop fp32, images/s"]["value"] > 0
    assert found["cpu / cpu, PGD-10 step, times"]["value"] > 0
    share = found["PGD-10 step, fp32, compile auto, share of the matmul rate"]
    assert 0 < share["value"] < 1 and share["passed"] is None, "a toy is not judged"
    document = json.loads((tmp_path / "gpu_speed.json").read_text())
    assert document["steps"][0]["passes_per_image"] == 23
    assert len(document["seconds"]["step: plain loop fp32"]) == 2
    assert document["autoattack"]["robustcli rapid"]["n"] == 4


@pytest.mark.slow
def test_the_standard_verdict(load, tmp_path):
    suite = load("gpu_suite")
    suite.command("train", *suite.TOY, "data.name=fake", "train.steps=12")
    both = ("--versions", "rapid,standard")
    suite.main(["--part", "verdict", "--toy", "--out", str(tmp_path), *both])
    assert {"AutoAttack rapid, alarms", "AutoAttack standard, alarms"} <= set(rows(tmp_path, "verdict"))


# ---- budgets -----------------------------------------------------------------------------------------------


@pytest.fixture
def report(load, tmp_path):
    """report(budget): of a part whose file is gpu_x.json."""
    made = load("gpu_report")

    def start(budget):
        head = {"part": "x", "device": "cpu"}
        return made.Report(tmp_path / "gpu_x.json", head, budget, time.monotonic())

    return start


def written(tmp_path):
    return json.loads((tmp_path / "gpu_x.json").read_text())


def test_a_line_for_which_no_time_is_left_is_named_and_not_begun(load, report, tmp_path, capsys):
    made, shown = load("gpu_report"), report(30.0)
    one, late = (made.Row(name, 1.0) for name in ("one", "late"))
    lines = [made.Line("a", 1, lambda: [one]), made.Line("b", 60, lambda: pytest.fail("begun"))]
    shown.run([*lines, made.Line("c", 1, lambda: [late])])
    found = written(tmp_path)
    assert [row["name"] for row in found["rows"]] == ["one", "late"] and found["passed"] is True
    assert found["left_out"] == ["b: 30 s are left, it needs 60"]
    assert "| one | 1 |" in capsys.readouterr().out


def test_what_was_measured_is_on_the_disk_before_the_next_line_begins(load, report, tmp_path):
    made, shown = load("gpu_report"), report(None)

    def second():
        assert [row["value"] for row in written(tmp_path)["rows"]] == [1.0]
        yield made.Row("a", 2.0, passed=False)
        assert written(tmp_path)["rows"][0]["value"] == 2.0 and written(tmp_path)["passed"] is False

    shown.run([made.Line("a", 0, lambda: [made.Row("a", 1.0)]), made.Line("b", 0, second)])


@pytest.mark.parametrize("by", ["budget", "SIGTERM"])
def test_an_end_in_the_middle_keeps_what_was_measured(load, tmp_path, monkeypatch, by):
    """As `timeout` ends it, or its own budget, in code that has no other handler."""
    suite, made = load("gpu_suite"), load("gpu_report")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]

    def part(options, report):
        report.run([made.Line("a", 0, lambda: [made.Row("a", 1.0)]), made.Line("b", 0, hang)])

    def hang():
        if by == "SIGTERM":
            signal.raise_signal(signal.SIGTERM)
        time.sleep(20)
        return []

    monkeypatch.setitem(suite.PARTS, "train", part)
    budget = {"budget": "0.3", "SIGTERM": "60"}[by]
    try:
        words = ["--part", "train", "--toy", "--out", str(tmp_path), "--budget", budget]
        assert suite.main(words, began=time.monotonic()) == 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGTERM, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)
    found = json.loads((tmp_path / "gpu_train.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["a"] and "in b" in found["left_out"][0]


def test_a_verb_that_a_signal_ends_is_an_end_in_time(load, monkeypatch):
    suite, made = load("gpu_suite"), load("gpu_report")
    monkeypatch.setattr(suite, "run", lambda argv: 143)
    with pytest.raises(made.OutOfTime, match="robustcli train was stopped"):
        suite.command("train")


def test_a_verdict_takes_as_many_images_as_fit(load, tmp_path, monkeypatch):
    """A probe of 64 images, then as many as its seconds say."""
    suite, asked = load("gpu_suite"), []
    judged = {
        "intervals": {"clean_acc": (0.1, 0.9), "robust_acc": (0.1, 0.9)},
        "reliability": "ok",
        "alarms": [],
    }

    def answer(*argv):
        asked.append(int(argv[argv.index("--n") + 1]))
        time.sleep(asked[-1] / 640)
        return {"n": asked[-1], "clean_acc": 0.5, "robust_acc": 0.25, **judged}

    monkeypatch.setattr(suite, "command", answer)
    monkeypatch.setattr(suite, "_NEED", 0.0)
    words = ["--part", "verdict", "--toy", "--out", str(tmp_path), "--n", "10000", "--versions", "rapid"]
    suite.main([*words, "--budget", "1"])
    assert asked[0] == 64 and 128 <= asked[1] <= 512 and len(asked) == 2
    assert f"AutoAttack rapid, seconds, n = {asked[1]}" in rows(tmp_path, "verdict")


def test_without_cuda_only_the_toy_runs(load, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        load("gpu_suite").main(["--part", "train"])


def test_a_failing_command_ends_the_suite(load):
    with pytest.raises(SystemExit, match="robustcli train ended with 2"):
        load("gpu_suite").command("train", "ball.eps=8")


# ---- training.py -------------------------------------------------------------------------------------------

TINY = ["--model", "tiny", "--batch", "4", "--size", "8", "--steps", "3", "--rounds", "1", "--device", "cpu"]


def test_ours_and_the_plain_loops_compute_the_same_loss(load, tmp_path, capsys):
    load("training").main([*TINY, "--out", str(tmp_path / "training.json")])
    document = json.loads((tmp_path / "training.json").read_text())
    assert len(document["loss_difference"]) == 4 and max(document["loss_difference"].values()) < 1e-3
    assert set(document["seconds"]) == {"TRADES", "AWP"} and "ratio of images/s" in capsys.readouterr().out
    assert "TRADES: robustcli float32 / plain fp32, autograd.grad" in document["ratios"]


@pytest.mark.parametrize("constant", ["BETA", "GAMMA", "STEP"])
def test_another_formula_is_refused_before_anything_is_timed(load, monkeypatch, constant):
    loops = load("plain_loops")
    monkeypatch.setattr(loops, constant, 1.1 * getattr(loops, constant))
    with pytest.raises(SystemExit, match="do not compute the same loss"):
        load("training").main(TINY)
