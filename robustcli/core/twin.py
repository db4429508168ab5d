"""A faster copy of a frozen classifier to search on: BN folded, channels-last, low precision.

A search on a twin may miss a success. It cannot add a false one: the original fp32 model confirms each.
The file is long: the twin, the proof that it equals the model, and the fold are read together.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robustcli.core.copies import duplicate
from robustcli.core.graphs import Graphs
from robustcli.core.modes import frozen
from robustcli.core.packed import pack
from robustcli.core.padding import filled, power_of_two
from robustcli.core.slope import slope
from robustcli.core.tiling import lighter, sloped
from robustcli.core.types import Classifier
from robustcli.core.widened import widen
from robustcli.errors import out_of_memory

# Shares of the largest logit: the most by which a twin may differ from the model, and the most by which its
# forward-only form (`core.packed`) may differ from the twin.
_OFF = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
_DRIFT = {torch.float32: 1e-4, torch.bfloat16: 0.05}
_BENT = 0.01  # the most by which gradients by tiles may differ from those of the twin: ReLUs near 0 switch
_ALIKE = (
    0.5  # cosine between the gradients of twin and model; rounding to bf16 leaves 0.9 and more of a batch
)
_ASIDE = 0.01  # share of the way to noise at which a row is looked at once more
_SHOWN = 16  # images kept to compare the forward-only form on
_FEW = 8  # of them, to compare gradients on
_LOW = (nn.Conv2d, nn.Linear)  # the modules whose weights autocast would cast at every call
_NOBODY = nn.Module()  # the model of a twin that is kept aside
tracing = threading.Lock()  # two traces at once would leave nn.Module.__call__ replaced for ever


class SearchTwin:
    """Callable pixels [B, C, H, W] -> logits float32 [B, K], equal to `model` in eval mode up to rounding.

    Args:
        model: the classifier; never changed. `refresh` reads its weights again.
        dtype: torch.float32, torch.bfloat16 or torch.float16: precision of convolutions and matrix products.
        fold_bn: fold a BatchNorm into the convolution before it, where the graph of torch.fx shows that
            nothing else reads the output of the convolution. A model that torch.fx cannot trace keeps its
            BatchNorm.
        channels_last: memory format of images and convolution weights.
        compiled: run the copy through torch.compile. Batches are filled up to powers of two, so that few
            sizes are compiled.
        graph: record what attacks ask again and again as CUDA graphs, see `core.graphs`.
        wide: first convolutions read eight channels, of which the last are 0, see `core.widened`.

    The fold: w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta. `folded`
    holds the names of the (convolution, BatchNorm) pairs that were folded.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        fold_bn: bool = True,
        channels_last: bool = True,
        compiled: bool = False,
        graph: bool = False,
        wide: bool = False,
    ) -> None:
        self._model, self._dtype, self._compiled = model, dtype, compiled
        #: Whether it computes in less than float32.
        self.low = dtype is not torch.float32
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        #: What is recorded around this copy; None where nothing is to be.
        self.graphs = Graphs(checked=not compiled) if graph else None
        self.folded: list[tuple[str, str]] = []
        twin = duplicate(model).eval()
        if fold_bn:
            twin, self.folded = _fold(twin)
        if wide:
            widen(twin)
        #: In which form this twin was found to be fastest, as a line for the user; "" where nobody looked.
        self.way = ""
        #: The copy as a module, a graph where it was traced; `core.forward` makes faster forms of it.
        self.copied: nn.Module = twin.eval().requires_grad_(False)
        for module in self.copied.modules():
            if isinstance(module, _LOW) and _in_float32(module):
                module.to(dtype=dtype)
        if channels_last:
            self.copied.to(memory_format=torch.channels_last)
        #: Whether the copy ran on the images of the last `parity`, and no trace lost a gradient.
        self.runs = False
        self._shown: Tensor | None = None
        self._forward_only: Classifier | None = None
        self._sloped: Classifier | None = None
        self._run: Classifier = torch.compile(self.copied, dynamic=False) if compiled else _Quiet(self.copied)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy weights and buffers of the original into the twin, folded; for use after training steps."""
        self._forward_only = self._sloped = None
        twins = dict(_named(self.copied))
        fused: set[str] = set()
        for conv_name, bn_name in self.folded:
            conv: Any = self._model.get_submodule(conv_name)
            bn: Any = self._model.get_submodule(bn_name)
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
            )
            _copy(weight, twins[f"{conv_name}.weight"])
            twins[f"{conv_name}.bias"].copy_(bias)
            fused |= {f"{conv_name}.weight", f"{conv_name}.bias"}
        for name, tensor in _named(self._model):
            if name in twins and name not in fused:
                _copy(tensor, twins[name])

    def __call__(self, x: Tensor) -> Tensor:
        """Logits float32 [B, K] of pixels x [B, C, H, W]; differentiable with respect to x."""
        return self._logits(x, self._run)

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Logits float32 [B, K] of pixels x [B, C, H, W] without a gradient, those of a call up to rounding.

        A twin in bf16 or fp32 on a CPU, not compiled, answers from its forward-only form (`core.packed`, in
        fp32 with the tiles of `core.tiled`). That form is made at the first call after a `parity` without
        fault, and is used only where it agrees with the twin.
        """
        if self._forward_only is None:
            self._forward_only = self._lighter()
        if self.graphs is not None and len(x):
            return self.graphs("scores", self._alone, (x.detach(),), len(x), lambda: self._alone(x))[0]
        return self._alone(x)[0]

    def forms(self, *, many: bool) -> tuple[Classifier, Classifier]:
        """What a search asks for scores, and for gradients; many: whether it asks for hundreds of each row.

        The forms of an fp32 twin take the time of some hundred rows to make.
        """
        if self._dtype is not torch.float32 or self.graphs is not None:
            return self.scores, self
        return (self.scores, self.slopes) if many else (self, self)

    def slopes(self, x: Tensor) -> Tensor:
        """The answer of a call up to rounding, for searches that ask for many gradients.

        An fp32 twin on a CPU answers by the tiles of `core.tiled`, there and back, under the conditions of
        `scores`.
        """
        if self._sloped is None:
            self._sloped = self._slopes()
        return self._logits(x, self._sloped)

    def _slopes(self) -> Classifier:
        """The form with tiles; the twin itself where there are none, or where they answer otherwise."""
        if self._shown is None or self._dtype is not torch.float32:
            return self._run
        try:
            shown = self._shown[:_FEW]
            form = sloped(self.copied, shown) if isinstance(self.copied, fx.GraphModule) else None
            if form is not None and self._like_twin(_Quiet(form), shown):
                return _Quiet(form)
        except Exception:  # noqa: BLE001 - whatever code that is not ours refuses, the plain form can do
            return self._run
        return self._run

    def _like_twin(self, run: Classifier, x: Tensor) -> bool:
        """Whether logits and gradients of a form on pixels x [B, C, H, W] are those of the twin."""
        got, wanted = self._logits(x, run), self._logits(x, self._run)
        if got.shape != wanted.shape or _largest(got - wanted) > _DRIFT[self._dtype] * _largest(wanted):
            return False
        grads = [_lean(partial(self._logits, run=call), x) for call in (run, self._run)]
        if grads[0] is None or grads[1] is None:
            return False
        return float((grads[0] - grads[1]).norm()) <= _BENT * float(grads[1].norm())

    @torch.no_grad()
    def _alone(self, x: Tensor) -> tuple[Tensor]:
        """The logits as the only answer."""
        if self._forward_only is not None and len(x) and x.dim() == 4 and x.device.type == "cpu":
            return (self._logits(x, self._forward_only),)
        return (self._logits(x, self._run),)

    def _lighter(self) -> Classifier:
        """The fastest forward-only form; the twin itself where each is missing, fails or differs too much."""
        if self._shown is None or not isinstance(self.copied, fx.GraphModule):
            return self._run
        wanted = self._logits(self._shown, self._run)
        try:
            for form in self._forms(self.copied, self._shown):
                call = _Quiet(form)
                got = self._logits(self._shown, call)
                if got.shape == wanted.shape:
                    if _largest(got - wanted) <= _DRIFT[self._dtype] * _largest(wanted):
                        return call
        except Exception:  # noqa: BLE001 - whatever an operator of this build refuses, the plain form can do
            return self._run
        return self._run

    def _forms(self, copied: fx.GraphModule, x: Tensor) -> Iterator[fx.GraphModule]:
        """The forms to try, from the fastest on."""
        if self._dtype is torch.float32:
            yield from lighter(copied, x)
            return
        packed = pack(copied)
        if packed is not None:
            yield packed

    def _logits(self, x: Tensor, run: Classifier) -> Tensor:
        """run(x) as float32 [B, K]: batch filled up, memory format and autocast as the twin needs them."""
        rows = len(x)
        if self._compiled and rows:
            x = filled(x, power_of_two(rows))
        if x.dim() == 4:
            x = x.contiguous(memory_format=self._format)
        if self._dtype is torch.float32:
            return run(x)[:rows]
        with torch.autocast(x.device.type, dtype=self._dtype, cache_enabled=False):
            logits = run(x)
        return logits[:rows].float()

    def _same_slope(self, x: Tensor) -> bool:
        """Whether the gradients of twin and model point the same way on pixels x [B, C, H, W].

        A trace keeps what a torch.autograd.Function answers and loses its backward pass: the gradient of a
        rounding with a surrogate, say, would be 0. A row that differs is looked at once more beside x, since
        ReLU and max pooling have no one gradient at a tie, and in fp32, since rounding turns small gradients.
        """
        wanted, got = self._wanted(x), _lean(self, x)
        if wanted is None:
            return True
        if got is None or float(_cosines(got[None], wanted[None])) <= _ALIKE:
            return False
        off = (_cosines(got, wanted) <= _ALIKE).nonzero()[:, 0]
        if not len(off):
            return True
        if self.low:
            plain = SearchTwin(self._model, channels_last=self._format is torch.channels_last)
            return plain._same_slope(x[off])
        noise = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x.device)
        near = x[off] + _ASIDE * (noise - x[off])
        wanted, got = self._wanted(near), _lean(self, near)
        return wanted is None or (got is not None and not (_cosines(got, wanted) <= _ALIKE).any())

    def _wanted(self, x: Tensor) -> Tensor | None:
        """The gradient of the model, [B, C, H, W]; None where it has none."""
        with frozen(self._model):
            wanted = _lean(self._model, x)
        return None if wanted is None or not wanted.any() else wanted

    @torch.no_grad()
    def parity(self, x: Tensor) -> str:
        """Why the twin must not be used, judged on pixels x [B, C, H, W]; "" where it agrees with the model.

        It agrees when the largest difference of logits is at most 1e-3 (fp32) or 0.1 (bf16, fp16) of the
        largest logit, and the gradients of a traced one point the same way. The twin of a randomised model is
        refused, too: such a model differs from itself.
        """
        self._shown = self._forward_only = self._sloped = None
        self.runs = False
        if told := self.difference(x):
            return told
        if isinstance(self.copied, fx.GraphModule) and not self._same_slope(x[:_SHOWN]):
            self.runs = False
            return "its gradients are not those of the model"
        if self._dtype in _DRIFT and not self._compiled and x.dim() == 4 and x.device.type == "cpu":
            self._shown = x[:_SHOWN].detach().clone()
        return ""

    @torch.no_grad()
    def difference(self, x: Tensor) -> str:
        """As `parity`, of the logits alone: for a twin of which one `parity` found no fault before."""
        with frozen(self._model):
            wanted = self._model(x)
        try:
            got = self(x)
        except Exception as failure:  # tracing drops context managers, so user code may not run again
            if out_of_memory(failure):
                raise
            return f"its copy does not run ({type(failure).__name__})"
        self.runs = True
        if got.shape != wanted.shape:
            return f"its logits have shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
        error = _largest(got - wanted) / max(_largest(wanted), 1e-6)
        limit = _OFF[self._dtype]
        if not error <= limit:
            return f"its logits differ by {error:.2g} of the largest logit (limit {limit:g})"
        return ""

    def follow(self, model: nn.Module | None) -> None:
        """From now on the twin of this module, built as the one before; None: of nobody, to be kept aside.

        A twin that is kept must not keep its model alive.
        """
        self._model = _NOBODY if model is None else model


def _lean(call: Classifier, x: Tensor) -> Tensor | None:
    """The gradient [B, C, H, W] of a fixed sum of the logits; None where the model has none to give.

    What is not finite becomes 0, as in `core.oracle`.
    """
    point = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = call(point)
        weights = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=logits.dtype).cos()
        try:
            return slope((logits * weights).sum(1), point, whole=True).nan_to_num(0, 0, 0)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            return None


def _cosines(got: Tensor, wanted: Tensor) -> Tensor:
    """[B]: the cosine between the rows of two gradients; 1 where the wanted one is 0."""
    rows = [grad.flatten(1).double() for grad in (got, wanted)]
    units = [row / row.abs().amax(1, keepdim=True).clamp(min=1e-300) for row in rows]  # no square underflows
    return torch.cosine_similarity(units[0], units[1]).where(rows[1].any(1), 1.0)


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers under all of their names: a trace may meet tied weights in another order."""
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]


def _copy(source: Tensor, target: Tensor) -> None:
    """target[:, :C] = source, of C channels: a widened weight has more, and they stay 0."""
    if target.shape != source.shape:
        target = target[:, : source.shape[1]]
    target.copy_(source)


class _Quiet:
    """The call of a module. A traced one would print a traceback of its own whenever it fails."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        # Looked up at each call: a trace replaces it for a while.
        logits: Tensor = nn.Module.__call__(self.module, x)
        return logits


def _in_float32(module: nn.Module) -> bool:
    """Whether its weights are float32: those of a half or double network stay as they are."""
    return all(parameter.dtype is torch.float32 for parameter in module.parameters())


def _largest(z: Tensor) -> float:
    """The largest absolute value."""
    return float(z.abs().max())


def _fold(model: nn.Module) -> tuple[nn.Module, list[tuple[str, str]]]:
    """Take out each BatchNorm2d that alone reads the output of a Conv2d; `refresh` computes the weights.

    Returns:
        The traced graph, and the (conv, bn) names of the pairs. Each conv of a pair has a bias of 0. A model
        that torch.fx cannot trace, or only as it is now, comes back as it is, with no pair.
    """
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return model, []  # a hook is code of the user's, which a trace would run on what is no tensor
    try:
        graph = _traced(model)
    except Exception:  # noqa: BLE001 - any failure of tracing user code means: do not fold
        return model, []
    if any(node.op == "get_attr" and "_tensor_constant" in str(node.target) for node in graph.graph.nodes):
        return model, []  # made of the buffers of this moment: the twin would not follow the weights
    modules = dict(graph.named_modules())
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    pairs: list[tuple[str, str]] = []
    for node in list(graph.graph.nodes):
        source = _single_source(node)
        if source is None or calls[source.target] != 1 or calls[node.target] != 1:
            continue
        conv, bn = modules.get(str(source.target)), modules.get(str(node.target))
        if type(conv) is not nn.Conv2d or type(bn) is not nn.BatchNorm2d or conv.padding_mode != "zeros":
            continue
        if bn.running_mean is None or not bn.affine:
            continue
        conv.weight = nn.Parameter(conv.weight.detach().clone())  # another layer may be tied to the old one
        conv.bias = nn.Parameter(torch.zeros_like(bn.running_mean))
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
        pairs.append((str(source.target), str(node.target)))
    graph.recompile()
    return graph, pairs


class Tracer(fx.Tracer):
    """torch.fx's tracer, which sees its own thread alone.

    While it works, torch.fx has `nn.Module.__call__` and `__getattr__` replaced in the whole process. The
    calls that other threads make of their networks meanwhile are none of its business.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _traced(model: nn.Module) -> fx.GraphModule:
    """The graph of a model. One thread traces at a time."""
    with tracing:
        tracer = Tracer()
        graph = tracer.trace(model)
        return fx.GraphModule(tracer.root, graph, type(model).__name__)


def _single_source(node: fx.Node) -> fx.Node | None:
    """The module call whose output the module call `node` reads; None where another node reads it, too."""
    if node.op != "call_module" or not node.args:
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    return source
