"""`robustcli certify` from the shell's side: document, records, resume, merge, bad input, inversions."""

import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import run_in
from jobs_support import TINY

from robustcli.certificates.smoothing import Smoothing
from robustcli.evaluation.certificates.shards import CertificateStore
from robustcli.records.certify import CertificateRow, CertifyRow
from robustcli.records.read import read_rows
from robustcli.store.inventory import holds_nothing_else
from robustcli.store.status import read_status

KILLS, SLOW_KILLS = 5, 20
KEYS = {
    "schema_version", "ok", "verb", "run", "seconds", "method", "model", "data", "split", "norm", "eps",
    "seed", "n", "radii", "certified_acc", "attacked_acc", "clean_acc", "robust_acc", "acr", "verified",
    "falsified", "unknown", "abstain", "intervals", "attacks", "reliability", "alarms",
}  # fmt: skip
LEARNED = (
    *("objective=natural", "train.steps=100", "train.save_every=100", "train.validate_every=1"),
    *("train.optimizer.lr=0.1", "precision=fp32"),
)
SMALL = (
    "--norm", "l2", "--eps", "0.4", "--n", "10", "--steps", "2", "--sigma", "0.2", "--draws", "128",
    "certify.smoothing.n0=64", "--radii", "0.1", "certify.shard_size=2", "search.eot=2", "threads=1",
)  # fmt: skip
SHARDS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that is right about most images; its directory."""
    folder = tmp_path_factory.mktemp("trained")
    words = (
        "train",
        *TINY,
        *LEARNED,
        "train.optimizer.lr=0.1",
        "precision=fp32",
        "--out",
        "model",
        "--quiet",
    )
    return run_in(folder, words) / "model"


@pytest.fixture(scope="module")
def command(model):
    return ("certify", "--model", f"run:{model}", *SMALL)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, command):
    """The run that nothing interrupted."""
    return run_in(tmp_path_factory.mktemp("reference"), [*command, "--out", "run", "--quiet"]) / "run"


def rows(path):
    """What samples.jsonl says of each sample, without what a clock decides."""
    found = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def summary(path):
    """summary.json without what a clock decides."""
    document = json.loads((path / "summary.json").read_text())
    return {name: value for name, value in document.items() if name not in ("seconds", "run")}


def test_document_records_and_files(reference):
    document = json.loads((reference / "summary.json").read_text())
    assert set(document) == KEYS and document["verb"] == "certify" and document["method"] == "smoothing"
    assert document["radii"] == [0.1, 0.4] and document["n"] == 10 and document["norm"] == "l2"
    assert "arXiv:1902.02918, Theorem 1" in (reference / "summary.md").read_text()
    assert holds_nothing_else(reference, "certify"), "store/inventory.py knows all files"
    assert read_status(reference)["state"] == "done" and (reference / "plots" / "certified.png").is_file()
    samples = [row for row in read_rows(reference / "samples.jsonl") if isinstance(row, CertificateRow)]
    radii = [row for row in read_rows(reference / "metrics.jsonl") if isinstance(row, CertifyRow)]
    assert len(samples) == 10 and [row.eps for row in radii] == [0.0, 0.1, 0.4]
    for k, radius in enumerate((0.1, 0.4)):
        assert document["certified_acc"][k] == sum(row.certified(radius) for row in samples) / 10
        assert document["attacked_acc"][k] == sum(row.standing(radius) for row in samples) / 10
        assert document["certified_acc"][k] <= document["attacked_acc"][k]
    assert document["robust_acc"] == document["attacked_acc"][1] < document["clean_acc"]
    assert 0 < document["certified_acc"][0] and document["falsified"] > 0 and document["acr"] > 0
    assert sum(document[name] for name in ("verified", "falsified", "unknown", "abstain")) == 1
    for name, interval in document["intervals"].items():
        pairs = interval if isinstance(interval[0], list) else [interval]
        values = document[name] if isinstance(interval[0], list) else [document[name]]
        assert all(low <= value <= high for (low, high), value in zip(pairs, values, strict=True)), name


def test_tables_on_stdout_and_a_resume_that_measures_nothing(reference, cli, command, tmp_path):
    os.symlink(reference, tmp_path / "run")
    before = {file.name: file.stat().st_mtime_ns for file in (reference / "shards").iterdir()}
    answer = cli(*command, "--out", "run", "--resume")
    assert answer.code == 0 and answer.out.rstrip().splitlines()[-1] == "run"
    assert "certified accuracy" in answer.out and "robust accuracy" in answer.out
    assert "average certified radius" in answer.err
    assert {file.name: file.stat().st_mtime_ns for file in (reference / "shards").iterdir()} == before


def test_two_parts_merge_to_the_whole(reference, cli, command):
    for i in (1, 2):
        answer = cli(*command, "--out", f"part{i}", "--shard", f"{i}/2", "--json")
        assert answer.code == 0 and answer.document["partial"] == {"shards": 4 - i, "of": SHARDS}
    answer = cli("certify", "--merge", "part2,part1", "--out", "whole", "--json")
    assert answer.code == 0, answer.err
    assert rows(Path("whole")) == rows(reference)
    assert summary(Path("whole")) == summary(reference)
    assert "E-RESUME" in cli(*command, "seed=1", "--out", "part1", "--resume").err
    assert cli("certify", "--merge", "part1", "--n", "3").code == 2


def kill_and_resume(forked, folder, command, reference, kills):
    """Kill -9 when shard 0 is about to be saved, go on, kill at shard 1, and so on; compare at the end."""
    write = CertificateStore.write

    def at(shard):
        def killed(self, number, found):
            if number == shard:
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, number, found)

        def prepare():
            CertificateStore.write = killed

        return prepare

    out, done = folder / "run", {}
    for shard in range(kills):
        wait, _ = forked(*command, "--out", out, *(["--resume"] if shard else []), prepare=at(shard))
        assert wait() == -signal.SIGKILL
        there = {file.name: file.read_bytes() for file in (out / "shards").glob("*.jsonl")}
        assert len(there) == shard and done.items() <= there.items()
        done = there
    wait, _ = forked(*command, "--out", out, "--resume")
    assert wait() == 0, (folder / "err.txt").read_text()
    assert rows(out) == rows(reference) and summary(out) == summary(reference)
    assert all((out / "shards" / name).read_bytes() == data for name, data in done.items())


def test_kill_9_and_resume_five_times_give_the_same_rows(forked, tmp_path, command, reference):
    kill_and_resume(forked, tmp_path, command, reference, KILLS)


@pytest.mark.slow
def test_kill_9_at_20_points(forked, tmp_path, model):
    command = ("certify", "--model", f"run:{model}", *SMALL, "--n", "20", "certify.shard_size=1")
    reference = run_in(tmp_path, [*command, "--out", "reference", "--quiet"]) / "reference"
    kill_and_resume(forked, tmp_path, command, reference, SLOW_KILLS)


def test_a_sample_that_is_certified_and_broken_is_an_error_that_names_it(cli, command, monkeypatch):
    monkeypatch.setattr(Smoothing, "radius", lambda plan, lower: 9.0)
    answer = cli(*command, "--out", "wrong", "--json")
    assert answer.code == 10 and answer.document["error"]["code"] == "E-INVERSION"
    broken = [row for row in read_rows(Path("wrong/samples.jsonl")) if row.inverted]
    assert broken and f"sample {broken[0].id} (certified to l2 9, broken at" in answer.err
    status = read_status(Path("wrong"))
    assert (status["code"], status["resumable"]) == (10, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--sigma", "0"), "certify.smoothing.sigma: must be > 0"),
        (("certify.smoothing.alpha=1",), "certify.smoothing.alpha: must be < 1"),
        (("certify.smoothing.alpha=0",), "certify.smoothing.alpha: must be > 0"),
        (("--draws", "63"), "n=63 is below n0=64"),
        (("--radii", "0"), "certify.radii.0: must be > 0, got 0"),
        (("--norm", "linf", "--eps", "0.1", "--radii", "2"), "did you mean 2/255?"),
        (("--norm", "linf", "--eps", "0.1"), "gaussian noise proves l2 radii"),
        (("--norm", "l1", "--eps", "1"), "certify.smoothing.noise=uniform for l1"),
        (("--norm", "l0", "--eps", "2", "--radii", "2"), "no method here certifies an l0 ball"),
        (("defences=[{name: bit_depth}]",), "a guarded model is not certified"),
        (("--shard", "6/6"), "there are only 5 shards"),
        (("eval.target=3",), "a certificate is about all other classes"),
        (("--attack", "pgd,spatial"), "spatial leaves it"),
    ],
)  # fmt: skip
def test_what_cannot_be_certified_is_one_line_and_2(cli, command, words, told):
    answer = cli(*command, *words, "--out", "run")
    lines = [line for line in answer.err.splitlines() if line.startswith("error")]
    assert answer.code == 2 and len(lines) == 1 and told in lines[0], answer.err
    assert not os.path.exists("run")


DRAWS = """
import torch
from torch import nn

class Draws(nn.Module):
    {declared}
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    def forward(self, x):
        return self.net(x + 0.1 * torch.randn_like(x))

def make(num_classes):
    return Draws()
"""


@pytest.mark.parametrize("declared", ["randomised = True", "pass"])
def test_a_model_that_draws_is_refused(cli, tmp_path, declared):
    (tmp_path / "net.py").write_text(DRAWS.format(declared=declared))
    words = ("data.name=fake", "data.size=8", "--plugin", "net.py:make", *SMALL)
    answer = cli("certify", *words)
    assert answer.code == 2 and "answers differently each time" in answer.err, answer.err


def test_a_dry_run_forecasts_time_and_memory_and_writes_nothing(cli, command, tmp_path):
    answer = cli(*command, "--dry-run", "--json")
    plan = answer.document["plan"]
    assert answer.code == 0 and not (tmp_path / "runs").exists()
    assert plan["n"] == 10 and plan["method"] == "smoothing" and plan["batch_size"] == 2
    assert plan["memory_bytes"] > 64 * 3 * 8 * 8 * 4 and plan["seconds"] > 0
    more = cli(*command, "--draws", "100000", "--dry-run", "--json").document["plan"]
    assert more["memory_bytes"] == plan["memory_bytes"] and more["seconds"] > 10 * plan["seconds"]


def test_every_kth_image(cli, command):
    answer = cli(*command, "eval.n=null", "--skip", "50", "--draws", "64", "--json")
    ids = [row.id for row in read_rows(Path(answer.document["run"]) / "samples.jsonl")]
    assert ids == [0, 50, 100, 150]


BOUNDED = (
    "--eps",
    "0.02",
    "--radii",
    "0.01",
    "--n",
    "12",
    "--steps",
    "2",
    "certify.alpha_steps=2",
    "threads=1",
)


@pytest.fixture(scope="module")
def proven(tmp_path_factory, model):
    """A run of the cascade, which is what nothing but a model and a radius asks for."""
    folder = tmp_path_factory.mktemp("proven")
    return run_in(folder, ["certify", "--model", f"run:{model}", *BOUNDED, "--out", "run", "--quiet"]) / "run"


def test_without_a_method_it_is_the_cascade_where_every_layer_has_bounds(proven):
    document, samples = json.loads((proven / "summary.json").read_text()), read_rows(proven / "samples.jsonl")
    assert document["method"] == "cascade" and document["norm"] == "linf" and document["verified"] > 0
    assert document["certified_acc"][1] == document["verified"] <= document["robust_acc"]
    assert {row.radius for row in samples} <= {0.0, 0.01, 0.02} and document["abstain"] == 0
    stages = {row.stage for row in samples if row.status == "verified"}
    assert stages <= {"ibp", "crown-ibp", "crown", "alpha-crown"}
    assert "arXiv:1811.00866" in (proven / "summary.md").read_text()
    files = {int(path.stem) for path in (proven / "certificates").iterdir()}
    assert files == {row.id for row in samples if row.radius > 0} and holds_nothing_else(proven, "certify")


def test_check_holds_and_a_changed_certificate_ends_with_3(proven, cli, model, tmp_path):
    answer = cli("certify", "--model", f"run:{model}", "--check", proven, "--json")
    assert answer.code == 0 and answer.document["holds"] and answer.document["verb"] == "certify", answer.err
    assert cli("certify", "--model", f"run:{model}", "--check", proven, "--shard", "1/2").code == 2
    file = next((proven / "certificates").iterdir())
    copy = tmp_path / file.name
    copy.write_text(file.read_text().replace('"radius": 0.0', '"radius": 0.9'))
    whole = cli("certify", "--model", f"run:{model}", "--check", file)
    assert whole.code == 0 and "each of them holds" in whole.out
    answer = cli("certify", "--model", f"run:{model}", "--check", copy)
    assert answer.code == 3 and "E-CERTIFICATE" in answer.err


def test_certificates_by_smoothing_are_checked_with_fresh_draws(reference, cli, command):
    answer = cli(*command[:3], "--check", reference, "--json")
    assert answer.code == 0 and answer.document["checked"][0]["method"] == "smoothing", answer.err


NO_BOUNDS = """
import torch
from torch import nn

class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(192, 10)
    def forward(self, x):
        return self.net(torch.cumsum(x.flatten(1), 1) / 192)

def make(num_classes):
    torch.manual_seed(0)
    return Sums()
"""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--norm", "l2", "--eps", "0.4"), 0, "randomised smoothing is used instead"),
        (("--norm", "linf", "--eps", "0.02"), 2, "net.py:10"),
        (("--norm", "l2", "--eps", "0.4", "--method", "crown"), 2, "E-BOUNDS"),
        (("--sigma", "0.1", "--method", "ibp"), 2, "--sigma is about smoothing"),
    ],
)
def test_an_operation_without_bounds(cli, tmp_path, words, code, told):
    (tmp_path / "net.py").write_text(NO_BOUNDS)
    draws = ("certify.smoothing.n=64", "certify.smoothing.n0=16", "search.eot=2", "--steps", "1", "--n", "2")
    fixed = ("data.name=fake", "data.size=8", "--plugin", "net.py:make", "threads=1")
    answer = cli("certify", *fixed, *draws, *words)
    assert answer.code == code and told in answer.err, answer.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--norm", "linf", "--eps", "0.02"), 6, "E-EXTRA"),
        (("--norm", "l2", "--eps", "0.4", "--method", "ibp"), 2, "states boxes"),
    ],
)
def test_an_export_that_cannot_be_is_refused_before_the_work(cli, model, monkeypatch, words, code, told):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    answer = cli("certify", "--model", f"run:{model}", *words, "--n", "2", "--export", "open")
    assert (answer.code, answer.out) == (code, "") and told in answer.err, answer.err
    assert not Path("open").exists()


@pytest.mark.skipif(find_spec("onnxscript") is None, reason="onnxscript is not installed (extra onnx)")
def test_what_stays_unknown_is_exported(cli, model):
    words = ("--eps", "0.04", "--method", "ibp", "--n", "12", "--steps", "1", "--export", "open")
    answer = cli("certify", "--model", f"run:{model}", *words, "--json")
    assert answer.code == 0, answer.err
    unknown = {
        row.id for row in read_rows(Path(answer.document["run"]) / "samples.jsonl") if row.status == "unknown"
    }
    assert unknown and answer.document["export"]["samples"] == len(unknown)
    lines = Path("open/instances.csv").read_text().splitlines()
    assert lines == [f"model.onnx,vnnlib/{sample}.vnnlib,300" for sample in sorted(unknown)]
    assert {path.name for path in Path("open").iterdir()} == {"model.onnx", "vnnlib", "instances.csv"}
