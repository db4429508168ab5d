"""A network in the formats of `export`, each read back and compared with the network itself."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from robustcli.core.modes import frozen
from robustcli.errors import NumericsError, UsageError, out_of_memory
from robustcli.evaluation.certificates.onnx_file import (
    AGREEMENT,
    OPSET,
    document_of,
    needs_onnx,
    silent,
    unexportable,
)
from robustcli.evaluation.judge import exact_fp32
from robustcli.models.contract.exportable import Exportable

IMAGES, LOGITS, BATCH = "images", "logits", "batch"
_KINDS, _SIZES = 4, (1, 3)  # pictures of each kind, and the first batch sizes that are compared
_ONNX_BYTES = 2**31 - 2**20  # a protobuf holds no more
_WHERE = "export"


@dataclass(frozen=True)
class Exported:
    """One file, in memory.

    Args:
        name: of the file.
        data: what it holds.
        difference: the largest of a logit at all points, from that of the network; allowed: the limit.
        checked_by: what has read the file for the comparison.
        facts: what else a reader of the file must know.
    """

    name: str
    data: bytes
    difference: float
    allowed: float
    checked_by: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is exported, and what it is compared with.

    Args:
        program: the traced network; dynamic: whether it takes batches of any size, not of one image alone.
        points: pixels [N, C, H, W]; expected: the logits [N, K] of the network itself there.
    """

    program: ExportedProgram
    dynamic: bool
    points: Tensor
    expected: Tensor


def pictures(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Points of a comparison: noise, flat grey and smooth shapes, on the lattice of 8 bits; [11, C, H, W]."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.rand(_KINDS, *shape, generator=draw)
    flat = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, *shape)
    coarse = torch.rand(_KINDS, shape[0], 4, 4, generator=draw)
    smooth = F.interpolate(1.6 * coarse - 0.3, size=shape[1:], mode="bilinear").clamp(0, 1)
    return (255 * torch.cat((noise, flat, smooth))).round() / 255


def subject_of(model: nn.Module, points: Tensor) -> Subject:
    """A network as it is exported; arguments as for `Exportable` and `Subject`.

    Raises ConfigError E-MODEL: torch.export cannot trace it.
    """
    network = Exportable(model)
    with _tracing(network), exact_fp32():
        expected = network(points.clone()).float()
        program, dynamic = _traced(network, points[:2].clone())
    return Subject(program, dynamic, points, expected)


def _traced(network: nn.Module, x: Tensor) -> tuple[ExportedProgram, bool]:
    """The program, for batches of any size where that can be traced; else for one image.

    Dynamo (strict) follows idioms that a plain trace does not, as `len(x)`; others the other way round.
    """
    anyhow: list[tuple[bool, bool]] = [(False, True), (True, True), (False, False)]
    for strict, dynamic in anyhow:
        batch = ({0: Dim(BATCH, min=1)},) if dynamic else None
        given = x if dynamic else x[:1]
        try:
            program = torch.export.export(network, (given,), dynamic_shapes=batch, strict=strict)
        except Exception as error:  # the code of the user's network is traced
            if (strict, dynamic) == anyhow[-1] or out_of_memory(error):
                raise unexportable(error, "a program", _WHERE) from error
            continue
        break
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program, dynamic


@contextmanager
def _tracing(network: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and no fused Transformer layer, which ONNX does not have."""
    before = torch.backends.mha.get_fastpath_enabled()
    with frozen(network), torch.no_grad(), silent():
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


def as_torch(subject: Subject) -> Exported:
    """`model.pt2` of torch.export. Raises NumericsError E-EXPORT where it answers differently."""
    file = io.BytesIO()
    with silent():
        torch.export.save(subject.program, file)
        file.seek(0)
        answer = torch.export.load(file).module()
    name, reader = "model.pt2", f"torch {torch.__version__}"
    return Exported(name, file.getvalue(), *_compared(subject, answer, name), reader, _facts(subject))


def as_onnx(subject: Subject) -> Exported:
    """`model.onnx`, checked by onnx, and run by onnxruntime where that is installed.

    Raises ResourceError E-EXTRA, ConfigError E-MODEL, and NumericsError E-EXPORT as `as_torch`.
    """
    needs_onnx(_WHERE)
    tensors = subject.program.state_dict.values()
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > _ONNX_BYTES:
        raise UsageError("the weights are larger than 2 GiB, and one ONNX file holds no more", where=_WHERE)
    document = document_of(subject.program, (IMAGES, LOGITS), _WHERE)
    if subject.dynamic:
        _name_batch(document)
    data = document.SerializeToString()
    importlib.import_module("onnx.checker").check_model(data, full_check=True)
    name = "model.onnx"
    answer, reader = _reader(data)
    facts = _facts(subject) | {"opset": OPSET, "ir_version": document.ir_version}
    return Exported(name, data, *_compared(subject, answer, name), reader, facts)


def _facts(subject: Subject) -> dict[str, Any]:
    return {"dynamic_batch": subject.dynamic}


def _name_batch(document: Any) -> None:
    """Give the symbol for the number of images its name, wherever it stands."""
    graph = document.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", BATCH, size.dim_param)


def _reader(data: bytes) -> tuple[Callable[[Tensor], Tensor], str]:
    """What runs an ONNX file, and its name."""
    if importlib.util.find_spec("onnxruntime"):
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        run = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run
        reader = f"onnxruntime {runtime.__version__}"
    else:
        onnx, reference = importlib.import_module("onnx"), importlib.import_module("onnx.reference")
        run = reference.ReferenceEvaluator(onnx.load_from_string(data)).run
        reader = f"onnx.reference {onnx.__version__}"
    return lambda x: torch.as_tensor(run(None, {IMAGES: x.numpy()})[0]), reader


def _compared(subject: Subject, answer: Callable[[Tensor], Tensor], name: str) -> tuple[float, float]:
    """The largest difference of a logit, and what is allowed: 1e-4 of the largest logit, at least 1e-4.

    Raises NumericsError E-EXPORT where it is more.
    """
    found: list[Tensor] = []
    sizes = [1] * len(subject.points)
    if subject.dynamic:
        sizes = [*_SIZES, len(subject.points) - sum(_SIZES)]
    with torch.no_grad(), exact_fp32(), silent():
        try:
            found = [answer(x.clone()).float() for x in subject.points.split(sizes)]
        except Exception as error:
            raise unexportable(error, f"{name} that runs", _WHERE) from error
    allowed = AGREEMENT * max(1.0, float(subject.expected.abs().max()))
    difference = float((torch.cat(found) - subject.expected).abs().max())
    if not difference <= allowed:
        raise NumericsError(
            f"{name} differs from the network by {difference:.3g}, {allowed:.3g} is allowed",
            where=_WHERE,
            hint="nothing was written; torch's exporter does not reproduce this network",
            code="E-EXPORT",
        )
    return difference, allowed
