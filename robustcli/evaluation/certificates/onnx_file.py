"""A network as an ONNX file, compared with the network itself before it is written. Extra `onnx`.

`export_onnx` writes the file that verifiers read, for one image; `document_of` makes that of `export`.
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.modes import frozen
from robustcli.errors import ConfigError, NumericsError, ResourceError, out_of_memory
from robustcli.evaluation.judge import exact_fp32
from robustcli.store.atomic import write_atomic

AGREEMENT = 1e-4  # of logits, in units of the largest logit where that is more than 1
OPSET = 18  # the oldest that torch writes; verifiers read old ones
INPUT, OUTPUT = "X", "Y"


def needs_onnx(where: str = "--export") -> None:
    """Raises ResourceError E-EXTRA where the packages of the extra are missing. where: who needs them."""
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ResourceError(
                f"{name} is not installed",
                where=where,
                hint="pip install 'robustcli[onnx]'",
                code="E-EXTRA",
            ) from error


def export_onnx(model: nn.Module, points: Tensor, path: Path) -> float:
    """Write `model` as ONNX: X float32 [1, C, H, W] in [0, 1] -> Y [1, K], normalisation inside.

    Args:
        model: the network; it is exported in eval mode.
        points: pixels [B, C, H, W] where the file is compared with it, B >= 1.
        path: the file.

    Returns the largest difference of a logit at these points.

    Raises:
        ResourceError: the extra is missing, or the disk refuses. ConfigError: torch cannot export the
        network. NumericsError: file and network differ by more than 1e-4; nothing is then written.
    """
    needs_onnx()
    with frozen(model), torch.no_grad(), exact_fp32():
        document = _converted(model, points[:1])
        expected = model(points).float().cpu()
    difference = float((_answers(document, points) - expected).abs().max())
    allowed = AGREEMENT * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise NumericsError(
            f"the ONNX file differs from the network by {difference:.3g}, {allowed:.3g} is allowed",
            where=str(path),
            hint="nothing was written; the exporter of torch does not reproduce this network",
            code="E-ONNX",
        )
    write_atomic(path, document.SerializeToString())
    return difference


def _converted(model: nn.Module, x: Tensor) -> Any:
    """The ModelProto of `model` for images like x [1, C, H, W], without names of files and lines."""
    return document_of(model, (INPUT, OUTPUT), "--export", (x,))


def document_of(
    model: Any, names: tuple[str, str], where: str, arguments: tuple[Tensor, ...] | None = None
) -> Any:
    """The ModelProto of a network, or of a program of torch.export, without names of files and lines.

    Args:
        names: of its input and of its output.
        where: who asks, for messages.
        arguments: an example of the network's input; a program has its own.

    Raises ConfigError E-MODEL: torch cannot write it as ONNX.
    """
    try:
        with silent():
            program = torch.onnx.export(
                model,
                arguments or (),
                dynamo=True,
                verbose=False,
                input_names=[names[0]],
                output_names=[names[1]],
                opset_version=OPSET,
            )
    except Exception as error:  # the exporter runs code of the user's
        raise unexportable(error, "ONNX", where) from error
    assert program is not None
    document = program.model_proto
    _strip(document)
    return document


def unexportable(error: Exception, form: str, where: str) -> ConfigError:
    """What torch's exporter has failed with, in one line. Raises `error` where memory is short."""
    if out_of_memory(error):
        raise error
    reason = str(error).strip().splitlines() or [""]
    return ConfigError(
        f"torch cannot export the network as {form}: {type(error).__name__}: {reason[0][:200]}",
        where=where,
        hint="its forward must be traceable by torch.export",
        code="E-MODEL",
    )


def _strip(document: Any) -> None:
    """Remove the traces of the exporter: they hold paths of the machine."""
    graph = document.graph
    for part in (document, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _answers(document: Any, points: Tensor) -> Tensor:
    """Logits [B, K] of the document at points [B, C, H, W], by the evaluator of the ONNX standard."""
    reference = importlib.import_module("onnx.reference")
    evaluator = reference.ReferenceEvaluator(document)
    pixels = points.detach().float().cpu().numpy()
    answers = [evaluator.run(None, {INPUT: pixels[i : i + 1]})[0] for i in range(len(pixels))]
    return torch.cat([torch.as_tensor(answer) for answer in answers])


@contextmanager
def silent() -> Iterator[None]:
    """Without the warnings of the exporter, which are about itself, and the graphs that it prints."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
