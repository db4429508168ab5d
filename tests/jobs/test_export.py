"""`robustcli export`: files that answer as the network does, and networks that have no honest file."""

import json
import sys
from pathlib import Path

import foreign
import pytest
import torch
from jobs_support import TINY
from matplotlib.figure import Figure
from PIL import Image

import robustcli

RANDOM = "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
RANDOM += "        return x.flatten(1)[:, :2] + torch.rand(len(x), 2)\n"
OTHERWISE = RANDOM.replace("torch.rand(len(x), 2)", "int(torch.compiler.is_exporting())")
BY_VALUE = RANDOM.replace("torch.rand(len(x), 2)", "(1 if float(x.detach().sum()) > 3 else 2)")

LINEAR = "from torch import nn\n\n\ndef net(num_classes):\n"
LINEAR += "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"


@pytest.fixture
def run(cli, monkeypatch):
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, target, **o: Image.new("L", (8, 8)).save(target, "PNG")
    )
    assert (
        cli("train", *TINY, "train.steps=1", "train.validate_every=1", "--no-report", "--out", "run").code
        == 0
    )
    return cli


def test_a_run_as_torch_and_onnx(run):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    from onnx.reference import ReferenceEvaluator

    answer = run("export", "--model", "run:run", "--out", "files", "--format", "torch,onnx", "--json")
    assert answer.code == 0, answer.err
    told, kept = answer.document, json.loads(Path("files/model.json").read_text())
    assert {key: told[key] for key in kept} == kept and told["out"] == "files" and told["run"] is None
    assert kept["input"] == {
        "name": "images",
        "type": "float32",
        "shape": ["batch", 3, 8, 8],
        "range": [0.0, 1.0],
    }
    assert kept["output"]["shape"] == ["batch", 10] and kept["classes"][3] == "pattern-3"
    assert kept["files"]["model.onnx"]["opset"] == 18 and len(kept["weights_sha256"]) == 64
    model, program = robustcli.load_model("run:run"), torch.export.load("files/model.pt2").module()
    document = onnx.load("files/model.onnx")
    assert document.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for rows in (1, 7):
        x = torch.rand(rows, 3, 8, 8)
        logits = model(x)
        assert (program(x) - logits).abs().max() < 1e-5
        (found,) = ReferenceEvaluator(document).run(None, {"images": x.numpy()})
        assert abs(found - logits.detach().numpy()).max() < 1e-4
    for file in Path("files").iterdir():
        assert str(Path(robustcli.__file__).parent).encode() not in file.read_bytes(), (
            "a path of this machine"
        )
    refused = run("export", "--model", "run:run", "--out", "files")
    assert refused.code == 2 and "model.pt2 is there already" in refused.err and refused.err.count("\n") == 1
    assert run("export", "--model", "run:run", "--out", "files", "--overwrite").out == "files\n"
    assert not Path("files/model.onnx").exists(), "the metadata speak of it no more"


@pytest.mark.parametrize(
    "name", [pytest.param("vit", marks=pytest.mark.slow), "dict_output", "half", "in_place"]
)
def test_networks_of_users(cli, name):
    words = ("--plugin", f"{foreign.__file__}:{name}", "--shape", "1x8x8", "--out", "files", "--json")
    answer = cli("export", *words)
    assert answer.code == 0, answer.err
    program = torch.export.load("files/model.pt2").module()
    found = program(torch.rand(5, 1, 8, 8))
    assert found.shape == (5, 2) and found.dtype is torch.float32
    assert answer.document["files"]["model.pt2"]["dynamic_batch"]
    assert answer.document["input"]["shape"] == ["batch", 1, 8, 8]


@pytest.mark.parametrize(
    ("code", "words", "exits", "told"),
    [
        (RANDOM, (), 2, "answers differently each time"),
        pytest.param(
            *(BY_VALUE, (), 2, "torch cannot export the network as a program"), marks=pytest.mark.slow
        ),
        (OTHERWISE, (), 5, "error[E-EXPORT]: model.pt2 differs from the network by"),
        (OTHERWISE, ("--format", "pt"), 2, "unknown format 'pt'"),
        (OTHERWISE, ("--shape", "1x8x9"), 2, "is not CxHxW"),
        (OTHERWISE, ("--classes", "many"), 2, "--classes 'many' is not a number"),
        (OTHERWISE, ("--out", "net.py"), 2, "--out is "),
    ],
)
def test_what_has_no_honest_file_is_refused_and_nothing_is_written(cli, code, words, exits, told):
    Path("net.py").write_text(code)
    answer = cli("export", "--plugin", "net.py:Net", "--shape", "1x8x8", "--out", "files", *words)
    assert answer.code == exits and told in answer.err and answer.err.count("\n") == 1, answer.err
    assert not Path("files").exists() and answer.out == ""


@pytest.mark.parametrize(
    ("words", "exits", "told"),
    [
        (("--plugin", f"{foreign.__file__}:plain", "--out", "a"), 2, "which images does "),
        (("--model", "guard:here", "--out", "a"), 2, "a guarded model is not exported"),
        (("--model", "small_cnn", "--out", "a"), 2, "model small_cnn has no weights"),
        (("--model", "run:run"), 2, "where to? --out DIR is missing"),
        ((), 2, "--out DIR is missing"),
    ],
)
def test_what_is_missing_is_said(cli, words, exits, told):
    answer = cli("export", *words)
    assert answer.code == exits and told in answer.err and answer.err.count("\n") == 1, answer.err


def test_without_the_extra_one_line_says_how_to_get_it(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    words = ("--plugin", f"{foreign.__file__}:plain", "--shape", "1x8x8", "--out", "files")
    answer = cli("export", *words, "--format", "onnx")
    assert answer.code == 6 and "pip install 'robustcli[onnx]'" in answer.err and not Path("files").exists()


def test_data_that_are_named_say_shape_and_classes_and_are_looked_at(cli, monkeypatch):
    looked = []
    from robustcli.jobs.project import export

    def watched(model, points):
        looked.append(points)
        return subject_of(model, points)

    subject_of = export.subject_of
    monkeypatch.setattr(export, "subject_of", watched)
    Path("net.py").write_text(LINEAR)
    words = ("--plugin", "net.py:net", "--data", "digits", "--out", "files", "--json")
    answer = cli("export", *words)
    assert answer.code == 0, answer.err
    assert answer.document["classes"] == list("0123456789") and looked[0].shape == (19, 1, 8, 8)


def test_an_onnx_file_beyond_two_gigabytes_is_refused(monkeypatch):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    from robustcli.errors import UsageError
    from robustcli.jobs.project import formats

    subject = formats.subject_of(foreign.plain().eval(), formats.pictures((1, 8, 8)))
    monkeypatch.setattr(formats, "_ONNX_BYTES", 100)
    with pytest.raises(UsageError, match="2 GiB"):
        formats.as_onnx(subject)
