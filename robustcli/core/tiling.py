"""Forms of a traced fp32 network that are faster on a CPU: packed weights, tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustcli.core.packed import is_relu, only_reader, pack
from robustcli.core.tiled import TiledConv, worth_tiles
from robustcli.core.tiled_slope import TiledSlope, worth_slopes


def lighter(network: fx.GraphModule, x: Tensor) -> Iterator[fx.GraphModule]:
    """Forms of a network for passes without a gradient, from the fastest on: packed with tiles, packed.

    They hold copies of the weights of this moment, and share all other modules. x: pixels [R, C, H, W], which
    give the shapes.
    """
    tiled = tile(network, x[:2])
    packed = _packed(tiled)
    if packed is not None:
        yield packed
    elif any(isinstance(module, TiledConv) for module in tiled.modules()):
        yield tiled
    packed = _packed(network)
    if packed is not None:
        yield packed


def sloped(network: fx.GraphModule, x: Tensor) -> fx.GraphModule | None:
    """A form of a network whose passes with a gradient for the images go by tiles; None without tiles.

    Weights get no gradient. It holds what `lighter` says; x: as there.
    """
    shapes, graph = _Shapes(network), fx.Graph()
    with torch.no_grad():
        shapes.run(x[:2])
    graph.output(graph.graph_copy(network.graph, {}))
    form, found = fx.GraphModule(network, graph), 0
    nodes, modules = list(network.graph.nodes), dict(network.named_modules())
    for old, new in zip(nodes, list(graph.nodes), strict=True):
        if old.op != "call_module" or len(old.args) != 1 or old.kwargs:
            continue
        layer, shape = modules[str(old.target)], shapes.of(old.args[0])
        if isinstance(layer, nn.Conv2d) and worth_slopes(layer, shape):
            found += 1
            form.add_submodule(f"sloped_{found}", TiledSlope(layer, shape))
            new.target = f"sloped_{found}"
    form.recompile()
    return form if found else None


def _packed(network: fx.GraphModule) -> fx.GraphModule | None:
    try:
        return pack(network, torch.float32)
    except RuntimeError:  # oneDNN refuses a layout
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
        layer, shape = modules[str(node.target)], shapes.of(node.args[0])
        if isinstance(layer, nn.Conv2d) and worth_tiles(layer, shape):
            _replace(tiled, places[node], layer, shape, modules)
    graph.lint()
    tiled.recompile()
    return tiled


class _Shapes(fx.Interpreter):
    """What shape each node of a graph has: `seen`."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.seen: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As of fx.Interpreter."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n] = tuple(value.shape)
        return value

    def of(self, argument: object) -> tuple[int, ...]:
        """The shape of an argument of a node; () of what is no tensor, as a list of them."""
        return self.seen.get(argument, ()) if isinstance(argument, fx.Node) else ()


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
