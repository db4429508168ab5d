"""The bench verb: what its numbers are made of, and that it leaves model and configuration alone."""

import json
from dataclasses import replace

import pytest
import torch
from jobs_support import TINY

from robustcli.assembly import throughput, timing
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.setting import prepare
from robustcli.assembly.throughput import Bench
from robustcli.assembly.timing import (
    BF16,
    FP32,
    TF32,
    Repeat,
    Timing,
    interleaved,
    matmul_peak,
    precisions,
    timed,
)
from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.errors import Interrupted
from robustcli.jobs import bench as job
from robustcli.models.flops import flops
from robustcli.store.inventory import holds_nothing_else
from robustcli.store.status import read_status
from robustcli.terminal.console import Console

CPU = torch.device("cpu")
FEW = Repeat(least=5, budget=0.0, warm=1)


def subject(*settings, repeat=FEW, **more):
    config = load_config(None, [parse_assignment(text, "test") for text in (*TINY, *settings)]).config
    setting = prepare(config, Console(quiet=True))
    return Bench(setting, ModelSource(setting).to_train(), repeat, **more)


# ---- the verb ----------------------------------------------------------------------------------------------


def test_document_files_and_arithmetic(cli, tmp_path):
    document = cli("bench", *TINY, "--smoke", "--json").document
    assert (
        document["verb"] == "bench"
        and document["kind"] == "bench"
        and document["schema_version"] == 1
        and document["batch_size"] == 16
    )
    assert (
        document["batch_sizes"] is None and document["cpu"] is None and document["adversary"] == "pgd-2 on ce"
    )
    names = [kind.name for kind in precisions(CPU)]
    steps = document["steps"]
    assert [(row["work"], row["precision"], row["search"]) for row in steps] == [
        *(("attack step", name, search) for name in names for search in ("twin", "plain")),
        *(("training step", name, "") for name in names),
    ]
    assert document["passes_per_image"] == 7  # two attack steps, one loss
    for row in steps:
        assert row["repetitions"] >= 5 and 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert row["images_per_second"] == pytest.approx(16 / row["seconds"])
        assert row["passes_per_image"] == (2 if row["work"] == "attack step" else 7)
        assert row["tflops"] == pytest.approx(
            row["images_per_second"] * row["passes_per_image"] * document["gflop_per_forward"] / 1e3
        )
        assert row["mfu"] == pytest.approx(row["tflops"] / document["peak"][row["precision"]]["tflops"])
    assert 0 <= document["training_loop"]["waiting_low"] <= document["training_loop"]["waiting_share"] < 1
    run = tmp_path / document["run"]
    assert holds_nothing_else(run, "bench"), "store/inventory.py knows all files"
    assert (
        json.loads((run / "bench.json").read_text())
        == document
        == json.loads((run / "summary.json").read_text())
    )
    assert (
        read_status(run)["state"] == "done"
        and "share of peak" in (run / "summary.md").read_text()
        and (run / "env.json").is_file()
    )


def test_the_resolved_config_runs_again_with_growing_batches(cli, tmp_path):
    first = cli("bench", *TINY, "--smoke", "--out", "first")
    assert (
        first.code == 0
        and first.out.rstrip().splitlines()[-1] == "first"
        and "| training step" in first.out
        and "waiting for data" in first.out
    )
    document = cli(
        "bench", "first/config.resolved.yaml", "--smoke", "--batch-size", "auto", "--json"
    ).document
    tried = document["batch_sizes"]
    assert (
        [row["batch_size"] for row in tried["rows"]] == [8, 16]
        and tried["largest"] == 16
        and tried["out_of_memory"] is False
    )
    best = max(tried["rows"], key=lambda row: row["images_per_second"])["batch_size"]
    assert tried["fastest"] == best == document["batch_size"]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("--batch-size", "many"), 2, "train.batch_size"),
        (("--steps", "0"), 2, "steps"),
        (("adversary.name=fgsm", "--steps", "3"), 2, "--steps"),
        (("--device", "cuda:99"), 6, "cuda"),
        (("--model", "run:nowhere"), 4, "nowhere"),
    ],
)
def test_bad_input_is_one_line_with_its_code(cli, tmp_path, argv, code, words):
    answer = cli("bench", "data.name=fake", *argv)
    assert answer.code == code and words in answer.err.splitlines()[-1] and answer.out == ""
    assert not (tmp_path / "runs").exists()


# ---- what is measured --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        (),
        (
            "objective.name=trades",
            "adversary.start=gaussian",
            "adversary.start_scale=0.001",
            "train.hooks=[{name: awp}, {name: ema}]",
        ),
        ("objective.name=natural", "train.optimizer={name: adamw, lr: 0.1}"),
        ("train.step.name=free",),
    ],
    ids=["madry", "trades-awp-ema", "natural-adamw", "free"],
)
def test_measuring_changes_no_weight_and_no_flag(settings):
    bench = subject(*settings)
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    flags = [(p.requires_grad, m.training) for m in bench.model.modules() for p in m.parameters()]
    for kind in (FP32, BF16):
        row = bench.training_step(kind)
        assert row["repetitions"] == 5 and bench.attack_step(kind, True)["note"] == ""
    bench.attack_step(FP32, False)
    bench.data(1)
    assert all(torch.equal(before[name], value) for name, value in bench.model.state_dict().items())
    assert flags == [(p.requires_grad, m.training) for m in bench.model.modules() for p in m.parameters()]


def test_every_repetition_trains_on_the_same_weights(monkeypatch):
    bench, made, make_step = subject(), [], throughput.make_step
    monkeypatch.setattr(throughput, "make_step", lambda *args: made.append(make_step(*args)) or made[-1])
    bench.training_step(FP32)
    wanted, got = dict(bench.model.named_parameters()), dict(made[0].settings.model.named_parameters())
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert (
        made[0].settings.search.dtype is made[0].settings.dtype is torch.float32
        and not made[0].settings.search.plain
    )


def test_a_batch_larger_than_the_split_repeats_its_images():
    bench = subject().resized(950)
    x, y, ids = bench.pixels()
    assert (
        x.shape == (950, 3, 8, 8)
        and torch.equal(ids[900:], ids[:50])
        and torch.equal(x[900:], x[:50])
        and len(y) == 950
    )


def test_flops_of_a_row_are_rate_times_passes_times_forward():
    bench = subject()
    row = bench._row(Timing((0.5, 0.25, 1.0)), 7)
    assert (row["images_per_second"], row["low"], row["high"], row["repetitions"]) == (32, 16, 64, 3)
    assert row["tflops"] == pytest.approx(32 * 7 * flops(bench.model, (3, 8, 8)) / 1e12)


def test_waiting_for_data_is_the_share_of_the_clock_spent_in_the_stream(monkeypatch):
    bench, now = subject(repeat=Repeat(least=3)), [0.0]
    engine = throughput.make_engine

    def slow(*args):
        made = engine(*args)
        stream, step = made.train.stream, type(made.step).__call__

        def batches(*wanted):
            for batch in stream(*wanted):
                now[0] += 3.0
                yield batch

        def descend(self, *args, **more):
            now[0] += 1.0
            return step(self, *args, **more)

        monkeypatch.setattr(made.train, "stream", batches)
        monkeypatch.setattr(type(made.step), "__call__", descend)
        return made

    monkeypatch.setattr(throughput, "make_engine", slow)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    found = bench.data(2)
    assert (found["waiting_share"], found["waiting_low"], found["waiting_high"]) == (0.75, 0.75, 0.75)
    assert (found["images_per_second"], found["repetitions"], found["steps"]) == (4.0, 3, 2)


# ---- batch sizes and devices -------------------------------------------------------------------------------


def test_sizes_grow_until_memory_runs_out(monkeypatch):
    asked = []

    def step(self, precision):
        asked.append((self.batch, self.setting.config.train.compile, self.setting.config.search.compile))
        if self.batch > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {
            "batch_size": self.batch,
            "seconds": 0.1,
            "images_per_second": {8: 80.0, 16: 160.0, 32: 120.0}[self.batch],
        }

    monkeypatch.setattr(Bench, "training_step", step)
    bench = subject("train.compile=on", "search.compile=on")
    rows, full = bench.sizes(FP32, [8, 16, 32, 64, 128], 15.0)
    assert (
        full
        and [row["batch_size"] for row in rows] == [8, 16, 32]
        and asked == [(n, "off", "off") for n in (8, 16, 32, 64)]
    )
    rows, full = bench.sizes(FP32, [8, 16, 32], 0.15)
    assert not full and [row["batch_size"] for row in rows] == [8]
    monkeypatch.setattr(job, "_LARGEST", 128)
    found = job._sizes(bench, torch.device("cpu"), smoke=False)
    assert (found["fastest"], found["largest"], found["out_of_memory"]) == (16, 32, True)


def test_memory_that_does_not_suffice_is_a_resource_error(cli, monkeypatch):
    def step(self, precision):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Bench, "training_step", step)
    for more in ((), ("--batch-size", "auto")):
        answer = cli("bench", *TINY, "--smoke", *more, "--json")
        assert answer.code == 6 and answer.document["error"]["code"] == "E-OOM"


def test_gpu_over_cpu_is_a_ratio_of_rates(monkeypatch):
    monkeypatch.setattr(
        Bench, "attack_step", lambda self, kind, twin: {"work": "attack step", "images_per_second": 10.0}
    )
    monkeypatch.setattr(
        Bench, "training_step", lambda self, kind: {"work": "training step", "images_per_second": 4.0}
    )
    rows = [
        {"work": work, "images_per_second": rate}
        for work, rate in (("attack step", 20.0), ("attack step", 50.0), ("training step", 12.0))
    ]
    assert job._against_cpu(subject(), rows)["gpu_over_cpu"] == {"attack step": 5.0, "training step": 3.0}


def test_precisions_of_a_device(monkeypatch):
    assert precisions(CPU)[0] is FP32 and TF32 not in precisions(CPU)
    for capability, native, names in (((7, 5), False, ["fp32"]), ((8, 0), True, ["fp32", "tf32", "bf16"])):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        monkeypatch.setattr(timing, "bf16_native", lambda device, found=native: found)
        assert [kind.name for kind in precisions(torch.device("cuda"))] == names


# ---- repetitions -------------------------------------------------------------------------------------------


def test_warm_up_does_not_count_and_a_stop_is_heeded():
    calls = []
    assert len(timed(lambda: calls.append(1), CPU, replace(FEW, warm=3)).seconds) == 5 and len(calls) == 8
    assert len(timed(lambda: None, CPU, Repeat(least=1, budget=1e9, most=7)).seconds) == 7

    def stop():
        if len(calls) == 10:
            raise Interrupted("stopped", signum=15)

    with pytest.raises(Interrupted):
        timed(lambda: calls.append(1), CPU, FEW, stop)
    assert len(calls) == 10


def test_rounds_run_all_jobs_in_turn():
    order = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, 3)
    assert order == ["a", "b"] * 4 and {name: len(times) for name, times in seconds.items()} == {
        "a": 3,
        "b": 3,
    }


def test_the_peak_is_the_fastest_product(monkeypatch):
    seconds = {4: 8.0, 8: 16.0, 16: 512.0}  # 128, 1024 and 8192 operations

    def clock(work, device, repeat, stop):
        work()
        return Timing((seconds.pop(next(iter(seconds))),))

    monkeypatch.setattr(timing, "timed", clock)
    best = matmul_peak(CPU, FP32, [4, 8, 16], FEW)
    assert best["size"] == 8 and best["tflops"] == pytest.approx(64e-12)
