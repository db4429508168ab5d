"""Gradients for models that hide theirs: the forward pass keeps its values, the backward pass is replaced by a useful one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustcli.core.types import Classifier

_ROUND = {"round", "floor", "ceil", "trunc", "fix"}
_SIGN = {"sign", "sgn"}
_UP = {"gt", "ge", "greater", "greater_equal", "heaviside"}  # 0 below, 1 above
_DOWN = {"lt", "le", "less", "less_equal"}
_QUOTIENT = {"floor_divide", "__floordiv__", "__rfloordiv__", "floor_divide_", "__ifloordiv__"}
_CAST = {"int", "long", "short", "byte", "char", "to", "type", "type_as"}
_CHOICE = {"one_hot", "scatter", "scatter_", "__getitem__", "embedding"}  # an argmax becomes a vector again
_NOT = {"__invert__", "bitwise_not", "logical_not"}
_WRITES = {"__setitem__", "__set__", "requires_grad_"}  # must not run twice
_SPAN = 10.0
_FLOOR = 1e-30


class _Pass(torch.autograd.Function):
    """The value of one tensor with the gradient of another of the same shape."""

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, value: Tensor) -> Tensor:
        ctx.dtype = surrogate.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype), None


def _pass(surrogate: Tensor, value: Tensor) -> Tensor:
    passed: Tensor = _Pass.apply(surrogate, value.detach())
    return passed


def _soft_sign(u: Tensor) -> Tensor:
    """v / (1 + |v|) with v = 5 u / mean |u| per row: steep where the sign is about to change, never flat."""
    size = u.detach().abs()
    size = size.mean(tuple(range(1, u.dim())), keepdim=True) if u.dim() > 1 else size.mean()
    v = 5 * u / size.clamp_min(1e-12)
    return v / (1 + v.abs())


def straight_through(model: Classifier) -> Classifier:
    """Value model(x); gradient of model with round(u) ~ u, int(u) ~ u, sign(u) ~ v / (1 + |v|), v = 5 u / mean |u|, 1[u > t] ~ sign(u - t) / 2.

    BPDA without knowing the defence: while the model runs, piecewise-constant operations of torch (rounding, signs, floor
    division, integer casts and what is computed from them, comparisons used as numbers or in `torch.where` between constants,
    one-hot vectors of an argmax) get a gradient. Not seen: operations outside torch, `detach`, `no_grad`, custom autograd
    functions, scripted or compiled code, tables indexed by integers.

    Args:
        model: pixels [B, C, H, W] -> logits [B, K].

    Source: Athalye et al., ICML 2018, arXiv:1802.00420, section 4.1; the sign's gradient: Bengio et al., 2013, arXiv:1308.3432.
    """

    def run(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return model(x)
        with _StraightThrough():
            return model(x)

    return run


def backward_through(model: Classifier, surrogate: Classifier) -> Classifier:
    """Value model(x), gradient of surrogate(x): BPDA with a substitute of the caller's own, both [B, K].

    For a classifier f behind a purifier p: `backward_through(lambda x: f(p(x)), f)` takes p for the identity.
    Source: Athalye et al., ICML 2018, arXiv:1802.00420, section 4.1.
    """

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            value = model(x)
        return _pass(surrogate(x), value) if torch.is_grad_enabled() else value

    return run


def rescaled(model: Classifier) -> Classifier:
    """z / s per row with s = (max z - min z) / 10, no gradient through s: cross-entropy has gradients at any scale of the logits.

    Rows that are probabilities (in [0, 1], sum 1) become log p first, p >= 1e-30. The order of the classes is kept, up to ties.
    float32 cross-entropy is exactly 0 beyond a lead of 17, its gradient beyond 104.

    Args:
        model: pixels [B, C, H, W] -> logits or probabilities [B, K].

    Source: Carlini & Wagner, 2016, arXiv:1607.04311 (scaled logits undo defensive distillation).
    """

    def run(x: Tensor) -> Tensor:
        z = model(x)
        if not z.numel():
            return z
        z = torch.where(distribution_rows(z)[:, None], z.clamp_min(_FLOOR).log(), z)
        span = (z.amax(1, keepdim=True) - z.amin(1, keepdim=True)).detach() / _SPAN
        return z / torch.where((span > 0) & torch.isfinite(span), span, torch.ones_like(span))

    return run


def distribution_rows(z: Tensor) -> Tensor:
    """bool [B]: rows of z [B, K] in [0, 1] that sum to 1 within 1e-5 and are no one-hot vector: probabilities, not logits."""
    inside = (z >= 0) & (z <= 1)
    return inside.all(1) & ((z.sum(1) - 1).abs() < 1e-5) & ((z > 0) & (z < 1)).any(1)


class _StraightThrough(TorchFunctionMode):
    """Intercepts torch calls. Integer and bool results have a float shadow: the same number, with a gradient; so has what follows from them."""

    def __init__(self) -> None:
        super().__init__()
        # id -> (the tensor itself, so that nobody else gets its id; what stands for it)
        self._shadows: dict[int, tuple[Tensor, Tensor]] = {}
        self._choices: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), dict(kwargs or {})
        if not torch.is_grad_enabled() or not args or name == "__get__" or name in _WRITES or "out" in kwargs:
            return func(*args, **kwargs)
        known = [self._shadow(arg) for arg in args]
        surrogate = self._surrogate(func, name, args, known, kwargs)  # before func, which may work in place
        value = func(*args, **kwargs)
        if not isinstance(value, Tensor):
            return value
        if name in _CAST and not (value.is_floating_point() and known[0] is args[0]):
            surrogate = known[0].to(value.device)
        elif name == "argmax":
            self._choices[id(value)] = value, known[0]
        elif name in _CHOICE:
            surrogate = next(
                (self._choices[id(arg)][1] for arg in args if id(arg) in self._choices), surrogate
            )
        if surrogate is None or surrogate.shape != value.shape or not surrogate.requires_grad:
            return value
        if not value.is_floating_point():
            self._shadows[id(value)] = value, _pass(surrogate, value.to(surrogate.dtype))
            return value
        passed = _pass(surrogate, value)
        if value is not args[0] or name in _CHOICE:
            return passed
        return value.copy_(passed) if value.requires_grad else value  # never a graph into a buffer

    def _shadow(self, arg: Any) -> Any:
        """What stands for an argument: the shadow of an integer tensor, also inside a list, or the argument itself."""
        if isinstance(arg, (list, tuple)) and any(id(part) in self._shadows for part in arg):
            return [self._shadow(part) for part in arg]
        return self._shadows[id(arg)][1] if isinstance(arg, Tensor) and id(arg) in self._shadows else arg

    def _surrogate(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        known: list[Any],
        kwargs: dict[str, Any],
    ) -> Tensor | None:
        """What to differentiate in place of func(*args); None where its own gradient will do."""
        u, base = known[0], name if name.startswith("__") else name.rstrip("_")
        if isinstance(u, Tensor) and u.is_floating_point():
            if base in _ROUND:
                return u.clone()
            if base in _SIGN:
                return _soft_sign(u)
            if base in _UP | _DOWN and len(known) > 1:
                lead = u if base == "heaviside" else u - known[1] if base in _UP else known[1] - u
                return 0.5 * _soft_sign(lead)
            if len(known) > 1 and (
                base in _QUOTIENT or (base in {"div", "divide"} and kwargs.get("rounding_mode"))
            ):
                return cast(Tensor, known[1] / u if name == "__rfloordiv__" else u / known[1])
        return self._followed(func, name, args, known, kwargs)

    def _followed(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        known: list[Any],
        kwargs: dict[str, Any],
    ) -> Tensor | None:
        """func on shadows where an argument has one; None where there is no such thing (bit operations, indices)."""
        named = {key: self._shadow(item) for key, item in kwargs.items()}
        if all(a is b for a, b in zip(args, known, strict=True)) and all(
            kwargs[key] is item for key, item in named.items()
        ):
            return None
        flag = isinstance(args[0], Tensor) and args[0].dtype == torch.bool
        if flag and name == "where" and len(args) == 3:
            branches = [part for part in args[1:] if isinstance(part, Tensor) and part.requires_grad]
            return None if branches else cast(Tensor, known[2] + known[0] * (known[1] - known[2]))
        if flag and name in _NOT:
            return cast(Tensor, 1 - known[0])
        if isinstance(known[0], Tensor) and name.endswith("_") and not name.endswith("__"):
            known = [known[0].clone(), *known[1:]]
        try:
            found = func(*known, **named)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return None
        return found if isinstance(found, Tensor) else None
