"""A faster copy of a frozen classifier to search on: BN folded, channels-last, low precision.

A twin can miss an attack, it can never invent one: every success found on it is confirmed by the original fp32 model.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robustcli.core.packed import pack
from robustcli.core.types import Classifier
from robustcli.errors import out_of_memory

_DRIFT = 0.05  # of the largest logit: half of what the twin itself may be off
_SHOWN = 16  # images kept to compare the forward-only form on
_LOW = (nn.Conv2d, nn.Linear)  # the modules whose weights autocast would cast at every call


class SearchTwin:
    """Callable pixels [B, C, H, W] -> logits float32 [B, K], equal to `model` in eval mode up to rounding.

    Args:
        model: the classifier; never changed. Read again by `refresh`.
        dtype: torch.float32, torch.bfloat16 or torch.float16: precision of convolutions and matrix products.
        fold_bn: fold BatchNorm into the convolution before it, only where torch.fx proves that nothing else reads
            the convolution's output; an untraceable model keeps its BatchNorm.
        channels_last: memory format of images and convolution weights.
        compiled: run the copy through torch.compile. Batches are padded to powers of two, so that a shrinking number of survivors
            meets code (and CUDA graphs) that exists already.

    The fold: w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        fold_bn: bool = True,
        channels_last: bool = True,
        compiled: bool = False,
    ) -> None:
        self._model, self._dtype, self._compiled = model, dtype, compiled
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._pairs: list[tuple[str, str]] = []
        copied, self.traced = _trace(model) if fold_bn else (copy.deepcopy(model), False)
        if self.traced and isinstance(copied, fx.GraphModule):
            self._pairs = _fold(copied)
        self._copy = copied.eval().requires_grad_(False)
        for module in self._copy.modules():
            if isinstance(module, _LOW):
                module.to(dtype=dtype)
        if channels_last:
            self._copy.to(memory_format=torch.channels_last)
        self._shown: Tensor | None = None
        self._forward_only: Classifier | None = None
        self._run: Classifier = torch.compile(self._copy, dynamic=False) if compiled else self._copy
        self.refresh()

    @property
    def folded(self) -> int:
        """How many BatchNorm layers were folded."""
        return len(self._pairs)

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the weights and buffers of the original again (it has been trained since)."""
        self._forward_only = None
        twins = dict(self._copy.named_parameters()) | dict(self._copy.named_buffers())
        done: set[str] = set()
        for conv_name, bn_name in self._pairs:
            conv: Any = self._model.get_submodule(conv_name)
            bn: Any = self._model.get_submodule(bn_name)
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
            )
            twins[f"{conv_name}.weight"].copy_(weight)
            twins[f"{conv_name}.bias"].copy_(bias)
            done |= {f"{conv_name}.weight", f"{conv_name}.bias"}
        for name, tensor in [*self._model.named_parameters(), *self._model.named_buffers()]:
            if name in twins and name not in done:
                twins[name].copy_(tensor)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits in float32; differentiable with respect to x."""
        return self._logits(x, self._run)

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Logits in float32 without a gradient, equal to a call up to rounding: by `core.packed` where it applies and agrees.

        It applies to bf16 on a CPU, not compiled, after `parity` has found no fault.
        """
        if self._forward_only is None:
            self._forward_only = self._packed()
        return self._logits(
            x, self._forward_only if len(x) and x.dim() == 4 and x.device.type == "cpu" else self._run
        )

    def _packed(self) -> Classifier:
        """The forward-only form, or the plain one where there is any doubt."""
        if self._shown is None:
            return self._run
        try:
            made = pack(self._copy)
            if made is None:
                return self._run
            got = self._logits(self._shown, made)
        except Exception:  # noqa: BLE001 - whatever an operator of this build refuses, the plain form can do
            return self._run
        wanted = self._logits(self._shown, self._run)
        close = got.shape == wanted.shape and float((got - wanted).abs().max()) <= _DRIFT * float(
            wanted.abs().max()
        )
        return made if close else self._run

    def _logits(self, x: Tensor, run: Classifier) -> Tensor:
        rows = len(x)
        if self._compiled and rows:
            missing = max(8, 1 << (rows - 1).bit_length()) - rows
            x = torch.cat((x, x[-1:].expand(missing, *x.shape[1:]))) if missing else x
        x = x.contiguous(memory_format=self._format) if x.dim() == 4 else x
        if self._dtype is torch.float32:
            return run(x)[:rows]
        with torch.autocast(x.device.type, dtype=self._dtype, cache_enabled=False):
            logits = run(x)
        return logits[:rows].float()

    @torch.no_grad()
    def parity(self, x: Tensor) -> str:
        """An empty string when twin and original agree on x [B, C, H, W], else why the twin must not be used.

        The largest logit difference may be 1e-3 (fp32) or 0.1 (bf16, fp16) of the largest logit. A randomised model
        differs from itself and is refused with the same words.
        """
        self._shown = self._forward_only = None
        training = [(m, m.training) for m in self._model.modules()]
        try:
            for module, _ in training:
                module.training = False
            wanted = self._model(x)
        finally:
            for module, flag in training:
                module.training = flag
        try:
            got = self(x)
        except Exception as failure:  # tracing drops context managers, so user code may not run again
            if out_of_memory(failure):
                raise
            return f"its copy does not run ({type(failure).__name__})"
        if got.shape != wanted.shape:
            return f"its logits have shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
        scale = float(wanted.abs().max().clamp_min(1e-6))
        error = float((got - wanted).abs().max()) / scale
        limit = 1e-3 if self._dtype is torch.float32 else 0.1
        if (
            error <= limit
            and self._dtype is torch.bfloat16
            and x.device.type == "cpu"
            and x.dim() == 4
            and not self._compiled
        ):
            self._shown = x[:_SHOWN].detach().clone()
        return (
            ""
            if error <= limit
            else f"its logits differ by {error:.2g} of the largest logit (limit {limit:g})"
        )


def _trace(model: nn.Module) -> tuple[nn.Module, bool]:
    """A graph copy of the model, or a plain deep copy when torch.fx cannot trace it."""
    plain = copy.deepcopy(model).eval()
    try:
        return fx.symbolic_trace(plain), True
    except Exception:  # noqa: BLE001 - any failure of tracing user code means: do not fold
        return plain, False


def _fold(graph: fx.GraphModule) -> list[tuple[str, str]]:
    """Drop each BatchNorm2d that alone reads a Conv2d's output; give the convolution a bias. Returns (conv, bn) names."""
    modules = dict(graph.named_modules())
    calls: dict[object, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    pairs: list[tuple[str, str]] = []
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        conv, bn = modules.get(str(source.target)), modules.get(str(node.target))
        if (
            type(conv) is not nn.Conv2d
            or type(bn) is not nn.BatchNorm2d
            or bn.running_mean is None
            or conv.padding_mode != "zeros"
        ):
            continue
        if calls[source.target] != 1 or calls[node.target] != 1 or not bn.affine:
            continue
        conv.bias = nn.Parameter(torch.zeros_like(bn.running_mean))
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
        pairs.append((str(source.target), str(node.target)))
    graph.recompile()
    return pairs
