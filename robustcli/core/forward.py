"""The fastest form of a network for passes without a gradient that still computes in fp32.

BatchNorm is folded, memory is channels-last. On a CPU weights have oneDNN's layout beforehand, ReLU happens
inside convolutions (`core.packed`), and convolutions with many products go by tiles (`core.tiled`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from robustcli.core.modes import frozen
from robustcli.core.packed import is_relu, only_reader, pack
from robustcli.core.tiled import TiledConv, worth_tiles
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Classifier
from robustcli.errors import out_of_memory

_DRIFT = 1e-4  # of the largest logit: the most by which a form may differ from the network


@torch.no_grad()
def forward_only(model: nn.Module, x: Tensor) -> Classifier:
    """Pixels [R, C, H, W] -> logits float32 [R, K], equal to `model` in eval mode up to rounding.

    It holds a copy of the weights of this moment. Where a form does not run, or its logits on x differ by
    more than 1e-4 of the largest one, the next plainer form takes its place: at last the search twin, or
    `model` itself where that twin does not agree with it.

    Args:
        model: the network; it is not changed.
        x: pixels [R, C, H, W] as later calls have them, R rows included: these shapes decide on tiles.
    """
    twin, wanted = _twin(model, x)
    if twin is None:
        return model
    for form in _forms(twin, x):
        got = _answers(form, x)
        if got is not None and float((got - wanted).abs().max()) <= _DRIFT * float(wanted.abs().max()):
            return form
    return twin


def _twin(model: nn.Module, x: Tensor) -> tuple[SearchTwin | None, Tensor]:
    """(a folded fp32 copy that agrees with the model on x, logits of the model); None where there is none."""
    with frozen(model):
        wanted = model(x)
    try:
        twin = SearchTwin(model)
    except Exception as failure:  # copying and tracing run code of the user's
        if out_of_memory(failure):
            raise
        return None, wanted
    return (None if twin.parity(x) else twin), wanted


def _forms(twin: SearchTwin, x: Tensor) -> list[Classifier]:
    """What is faster than the twin, from the fastest on: packed with tiles, packed."""
    forms: list[Classifier] = []
    graph = twin.copied
    if x.dim() != 4 or x.device.type != "cpu" or not isinstance(graph, fx.GraphModule):
        return forms
    for plainer in (graph, tile(graph, x)):
        try:
            packed = pack(plainer, torch.float32)
        except RuntimeError:  # oneDNN refuses a layout
            packed = None
        forms.insert(0, _channels_last(packed or plainer))
    return forms


def _channels_last(network: nn.Module) -> Classifier:
    """The call of a network whose convolutions read and write channels-last."""
    return lambda x: network(x.contiguous(memory_format=torch.channels_last))


def _answers(form: Classifier, x: Tensor) -> Tensor | None:
    """form(x); None where an operator of this build refuses it."""
    try:
        return form(x)
    except Exception as failure:  # what the plain form can do, need not go here
        if out_of_memory(failure):
            raise
        return None


def tile(network: fx.GraphModule, x: Tensor) -> fx.GraphModule:
    """A copy of a graph with tiles in place of each chain Conv2d [-> ReLU [-> MaxPool2d of 2]] worth them.

    x: pixels [R, C, H, W], which give the shapes. All other modules are shared with `network`.
    """
    shapes = _Shapes(network)
    shapes.run(x)
    graph, places = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(network.graph, places))
    tiled, modules = fx.GraphModule(network, graph), dict(network.named_modules())
    for node in network.graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        layer, shape = modules[str(node.target)], shapes.seen.get(node.args[0], ())
        if isinstance(layer, nn.Conv2d) and worth_tiles(layer, shape):
            _replace(tiled, places[node], layer, shape, modules)
    graph.lint()
    tiled.recompile()
    return tiled


class _Shapes(fx.Interpreter):
    """What shape each node of a graph has: `seen`."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.seen: dict[object, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As of fx.Interpreter."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n] = tuple(value.shape)
        return value


def _replace(
    network: fx.GraphModule,
    node: fx.Node,
    conv: nn.Conv2d,
    shape: tuple[int, ...],
    modules: dict[str, nn.Module],
) -> None:
    """Put one tiled module in the place of a convolution and of the ReLU and pooling that follow it."""
    chain = [node]
    relu = only_reader(node)
    pool = None
    if relu is not None and is_relu(relu, modules):
        chain.append(relu)
        pool = only_reader(relu)
        if pool is not None and _halves(pool, modules):
            chain.append(pool)
    name = f"tiled_{len(network._modules)}"
    network.add_submodule(name, TiledConv(conv, shape, relu=len(chain) > 1, pool=len(chain) > 2))
    with network.graph.inserting_before(node):
        call = network.graph.call_module(name, node.args)
    chain[-1].replace_all_uses_with(call)
    for replaced in reversed(chain):
        network.graph.erase_node(replaced)


def _halves(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node calls a MaxPool2d of 2 x 2 with stride 2, and nothing more."""
    if node.op != "call_module":
        return False
    pool = modules.get(str(node.target))
    if type(pool) is not nn.MaxPool2d or pool._forward_hooks or pool._forward_pre_hooks:
        return False
    halves = pool.kernel_size in (2, (2, 2)) and pool.stride in (2, (2, 2))
    return halves and pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1)) and not pool.ceil_mode
