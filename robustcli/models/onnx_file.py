"""An ONNX file as a black box: onnxruntime gives its scores, and no gradient."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcli.config.spec import ONNX
from robustcli.errors import CheckpointError, DataError, ResourceError
from robustcli.models.blackbox import BlackBox
from robustcli.models.complaint import first_line
from robustcli.models.normalised import parse_normalize
from robustcli.regular import read_regular
from robustcli.store.weights import MAX_BYTES

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_COLOURS = (1, 3)


class OnnxModel(BlackBox):
    """scores = f((x - mean) / std), f the network of the file; pixels [B, C, H, W] -> [B, K], on the CPU.

    Images go in as [B, H, W, C] where the file says so, and one after another where it takes a fixed number.
    No operator outside onnxruntime is loaded.

    Args:
        path: the file.
        normalize: what the network expects, as `parse_normalize` reads it; None: pixels as they are.

    Raises:
        ResourceError E-EXTRA: onnxruntime is not installed. CheckpointError: no such file, a damaged one, or
        no network of one image and one row of scores. DataError E-SHAPE: images of another shape.
    """

    def __init__(self, path: Path, normalize: str | None = None) -> None:
        super().__init__("scores")
        self.arch = f"{ONNX}{path}"
        data = _read(path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._session = _session(path)
        self._input, self._output = _ends(self._session, path)
        self._last = _channels_last(self._input.shape)
        self._by = None if normalize is None else parse_normalize(normalize)

    def extra_repr(self) -> str:
        """The hash of the file, by which shards know the model."""
        return f"{self.arch}, sha256={self.sha256}"

    def ask(self, x: Tensor) -> Tensor:
        """See `BlackBox`."""
        images = x.detach().cpu().float()
        if self._by is not None:
            mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in self._by)
            images = (images - mean) / std
        if self._last:
            images = images.movedim(1, -1)
        batch = self._input.shape[0]
        step = batch if isinstance(batch, int) else max(1, len(images))
        parts = [self._run(images[k : k + step], step, batch) for k in range(0, len(images), step)]
        return torch.cat(parts) if parts else torch.zeros(0, 2)

    def _run(self, images: Tensor, step: int, batch: Any) -> Tensor:
        """Scores [n, K] of n <= step images; a file of a fixed batch gets the last image again."""
        n = len(images)
        if isinstance(batch, int) and n < step:
            images = torch.cat([images, images[-1:].expand(step - n, *images.shape[1:])])
        array = images.numpy().astype(_FLOATS[self._input.type])
        try:
            (scores,) = self._session.run([self._output], {self._input.name: array})
        except Exception as error:  # onnxruntime has a class for each of its codes, all RuntimeErrors or not
            shape = "x".join(map(str, images.shape[1:]))
            what = f"onnxruntime cannot run images {shape}: {first_line(error)}"
            hint = f"the file takes {_shape(self._input.shape[1:])}: set data.size and data.channels"
            raise DataError(what, where=self.arch, hint=hint, code="E-SHAPE") from error
        rows = torch.from_numpy(np.array(scores, dtype=np.float32))
        if rows.ndim != 2 or len(rows) != len(images) or rows.shape[1] < 2:
            what = f"of {len(images)} images it makes {_shape(rows.shape)}, and not a row of scores each"
            raise CheckpointError(what, where=self.arch, hint="export logits [B, K]", code="E-MODEL")
        return rows[:n]


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError("no such file", where=str(path), code="E-CKPT-MISSING")
    return read_regular(path, MAX_BYTES)


def _session(path: Path) -> Any:
    """onnxruntime on the CPU, with as many threads as torch; the path, since weights may lie beside it."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ResourceError(
            "onnxruntime is not installed",
            where=f"{ONNX}{path}",
            hint="pip install 'robustcli[onnx]'",
            code="E-EXTRA",
        ) from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(
            f"onnxruntime {runtime.__version__} cannot load it: {first_line(error)}",
            where=str(path),
            hint="a damaged file, one with operators of its own, or without the weights that lie beside it",
            code="E-CKPT-FORMAT",
        ) from error


def _ends(session: Any, path: Path) -> tuple[Any, str]:
    """(the input of images, the name of the output of scores). Raises CheckpointError."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _FLOATS:
        found = ", ".join(f"{one.name} {one.type} {_shape(one.shape)}" for one in inputs)
        raise CheckpointError(
            f"it takes {found or 'nothing'}, and not one batch of float images",
            where=str(path),
            hint="export a network of pixels [B, C, H, W]",
            code="E-MODEL",
        )
    outputs = [one for one in session.get_outputs() if len(one.shape or ()) in (0, 2)]
    named = [one for one in outputs if one.name == "logits"] or outputs
    if not named:
        found = ", ".join(f"{one.name} {_shape(one.shape)}" for one in session.get_outputs())
        raise CheckpointError(
            f"no output is a row of scores: {found}",
            where=str(path),
            hint="export logits [B, K]",
            code="E-MODEL",
        )
    return inputs[0], str(named[0].name)


def _channels_last(shape: Any) -> bool:
    """Whether a file takes [B, H, W, C]: its last side is 1 or 3, and its second is not."""
    return shape[3] in _COLOURS and shape[1] not in _COLOURS


def _shape(sides: Any) -> str:
    return "x".join(str(side) for side in sides) or "a scalar"
