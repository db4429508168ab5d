"""Open questions for complete verifiers: VNN-LIB states box and property, ONNX is the network."""

from __future__ import annotations

import importlib.util
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.data.split import MemorySplit
from robustcli.errors import ConfigError, NumericsError, ResourceError, UsageError
from robustcli.evaluation.certificates import onnx_file
from robustcli.evaluation.certificates.onnx_file import export_onnx
from robustcli.evaluation.certificates.vnnlib import decimal, vnnlib
from robustcli.jobs.certify.export import export
from robustcli.models.normalised import NormalisedModel

BALL = Ball("linf", 0.1)
EXTRA = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(EXTRA), reason=f"not installed: {', '.join(EXTRA)}")


class Question:
    """A VNN-LIB file as a verifier reads it: s-expressions, X and Y declared, two bounds of each X."""

    def __init__(self, text: str) -> None:
        plain = re.sub(r";[^\n]*", "", text)
        self.tokens = re.findall(r"[()]|[^\s()]+", plain)
        self.names: list[str] = []
        self.lower: dict[str, Fraction] = {}
        self.upper: dict[str, Fraction] = {}
        self.disjuncts: list[list[tuple[str, str, str]]] = []
        while self.tokens:
            self._command(self._tree())

    def _tree(self) -> list[object]:
        """The next expression in brackets."""
        assert self.tokens.pop(0) == "("
        items: list[object] = []
        while self.tokens[0] != ")":
            items.append(self._tree() if self.tokens[0] == "(" else self.tokens.pop(0))
        self.tokens.pop(0)
        return items

    def _command(self, tree: list) -> None:
        if tree[0] == "declare-const":
            assert tree[2] == "Real"
            self.names.append(tree[1])
            return
        assert tree[0] == "assert"
        relation = tree[1]
        if relation[0] == "or":
            self.disjuncts = [[tuple(part) for part in one[1:]] for one in relation[1:]]
            return
        bounds = self.lower if relation[0] == ">=" else self.upper
        bounds[relation[1]] = Fraction(relation[2])

    def contains(self, point: Tensor) -> bool:
        values = [Fraction(value) for value in point.double().flatten().tolist()]
        return all(self.lower[f"X_{i}"] <= v <= self.upper[f"X_{i}"] for i, v in enumerate(values))

    def broken(self, logits: Tensor) -> bool:
        value = {f"Y_{k}": logit for k, logit in enumerate(logits.tolist())}
        assert all(relation == ">=" for one in self.disjuncts for relation, _, _ in one)
        return any(all(value[a] >= value[b] for _, a, b in one) for one in self.disjuncts)


def test_the_question_states_the_box() -> None:
    x = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0], x[1, 2, 2] = 0.0, 1.0
    question = Question(vnnlib(x, 1, 4, BALL))
    assert question.names == [f"X_{i}" for i in range(18)] + [f"Y_{k}" for k in range(4)]
    exact = [Fraction(value) for value in x.double().flatten().tolist()]
    eps, tiny = Fraction(BALL.eps), Fraction(1, 10**15)
    for i, value in enumerate(exact):
        low, high = max(value - eps, Fraction(0)), min(value + eps, Fraction(1))
        assert low - tiny <= question.lower[f"X_{i}"] <= low, i
        assert high <= question.upper[f"X_{i}"] <= high + tiny, i
    inside = BALL.random_point(x[None].expand(20, -1, -1, -1), RowRandom(0, "t", torch.arange(20)))
    assert all(question.contains(point) for point in inside)
    assert not question.contains(x + 0.11)


def test_the_property_is_that_another_class_wins() -> None:
    question = Question(vnnlib(torch.full((1, 1, 1), 0.5), 2, 4, BALL))
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    assert [question.broken(row) for row in logits] == (logits.argmax(1) != 2).tolist()
    assert question.broken(torch.zeros(4))  # a tie is a break


@pytest.mark.parametrize("value", [0.0, 1.0, 5e-324, 1e-17, 0.1, 1 / 3, 0.30000000000000004, 1e22])
def test_decimals_have_no_exponent_and_give_the_number_back(value: float) -> None:
    assert re.fullmatch(r"\d+\.\d+", decimal(value)) and float(decimal(value)) == value


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_ball_that_is_no_box_is_refused(norm: str) -> None:
    with pytest.raises(UsageError, match="states boxes"):
        vnnlib(torch.zeros(1, 1, 1), 0, 2, Ball(norm, 0.1))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ResourceError, match=r"onnx is not installed.*robustcli\[onnx\]"):
        onnx_file.needs_onnx()


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    return NormalisedModel(layers, [0.4], [0.3])


@needs_extra
def test_the_exported_network_agrees(tmp_path: Path) -> None:
    import onnxruntime

    model, x = network(), torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    pixels, labels = (x * 255).to(torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2])
    split = MemorySplit(pixels, labels, ("a", "b", "c"))
    done = export(tmp_path, model, split, torch.tensor([4, 1]), BALL, torch.device("cpu"))
    assert done["samples"] == 2 and done["difference"] <= 1e-4
    assert model.training  # as it was
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    model.eval()
    for line, sample in zip((tmp_path / "instances.csv").read_text().splitlines(), (4, 1), strict=True):
        onnx_name, question_name, seconds = line.split(",")
        assert (tmp_path / onnx_name).is_file() and int(seconds) > 0
        question = Question((tmp_path / question_name).read_text())
        assert question_name == f"vnnlib/{sample}.vnnlib"
        clean = pixels[sample : sample + 1].float() / 255
        points = BALL.random_point(clean.expand(50, -1, -1, -1), RowRandom(0, "t", torch.arange(50)))
        with torch.no_grad():
            logits = model(points)
        for point, row in zip(points, logits, strict=True):
            (answer,) = session.run(None, {"X": point[None].numpy()})
            assert np.abs(answer[0] - row.numpy()).max() <= 1e-4 and question.contains(point)
            assert question.broken(row) == bool(row.argmax() != labels[sample])
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert str(Path(__file__).parents[2]).encode() not in written  # no path of this machine


@needs_extra
def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_answers", lambda document, points: torch.full((len(points), 3), 9.0))
    with pytest.raises(NumericsError, match="differs from the network"):
        export_onnx(network(), torch.rand(2, 1, 8, 8), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@needs_extra
def test_a_network_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum().item() > 1e9 else -x.flatten(1)

    with pytest.raises(ConfigError, match="cannot export the network as ONNX"):
        export_onnx(Asks(), torch.rand(1, 1, 2, 2), tmp_path / "model.onnx")
