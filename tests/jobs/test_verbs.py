"""Each verb from the shell's side: files written, JSON documents, tables, gates, bad input."""

import json

import numpy as np
import pytest
import torch
from jobs_support import TINY
from PIL import Image

from robustcli.proportions import Rate, clopper_pearson
from robustcli.reporting.cells import format_rate
from robustcli.store.inventory import holds_nothing_else
from robustcli.store.status import read_status

COMMON = {"schema_version", "ok", "verb", "run", "seconds"}
EVAL_KEYS = {
    *("model", "data", "split", "norm", "eps", "seed", "per_class", "weakest"),
    "n",
    "clean_acc",
    "robust_acc",
    "attack_success",
    "intervals",
    "attacks",
    "reliability",
    "alarms",
    "model",
    "data",
    "split",
    "norm",
    "eps",
    "seed",
    "per_class",
    "classes",
    "weakest",
}


@pytest.fixture
def trained(cli):
    answer = cli("train", *TINY, "--out", "model", "--json")
    assert answer.code == 0, answer.err
    return answer.document


def test_train_document_and_files(trained, tmp_path):
    # `notes` are there where an accuracy is not surely above chance, as after such a short training.
    assert set(trained) - {"notes"} == COMMON | {
        "best",
        "last",
        "checkpoint",
        "steps",
        "ended",
        "robust_overfitting",
        "alarms",
    }
    assert trained["verb"] == "train" and trained["ok"] is True and trained["ended"] == "budget"
    assert (
        set(trained["best"]) == set(trained["last"]) == {"epoch", "clean_acc", "robust_acc"}
        and 0 <= trained["best"]["clean_acc"] <= 1
    )
    assert holds_nothing_else(tmp_path / "model", "train"), "store/inventory.py knows all files"
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert {
        "config.resolved.yaml",
        "env.json",
        "metrics.jsonl",
        "results.csv",
        "summary.json",
        "summary.md",
        "status.json",
        "log.txt",
    } <= names
    assert {"checkpoints", "plots"} <= names
    assert read_status(tmp_path / "model")["state"] == "done"
    assert Image.open(tmp_path / "model" / "plots" / "training.png").size[0] > 300
    assert (tmp_path / trained["checkpoint"] / "manifest.json").is_file()


def test_the_resolved_config_runs_again_to_the_same_bits(trained, cli, tmp_path):
    from jobs_support import final_state, same

    assert cli("train", "model/config.resolved.yaml", "--out", "again").code == 0
    same(final_state(tmp_path / "again"), final_state(tmp_path / "model"))


def test_eval_document_table_and_gate(trained, cli, tmp_path):
    answer = cli("eval", "--model", "run:model", "--n", "40", "--json")
    document = answer.document
    assert (
        answer.code == 0
        and set(document) - {"notes"} == COMMON | EVAL_KEYS
        and document["n"] == 40
        and document["reliability"] == "ok"
    )
    assert set(document["intervals"]) == {"clean_acc", "robust_acc", "attack_success"}
    assert set(document["attacks"][0]) == {"name", "robust_acc", "passes_per_sample", "seconds"}
    for name in ("clean_acc", "robust_acc", "attack_success"):
        low, high = document["intervals"][name]
        assert low <= document[name] <= high
    again = cli(
        "eval",
        "--model",
        "run:model",
        "--n",
        "40",
        "--fail-under",
        "clean_acc=1.0",
        "--fail-under",
        "robust_acc=0.0",
        "--json",
    )
    passed = document["clean_acc"] >= 1
    assert again.code == (0 if passed else 1) and [g["passed"] for g in again.document["gate"]] == [
        passed,
        True,
    ]
    plain = cli("eval", "--model", "run:model", "--n", "40")
    assert (
        plain.out.rstrip().splitlines()[-1].startswith("runs/eval/")
        and "| attack" in plain.out
        and "\x1b" not in plain.out
    )
    for column in ("clean accuracy", "robust accuracy", "attack success"):
        assert column in plain.out
    records = [
        json.loads(line)
        for line in (tmp_path / again.document["run"] / "metrics.jsonl").read_text().splitlines()
    ]
    assert [r["kind"] for r in records] == ["clean", "attack", "worst"] and records[0]["n"] == 40


def test_eval_is_repeatable_and_batches_do_not_matter(trained, cli):
    documents = [
        cli("eval", "--model", "run:model", "--n", "60", "--json", *more).document
        for more in ((), ("--batch-size", "7"), ("--search", "fp32"))
    ]
    assert (
        documents[0]["robust_acc"]
        == documents[1]["robust_acc"]
        == pytest.approx(documents[2]["robust_acc"], abs=2 / 60)
    )


def test_attack_writes_images_that_survive_their_files(trained, cli, tmp_path):
    answer = cli("attack", "--model", "run:model", "--n", "12", "--eps", "0.2", "--json", "attack.save=10")
    document = answer.document
    assert answer.code == 0 and COMMON | EVAL_KEYS | {"images", "robust_acc_8bit"} <= set(document)
    files = sorted((tmp_path / document["images"]).iterdir())
    assert 1 <= len(files) == document["images_written"] <= 10
    assert np.asarray(Image.open(files[0])).dtype == np.uint8
    rows = [
        json.loads(line) for line in (tmp_path / document["run"] / "images.jsonl").read_text().splitlines()
    ]
    assert all(r["distance_8bit"] <= 0.2 + 1e-6 and r["broken_8bit"] for r in rows) and len(rows) == len(
        files
    )
    assert (
        document["robust_acc_float"] == document["robust_acc"]
        and abs(document["robust_acc_8bit"] - document["robust_acc"]) <= 2 / 12
    )
    plain = cli("attack", "--model", "run:model", "--n", "4", "--attack", "fgsm", "--eps", "0.2")
    assert plain.code == 0 and "8-bit" in plain.err


@pytest.mark.parametrize("verb", ["train", "eval", "attack"])
def test_dry_run_says_what_it_costs_and_writes_nothing(cli, tmp_path, verb):
    answer = cli(verb, *TINY, "--dry-run", "--json")
    plan = answer.document["plan"]
    assert answer.code == 0 and {
        "parameters",
        "passes_per_image",
        "memory_bytes",
        "seconds",
        "total_tflop",
    } <= set(plan)
    assert list(tmp_path.iterdir()) == []
    assert plan["passes_per_image"] == (7 if verb == "train" else 43)


def test_check_gpu(cli):
    answer = cli("check-gpu", "--dry-run", "--json")
    assert answer.code == 0 and answer.document["devices"][0]["device"] == "cpu"
    if not torch.cuda.is_available():
        refused = cli("check-gpu", "--dry-run", "--require-cuda", "--json")
        assert refused.code == 6 and refused.document["error"]["exit"] == 6


def test_demo_smoke(cli, tmp_path):
    pytest.importorskip("sqlalchemy", reason="the extra guard is not installed")
    answer = cli("demo", "--smoke", "--json", "--threads", "1")
    document = answer.document
    assert answer.code == 0 and set(document["models"]) == {"natural", "robust"}
    run = tmp_path / document["run"]
    assert holds_nothing_else(run, "demo"), "store/inventory.py knows all files"
    assert (run / "plots" / "accuracy_against_eps.png").is_file() and (run / "attack" / "images").is_dir()
    assert "next steps" in answer.err and "robustcli eval --model" in answer.err
    shown, summary = (run / "summary.md").read_text(), json.loads((run / "summary.json").read_text())
    for name, model in document["models"].items():
        n, right = model["n"], round(model["clean_acc"] * model["n"])
        assert f"| {name} " in shown and format_rate(Rate(right, n)) in shown, "Wilson's interval for eyes"
        assert model["intervals"]["clean_acc"] == list(clopper_pearson(right, n)), (
            "the exact one for programs"
        )
        assert all(
            [low, high] == list(clopper_pearson(round(acc * 48), 48))
            for _, acc, low, high in summary["curves"][name]
        )


def test_seeds(cli):
    document = cli("train", *TINY, "--seeds", "0,1", "--json").document
    assert set(document["seeds"]) == {"0", "1"} and len(document["spread"]["clean_acc"]["values"]) == 2


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("train", "ball.eps=8"), 2, "did you mean 8/255"),
        (("train", "adversary.stpes=3"), 2, "steps"),
        (("train", "data.name=digitz"), 2, "digits"),
        (("train", "model.name=resnet81"), 2, "resnet18"),
        (("train", "adversary.steps=0"), 2, "steps"),
        (("train", "train.optimizer.lr=-1"), 2, "lr"),
        (("train", "objective.label_smoothing=2", "--dry-run"), 2, "objective.label_smoothing"),
        (("train", "objective={name: mixed, clean_weight: 2}", "--dry-run"), 2, "objective.clean_weight"),
        (("eval", "--attack", "apgd", "attacks.0.rho=7", "--dry-run"), 2, "attacks.0.rho"),
        (("train", "--seeds", "a"), 2, "--seeds"),
        (("train", "data.name=folder:nowhere"), 3, "nowhere"),
        (("train", "data.name=cifar10"), 3, "--download"),
        (("train", "--device", "cuda:99"), 6, "cuda"),
        (("eval", "--model", "run:nowhere"), 4, "nowhere"),
        (("eval", "--model", "x.pt"), 4, "x.pt"),
        (("eval", "--n", "5", "--first", "5"), 2, "first"),
        (
            (
                "eval",
                "--model",
                "mlp",
                "--fail-under",
                "speed=0.5",
                "--n",
                "4",
                "data.name=fake",
                "data.size=8",
            ),
            2,
            "speed",
        ),
        (("attack", "--attack", "pdg"), 2, "pgd"),
        (("attack", "--attack", "fgsm", "--steps", "5"), 2, "steps"),
    ],
)
def test_bad_input_is_one_line_with_its_code(cli, tmp_path, argv, code, words):
    answer = cli(*argv)
    assert answer.code == code, answer.err
    errors = [line for line in answer.err.splitlines() if line.startswith("error[")]
    assert len(errors) >= 1 and words in errors[0] and answer.out == ""
    as_json = cli(*argv, "--json")
    assert (
        as_json.code == code and as_json.document["ok"] is False and as_json.document["error"]["exit"] == code
    )


def test_out_is_exact_and_never_overwritten_silently(cli, trained, tmp_path):
    before = (tmp_path / "model" / "summary.json").read_bytes()
    refused = cli("train", *TINY, "--out", "model")
    assert (
        refused.code == 2
        and "--resume" in refused.err
        and (tmp_path / "model" / "summary.json").read_bytes() == before
    )
    assert cli("train", *TINY, "--out", "model", "--overwrite").code == 0


def test_resume_of_another_experiment_names_the_keys(cli, trained):
    answer = cli("train", *TINY, "--out", "model", "--resume", "seed=3")
    assert answer.code == 2 and "seed" in answer.err and "--override-resume" in answer.err


def test_a_locked_run_is_refused(cli, trained, tmp_path):
    from robustcli.store.lock import RunLock

    with RunLock(tmp_path / "model"):
        answer = cli("train", *TINY, "--out", "model", "--resume")
    assert answer.code == 7 and "E-LOCK" in answer.err


def test_nan_stops_with_the_batch_saved(cli, tmp_path):
    answer = cli(
        "train", *TINY, "--out", "model", "train.optimizer.lr=1e30", "precision=fp32", "search.precision=fp32"
    )
    assert answer.code == 5 and "not finite" in answer.err and "sample ids" in answer.err
    assert (tmp_path / "model" / "nan_batch.safetensors").is_file() and read_status(tmp_path / "model")[
        "code"
    ] == 5


def test_a_damaged_checkpoint_is_refused_by_name(cli, trained, tmp_path):
    file = tmp_path / trained["checkpoint"] / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    answer = cli("eval", "--model", "run:model", "--n", "4")
    assert answer.code == 4 and "E-CKPT-HASH" in answer.err


def test_an_uncaught_exception_is_70_never_gate_not_met(cli, monkeypatch):
    import robustcli.jobs.evaluate

    monkeypatch.setattr(robustcli.jobs.evaluate, "prepare_to_measure", lambda *a, **k: 1 / 0)
    answer = cli("eval", "--model", "small_cnn")
    assert answer.code == 70 and "E-INTERNAL" in answer.err and "ZeroDivisionError" in answer.err


def test_a_crash_inside_a_run_leaves_its_traceback_in_the_run(cli, monkeypatch, tmp_path):
    import robustcli.jobs.train

    monkeypatch.setattr(robustcli.jobs.train, "prepare", lambda *a, **k: 1 / 0)
    answer = cli("train", *TINY, "--out", "model")
    assert answer.code == 70 and "Traceback" in (tmp_path / "model" / "crash.log").read_text()
    assert read_status(tmp_path / "model")["state"] == "failed"


def test_a_step_beyond_the_ball_is_warned_about_and_a_refused_value_is_no_bug(
    trained, cli, monkeypatch, tmp_path
):
    wide = cli(
        "eval",
        "--model",
        "run:model",
        "--n",
        "4",
        "--eps",
        "0.1",
        "attacks=[{name: pgd, steps: 2, step_size: 0.3}]",
    )
    assert wide.code == 0 and "attacks.0.step_size 0.3 is more than twice eps 0.1" in wide.err
    narrow = cli(
        "eval",
        "--model",
        "run:model",
        "--n",
        "4",
        "--eps",
        "0.1",
        "attacks=[{name: pgd, steps: 2, step_size: 0.2}]",
    )
    assert "twice eps" not in narrow.err
    corners = ("--attack", "noise", "attacks.0.kind=corners", "--norm", "l2", "--eps", "0.5")
    refused = cli("eval", "--model", "run:model", "--n", "40", *corners, "--out", "refused")
    assert refused.code == 2 and "corners" in refused.err and read_status(tmp_path / "refused")["code"] == 2
    assert not (tmp_path / "refused" / "crash.log").exists()


def test_python_api(trained, tmp_path):
    import robustcli

    model = robustcli.load_model(f"run:{tmp_path / 'model'}")
    x, y = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 10
    with torch.no_grad():
        y = model(x).argmax(1)
    verdict = robustcli.evaluate(model, x, y, eps=8 / 255, attack="pgd", steps=3, device="cpu")
    assert (
        verdict.clean_acc == 1
        and verdict.survivors.shape == (12,)
        and set(verdict.stages) == {"pgd-3"}
        and verdict.reliability == "ok"
    )
    x_adv = robustcli.attack(model, x, y, name="pgd", eps=8 / 255, steps=3, step_size=2 / 255, device="cpu")
    assert x_adv.shape == x.shape and float((x_adv - x).abs().max()) <= 8 / 255 + 1e-6
    with pytest.raises(ValueError, match="pgd"):
        robustcli.attack(model, x, y, name="pdg", eps=0.1, device="cpu")
    for bad_x, bad_y in ((x * 255, y), (x, y + 99), (x, y[:3])):
        with pytest.raises(robustcli.api.DataError):
            robustcli.evaluate(model, bad_x, bad_y, eps=0.1, device="cpu")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.step={name: free}", "objective=nuat"], "compares with the clean answer"),
        (["train.step={name: free}", "objective=natural"], "does not look at attacked images"),
        (["train.hooks=[ema, swa]"], "both publish an average"),
        (["train.hooks=[ema, ema]"], "named twice"),
        (["objective=trades", "adversary={name: fgsm}"], "flat at the clean image"),
        (["train.curriculum={eps_start: 0.5}"], "without eps_until has no effect"),
        (["train.sync_bn=true"], "needs CUDA"),
        (["train.step={name: free}", "train.micro_batch=4"], "does not go with the free step"),
    ],
)
def test_what_cannot_be_trained_together_is_found_by_a_dry_run(cli, settings, says):
    answer = cli("train", "smoke/fake", *settings, "--dry-run")
    assert answer.code == 2 and says in answer.err and answer.err.count("error[") == 1


#: Four halvings of 8x8 digits end in 1x1, where BatchNorm needs two images.
DEEP = ("model={name: preact_resnet18, width: 4}", "train.channels_last=false")


@pytest.mark.parametrize(
    ("verb", "settings", "where"),
    [
        ("train", ["train.micro_batch=1"], "train.micro_batch=1"),
        ("train", ["--batch-size", "1"], "train.batch_size=1"),
        ("train", ["--batch-size", "9", "train.micro_batch=4"], "train.micro_batch=4"),
        ("bench", ["train.micro_batch=1"], "train.micro_batch=1"),
    ],
)
def test_one_image_is_too_few_for_batch_norm_at_one_pixel(cli, verb, settings, where):
    answer = cli(verb, "smoke/digits", *DEEP, *settings, *(["--dry-run"] if verb == "train" else ["--smoke"]))
    assert answer.code == 2 and answer.err.count("error[") == 1
    assert "leaves BatchNorm layer" in answer.err and where in answer.err


def test_two_images_are_enough(cli):
    assert cli("train", "smoke/digits", *DEEP, "train.micro_batch=2", "--dry-run").code == 0


def test_a_smaller_budget_than_the_run_has_made_is_refused(trained, cli):
    steps = trained["steps"]
    answer = cli(
        "train",
        "model/config.resolved.yaml",
        "--out",
        "model",
        "--resume",
        f"train.steps={steps - 1}",
        "train.epochs=null",
    )
    assert answer.code == 2 and f"has made {steps} steps already" in answer.err
