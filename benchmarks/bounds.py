"""Bounds beside auto_LiRPA's, and CROWN over a batch beside one image at a time.

    python benchmarks/bounds.py batch                               # needs nothing but robustcli
    python benchmarks/bounds.py ours MODELS.py:FACTORY --weights W.npz --images I.npz --out ours.npz
    PEER/bin/python benchmarks/bounds.py theirs MODELS.py:FACTORY ... --peer CHECKOUT --out theirs.npz
    python benchmarks/bounds.py compare ours.npz theirs.npz

`ours` and `theirs` bound all logits of the first --n images (array `x` of I.npz, uint8) over the linf ball
--eps cut by [0, 1]: plain formulas in float32, no widening, no intersection of box and backward bound, the
same slopes. Each image is bounded alone: of a batch auto_LiRPA bounds in each image the neurons that are
undecided in any of them. `theirs` runs in an environment of its own: auto_LiRPA needs an older torch. W.npz
has one array per key of the state dict. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.utils.fusion
from torch import Tensor, nn

METHODS = ("IBP", "CROWN-IBP", "CROWN")


def loaded(spec: str, weights: Path) -> nn.Module:
    """The network that FILE.py:FACTORY builds, with these weights, in eval mode."""
    path, _, factory = spec.partition(":")
    found = importlib.util.spec_from_file_location("models_of_benchmark", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    net: nn.Module = getattr(module, factory)()
    arrays = np.load(weights)
    net.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return net.eval()


def folded(net: nn.Module) -> nn.Sequential:
    """The same network with each BatchNorm of a Sequential folded into the convolution before it."""
    layers: list[nn.Module] = []
    for layer in net.children():
        if isinstance(layer, nn.BatchNorm2d):
            conv = layers.pop()
            assert isinstance(conv, nn.Conv2d)
            layer = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, layer)
        layers.append(layer)
    return nn.Sequential(*layers).eval()


def images(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, and the ends of the box around them."""
    x = torch.from_numpy(np.load(options.images)["x"][: options.n]).float() / 255
    return x, (x - options.eps).clamp(0, 1), (x + options.eps).clamp(0, 1)


def our_bounds(net: nn.Module, lower: Tensor, upper: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Plain bounds of all logits, as auto_LiRPA computes them."""
    from robustcli.core.bounds import interval, trace
    from robustcli.core.bounds.backward import Passes
    from robustcli.core.bounds.margins import bounded
    from robustcli.core.bounds.region import Region
    from robustcli.core.bounds.tighten import backward_bounds

    program = trace(net, tuple(lower.shape[1:]))
    if method == "IBP":
        return interval(program, lower, upper, sound=False)
    area = Region(lower, upper, sound=False)
    frame, _ = bounded(program, area, inner=method == "CROWN", sound=False, both=False)
    rows, places = torch.ones(len(lower), program.classes).nonzero(as_tuple=True)
    low, high = backward_bounds(Passes(frame, area, sound=False), program.output, rows, places)
    return low.reshape(len(lower), -1), high.reshape(len(lower), -1)


def their_bounds(
    net: nn.Module, lower: Tensor, upper: Tensor, method: str, mode: str
) -> tuple[Tensor, Tensor]:
    """The same by auto_LiRPA, with its default options but for `mode`, how it holds coefficients."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm  # type: ignore[import-not-found]

    bounded = BoundedModule(net, lower, bound_opts={"conv_mode": mode})
    box = PerturbationLpNorm(norm=np.inf, x_L=lower, x_U=upper)
    low, high = bounded.compute_bounds(x=(BoundedTensor(lower, box),), method=method)
    return low, high


def measured(options: argparse.Namespace) -> None:
    """Bounds and seconds of one side, written to --out."""
    if options.peer:
        sys.path.insert(0, str(options.peer))
    net, (x, lower, upper) = loaded(options.model, options.weights), images(options)
    if options.fold:  # auto_LiRPA's patches end with a shape error behind a normalisation
        first, net = next(net.children()), folded(net)
        if not isinstance(first, nn.Conv2d):
            lower, upper, net = first(lower), first(upper), net[1:]
    kept: dict[str, Any] = {"versions": f"torch {torch.__version__}", "x": x.numpy()}
    if options.peer:
        import auto_LiRPA

        kept["versions"] += f", auto_LiRPA {auto_LiRPA.__version__}"
    bound: Any = our_bounds
    if options.peer:
        bound = functools.partial(their_bounds, mode=options.conv_mode)
    with torch.no_grad():
        for method in options.methods:
            start, found = time.process_time(), []
            for one in range(len(x)):
                found.append(torch.stack(bound(net, lower[one : one + 1], upper[one : one + 1], method)))
            seconds, ends = (time.process_time() - start) / len(x), torch.cat(found, 1)
            kept |= {method: ends.numpy(), f"{method} s": seconds}
            width = float((ends[1] - ends[0]).mean())
            print(f"{method}: {seconds:.3f} s an image, mean width {width:.5g}", flush=True)
            np.savez(options.out, **kept)


def compare(options: argparse.Namespace) -> None:
    """The table: the largest difference as a share of the bound, and of the largest bound of its image."""
    ours, theirs = (np.load(path) for path in (options.ours, options.theirs))
    assert np.array_equal(ours["x"], theirs["x"]), "other images"
    print(f"ours: {ours['versions']}; theirs: {theirs['versions']}; {len(ours['x'])} images")
    print("| bounds | mean width | largest difference | of the largest of its image | s an image | theirs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for method in METHODS:
        if method not in ours.files or method not in theirs.files:
            continue
        a, b = ours[method], theirs[method]
        gap = np.abs(a - b)
        each = float((gap / np.abs(b).clip(1e-30)).max())
        whole = float((gap / np.abs(b).max((0, 2), keepdims=True)).max())
        seconds = f"{float(ours[f'{method} s']):.2f} | {float(theirs[f'{method} s']):.2f}"
        print(f"| {method} | {float((a[1] - a[0]).mean()):.4g} | {each:.1e} | {whole:.1e} | {seconds} |")


def rows_of(program: Any, x: Tensor, ball: Any) -> int:
    """Backward bounds that CROWN computes for one image: two for each undecided neuron, one a margin."""
    from robustcli.core.bounds import tighten
    from robustcli.core.bounds.margins import bounded
    from robustcli.core.bounds.region import region

    asked, bound = 0, tighten.backward_bounds

    def counted(passes: Any, node: int, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal asked
        asked += 2 * len(rows)
        return bound(passes, node, rows, places)

    tighten.backward_bounds = counted
    bounded(program, region(x, ball, sound=True), inner=True, sound=True)
    tighten.backward_bounds = bound
    return asked // len(x) + program.classes - 1


def batch(options: argparse.Namespace) -> None:
    """CROWN, sound, over a batch and over one image at a time; CPU seconds, best of --rounds, in turn."""
    from robustcli.core.bounds import margins, trace
    from robustcli.core.geometry import Ball
    from robustcli.models.build import build_model
    from robustcli.models.info import ModelInfo

    print("| network | images | bounds an image | batch, s | one at a time, s | times |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, params, side, eps in (
        ("mlp", {"hidden": [64, 64]}, 8, 0.03),
        ("small_cnn", {"widths": [8, 16]}, 8, 0.005),
        ("small_cnn", {"widths": [8, 16]}, 8, 0.02),
        ("lenet", {"widths": [8, 16], "hidden": [64]}, 8, 0.02),
    ):
        net = build_model(name, params, ModelInfo(10, 1, side, (0.5,), (0.5,)), seed=0).eval()
        x = torch.rand((options.n, 1, side, side), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            y = net(x).argmax(1)
        program, ball, best = trace(net, (1, side, side)), Ball("linf", eps), [float("inf")] * 2
        for _ in range(options.rounds):
            for kind, size in enumerate((options.n, 1)):
                start = time.process_time()
                for rows in torch.arange(options.n).split(size):
                    margins(program, x[rows], y[rows], ball, method=options.method)
                best[kind] = min(best[kind], time.process_time() - start)
        asked, times = rows_of(program, x, ball), best[1] / best[0]
        title = f"{name} {params}, 1x{side}x{side}, eps {eps} | {options.n} | {asked}"
        print(f"| {title} | {best[0]:.2f} | {best[1]:.2f} | {times:.1f} |", flush=True)


def main() -> None:
    """Parse, and run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name in ("ours", "theirs"):
        one = commands.add_parser(name)
        one.add_argument("model", help="FILE.py:FACTORY")
        one.add_argument("--weights", type=Path, required=True)
        one.add_argument("--images", type=Path, required=True)
        one.add_argument("--out", type=Path, required=True)
        one.add_argument("--n", type=int, default=4)
        one.add_argument("--eps", type=float, default=1 / 255)
        one.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
        one.add_argument("--peer", type=Path, required=name == "theirs", help="a checkout of auto_LiRPA")
        one.add_argument("--conv-mode", default="patches", help="of auto_LiRPA: patches or matrix")
        one.add_argument(
            "--fold",
            action="store_true",
            help="BatchNorm into convolutions, normalisation into the box",
        )
        one.set_defaults(run=measured)
    one = commands.add_parser("compare")
    one.add_argument("ours", type=Path)
    one.add_argument("theirs", type=Path)
    one.set_defaults(run=compare)
    one = commands.add_parser("batch")
    one.add_argument("--n", type=int, default=32)
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--method", default="crown")
    one.set_defaults(run=batch)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.run(options)


if __name__ == "__main__":
    main()
