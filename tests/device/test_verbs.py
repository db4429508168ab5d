"""Every verb with `--device cuda`: it ends well, and the verdict is that of the CPU."""

import contextlib
import io
import json
import os
import pkgutil

import pytest
from guarded import png
from jobs_support import IMAGES, TINY, write_images

from robustcli.assembly.timing import Repeat
from robustcli.cli.main import run
from robustcli.cli.verbs import __path__ as verbs_path
from robustcli.jobs import bench, gpu

ON = ("--device", "cuda", "threads=1")
FP32 = "search.precision=fp32"  # bf16 is slow on a CPU without it

#: What follows the verb. Folders: `one` and `two` are runs, `guard` is a guard, `images` has PNG files.
COMMANDS = {
    "eval in bf16": ("eval", "--model", "run:one", "--attack", "fgsm", "--n", "4", *ON),
    "rapid": ("eval", "--model", "run:two", "--attack", "autoattack:rapid", "--n", "2", FP32, *ON),
    "distances": ("eval", "--model", "run:one", "attacks=[fmn]", "--norm", "l2", "--n", "3", FP32, *ON),
    "sweep": ("eval", "--model", "run:one", "attacks=[fgsm]", "--sweep", "eps=0.01,0.1", "--n=3", FP32, *ON),
    "attack": ("attack", "--model", "run:one", "--attack", "fgsm", "--n", "3", FP32, *ON),
    "transfer": ("transfer", "--models", "run:one,run:two", "--attack", "fgsm", "--n", "4", FP32, *ON),
    "certify": ("certify", "--model", "run:one", "certify.method=cascade", "--n", "2", "--eps", "1/255", *ON),
    "certify by smoothing": (
        *("certify", "--model", "run:one", "--norm", "l2", "--eps", "0.4", "--n", "2", "--sigma", "0.2"),
        *("--draws", "32", "certify.smoothing.n0=16", "--radii", "0.1", "attacks=[fgsm]", FP32, *ON),
    ),
    "bench": ("bench", *TINY, "--smoke", *ON),
    "guard eval": ("guard", "eval", "--model", "guard:guard", "--attack", "fgsm", "--n", "3", FP32, *ON),
    "guard run": ("guard", "run", "guard", "seen.png", "--device", "cuda"),
    "a guard": ("eval", "--model", "guard:guard", "--attack", "pgd", "--steps", "1", "--n", "3", FP32, *ON),
    "gate": (
        *("gate", "--model", "run:one", "--attack", "fgsm", "--n", "4", "thresholds.clean_acc.min=0"),
        *("thresholds.clean_acc.mode=point", "eval.checks=0", FP32, *ON),
    ),
    "train from files": (
        *("train", *IMAGES, "train.steps=3", "data.storage=stream", "data.workers=1", FP32),
        *("precision=fp32", "--out", "files", *ON),
    ),
}  # fmt: skip
#: Tried below; `demo` is `train`, `eval` and `transfer` of larger networks. The others use no device: a model
#: is exported from the CPU, and reports read records.
ELSEWHERE = {"check_gpu", "demo", "env", "export", "init", "report"}


def said(words):
    """The document of a command that ends with 0."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(words))
    assert code == 0, (words, err.getvalue())
    return out.getvalue()


@pytest.fixture
def quick(monkeypatch):
    """Products and batches that a CPU can do in place of a GPU."""
    monkeypatch.setattr(gpu, "_SIDE", {"cuda": 16, "cpu": 16})
    monkeypatch.setattr(gpu, "_BATCH", {"cuda": 1, "cpu": 1})
    monkeypatch.setattr(gpu, "_BRIEF", Repeat(least=1, budget=0.0, warm=0))
    monkeypatch.setitem(bench._PRODUCTS, "cuda", ([16], [16]))


@pytest.fixture(scope="module")
def made(device_of_module, tmp_path_factory):
    """The working directory with all that `COMMANDS` name, made on the device."""
    folder, before = tmp_path_factory.mktemp("device"), os.getcwd()
    train = ("train", *TINY, *ON, "-q", "--out")
    fit = ("guard", "fit", "--model", "run:one", "defences=[energy,reconstruction]", "guard.fit.steps=3")
    try:
        os.chdir(folder)
        write_images(folder)
        (folder / "seen.png").write_bytes(png(mode="RGB"))
        said((*train, "one", "train.steps=3"))
        said((*train, "one", "train.steps=5", "--resume"))
        said((*train, "two", "train.steps=3", "objective=trades", "train.hooks=[awp,ema]", FP32))
        said((*fit, *ON, "guard.calibration.n=32", "guard.fpr=0.2", "--out", "guard", "-q"))
        yield folder
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", COMMANDS)
def test_on_the_device(made, quick, name):
    said(COMMANDS[name])


def test_check_gpu(made, quick):
    """The device is there, and it is timed."""
    found = json.loads(said(("check-gpu", "--json")))["devices"]
    assert [row["device"] for row in found] == ["cpu", "cuda:0"]
    assert found[1]["name"] == "Pretended GPU" and found[1]["pgd_step_images_per_second"] > 0


def test_the_verdict_is_that_of_the_cpu(made):
    words = ("eval", "--model", "run:one", "attacks=[fgsm,apgd]", "--steps", "2", "--n", "4", FP32, "--json")
    there, here = (json.loads(said((*words, *ON, "--device", place))) for place in ("cuda", "cpu"))
    seconds = ("run", "seconds", "alarms")
    for document in (there, here):
        for key in seconds:
            document.pop(key)
        for row in document["attacks"]:
            row.pop("seconds")
    assert there == here


def test_no_verb_is_forgotten():
    tried = {words[0].replace("-", "_") for words in COMMANDS.values()}
    assert {module.name for module in pkgutil.iter_modules(verbs_path)} == tried - {"guard"} | ELSEWHERE
