"""How a network of somebody else is called, and how its answer is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from robustcli.models.contract.half import Scale
from robustcli.models.contract.refusal import refused

#: Where the logits of an answer are: it is the tensor, or it holds them under "logits", or as `.logits`.
Kind = Literal["tensor", "key", "attribute"]


@dataclass(frozen=True)
class Contract:
    """What a probe found out about a network. The default is the contract of our own networks.

    Args:
        kind: where the logits are in eval mode.
        one_logit: the answer is one number z for each image, [B] or [B, 1]. It is read as the logits
            (-z/2, z/2) of two classes: cross-entropy is then the binary one of z, and the margin is z.
        dtype: what the images are cast to, for weights in half or double precision; the logits come back in
            float32. None: no cast.
        writes: the network writes into its input, so it is given a copy.
        squeezed: K where the answer to a single image is [K], as after `.squeeze()`; 0 elsewhere.
        cudnn: False where cuDNN refuses the gradient of a recurrent layer in eval mode.
        heads: in train mode it gives a tuple; the first of it are the logits.
        channels_last: whether it runs on channels-last images and weights.
    """

    kind: Kind = "tensor"
    one_logit: bool = False
    dtype: torch.dtype | None = None
    writes: bool = False
    squeezed: int = 0
    cudnn: bool = True
    heads: bool = False
    channels_last: bool = True

    @property
    def plain(self) -> bool:
        """Whether the network is called as it is, and its answer is taken as it comes."""
        tensor = self.kind == "tensor" and not self.one_logit and not self.heads
        return tensor and self.dtype is None and not self.writes and not self.squeezed and self.cudnn

    def ask(self, net: nn.Module, x: Tensor) -> Tensor:
        """Logits [B, K] of images x [B, C, H, W]. Raises ConfigError E-MODEL for another answer."""
        if self.plain:
            logits: Tensor = net(x)
            return logits
        if self.dtype is torch.float16 and isinstance(x, Tensor):
            scale = Scale()
            out = self.call(net, scale.images(x, self.dtype))
            return scale.logits(self.answer(out, training=net.training, rows=x.shape[0]))
        return self.read(self.call(net, x), training=net.training, rows=x.shape[0])

    def blind(self, net: nn.Module, x: Tensor) -> Tensor:
        """As `ask`, for an exporter: B may be a symbol, so no number of rows is looked at."""
        logits: Tensor = _traced(self.call(net, x), self.kind)
        return self._shaped(logits).float()

    def call(self, net: nn.Module, x: Tensor) -> Any:
        """What the network answers to images x [B, C, H, W]."""
        given = x if self.dtype is None else x.to(self.dtype)
        if self.writes and given is x:
            given = x.clone()
        with _kernels(self.cudnn):
            return net(given)

    def read(self, out: Any, *, training: bool, rows: int) -> Tensor:
        """The logits [B, K] in the answer `out` to B = `rows` images; raises as `ask`."""
        logits = self.answer(out, training=training, rows=rows)
        return logits if self.dtype is None else logits.float()

    def answer(self, out: Any, *, training: bool, rows: int) -> Tensor:
        """As `read`, in the precision of the network."""
        if isinstance(rows, fx.Proxy):  # a trace is of eval mode, and holds no values to look at
            return self._shaped(_traced(out, self.kind))
        return self._shaped(logits_of(out, training=training, rows=rows, squeezed=self.squeezed))

    def _shaped(self, logits: Tensor) -> Tensor:
        """The numbers of an answer as [B, K]."""
        if self.one_logit:
            half = logits.reshape(-1, 1) / 2
            return torch.cat((-half, half), 1)
        return logits.reshape(-1, self.squeezed) if self.squeezed else logits


def kind_of(out: Any) -> Kind:
    """Where the logits of this answer are."""
    if isinstance(out, Mapping):
        return "key"
    return "tensor" if isinstance(out, Tensor) else "attribute"


def logits_of(out: Any, *, training: bool, rows: int, squeezed: int = 0) -> Tensor:
    """The logits in a network's answer to `rows` images: [rows, K], or [rows] of a network with one logit.

    A tensor, `{"logits": tensor}` and an object with `.logits` are taken. In train mode so is the first of a
    tuple or list: the others are auxiliary heads. [K] of a single image is [1, K] where `squeezed` is K.
    Raises ConfigError E-MODEL for anything else.
    """
    logits = found(out, training)
    if logits is not None and squeezed and rows == 1 and logits.numel() == squeezed and logits.dim() < 2:
        logits = logits.reshape(1, squeezed)
    if logits is None or not logits.is_floating_point() or not _fits(logits, rows):
        raise refused(out, logits, rows, training=training)
    return logits


def found(out: Any, training: bool) -> Tensor | None:
    """The tensor that stands where an answer has its logits, of whatever shape; None where none does."""
    named = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if isinstance(out, Tensor):
        return out
    if named is None and training and isinstance(out, (tuple, list)) and out:
        named = out[0]
    return named if isinstance(named, Tensor) else None


def _fits(logits: Tensor, rows: int) -> bool:
    dense = logits.layout is torch.strided
    return dense and logits.dim() in (1, 2) and len(logits) == rows and logits.numel() > 0


def _traced(out: Any, kind: Kind) -> Any:
    if kind == "key":
        return out["logits"]
    return out if kind == "tensor" else out.logits


@contextmanager
def _kernels(cudnn: bool) -> Iterator[None]:
    """Without cuDNN inside, where it must not be used."""
    backend: Any = torch.backends.cudnn
    before = backend.enabled
    if cudnn or not before:
        yield
        return
    try:
        backend.enabled = False
        yield
    finally:
        backend.enabled = before
