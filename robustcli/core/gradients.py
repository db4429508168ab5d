"""Gradients for models that hide theirs: values stay, the backward pass is replaced by a useful one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

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
_SPAN = 10.0  # of the logits that `rescaled` gives
_FLOOR = 1e-30  # smallest probability whose logarithm is taken


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
    row = tuple(range(1, u.dim())) or None  # a vector or a number is one row
    v = 5 * u / u.detach().abs().mean(row, keepdim=True).clamp_min(1e-12)
    return v / (1 + v.abs())


def straight_through(model: Classifier) -> Classifier:
    """Value model(x), gradient of the model with smooth functions in place of its steps.

    This is BPDA without knowing the defence. While the model runs, piecewise-constant operations of torch get
    a gradient. In the backward pass
        rounding, casts to integers and floor division are the number or the quotient itself;
        sign(u) is v / (1 + |v|), v = 5 u / mean |u|;
        a comparison u > t, used as a number or by `torch.where` between constants, is half of sign(u - t);
        a one-hot vector of an argmax is what the argmax was taken of.
    What is computed from integers among them has a gradient, too. Not seen are operations outside torch,
    `detach`, `no_grad`, custom autograd functions, scripted or compiled code, and tables indexed by integers.

    Args:
        model: pixels [B, C, H, W] -> logits [B, K].

    Source: Athalye et al., ICML 2018, arXiv:1802.00420, section 4.1; the sign's gradient: Bengio et al.,
    2013, arXiv:1308.3432.
    """

    def run(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return model(x)
        with _StraightThrough():
            return model(x)

    return run


def rescaled(model: Classifier) -> Classifier:
    """z / s per row with s = (max z - min z) / 10, z the model's logits; s gets no gradient.

    So cross-entropy has a gradient at any scale of the logits: in float32 it is exactly 0 beyond a lead of
    17, its gradient beyond 104. Rows that are probabilities p (in [0, 1], of sum 1) become log p first, with
    p >= 1e-30. The order of the classes is kept, up to ties.

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
    """bool [B]: the rows of z [B, K] that are probabilities, not logits.

    They lie in [0, 1], sum to 1 within 1e-5, and are no one-hot vector.
    """
    inside = (z >= 0) & (z <= 1)
    return inside.all(1) & ((z.sum(1) - 1).abs() < 1e-5) & ((z > 0) & (z < 1)).any(1)


class _Call(NamedTuple):
    """One intercepted call of torch; `known` are its positional arguments, or what stands for them."""

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    known: list[Any]
    kwargs: dict[str, Any]


class _StraightThrough(TorchFunctionMode):
    """Intercepts torch calls and gives piecewise-constant ones a gradient.

    An integer or bool result has a float shadow: the same number, with a gradient. So has what
    is computed from it.
    """

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
        call = _Call(func, name, args, [self._shadow(arg) for arg in args], kwargs)
        surrogate = self._surrogate(call)  # before func, which may work in place
        value = func(*args, **kwargs)
        if not isinstance(value, Tensor):
            return value
        return self._replaced(call, value, self._after(call, value, surrogate))

    def _shadow(self, arg: Any) -> Any:
        """What stands for an argument: the shadow of an integer tensor, also inside a list, or itself."""
        if isinstance(arg, (list, tuple)) and any(id(part) in self._shadows for part in arg):
            return [self._shadow(part) for part in arg]
        if isinstance(arg, Tensor) and id(arg) in self._shadows:
            return self._shadows[id(arg)][1]
        return arg

    def _surrogate(self, call: _Call) -> Tensor | None:
        """What to differentiate in place of the call; None where its own gradient will do."""
        u, name, two = call.known[0], call.name, len(call.known) > 1
        base = name if name.startswith("__") else name.rstrip("_")
        if isinstance(u, Tensor) and u.is_floating_point():
            if base in _ROUND:
                return u.clone()
            if base in _SIGN:
                return _soft_sign(u)
            if two and base in _UP | _DOWN:
                return 0.5 * _soft_sign(_lead(base, u, call.known[1]))
            rounds = base in {"div", "divide"} and call.kwargs.get("rounding_mode")
            if two and (rounds or base in _QUOTIENT):
                return _quotient(name, u, call.known[1])
        return self._followed(call)

    def _followed(self, call: _Call) -> Tensor | None:
        """The call on shadows; None where no argument has one, or the call cannot take it (bits, indices)."""
        func, name, args, known, kwargs = call
        named = {key: self._shadow(item) for key, item in kwargs.items()}
        pairs = [*zip(args, known, strict=True), *((kwargs[key], item) for key, item in named.items())]
        if all(given is standing for given, standing in pairs):
            return None
        flag = isinstance(args[0], Tensor) and args[0].dtype == torch.bool
        if flag and name == "where" and len(args) == 3:
            if any(isinstance(branch, Tensor) and branch.requires_grad for branch in args[1:]):
                return None
            return cast(Tensor, known[2] + known[0] * (known[1] - known[2]))
        if flag and name in _NOT:
            return cast(Tensor, 1 - known[0])
        if isinstance(known[0], Tensor) and name.endswith("_") and not name.endswith("__"):
            known = [known[0].clone(), *known[1:]]
        try:
            result = func(*known, **named)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return None
        return result if isinstance(result, Tensor) else None

    def _after(self, call: _Call, value: Tensor, surrogate: Tensor | None) -> Tensor | None:
        """The surrogate, now that the value is known: casts and choices by an argmax have their own."""
        if call.name in _CAST and not (value.is_floating_point() and call.known[0] is call.args[0]):
            shadow: Tensor = call.known[0].to(value.device)
            return shadow
        if call.name == "argmax":
            self._choices[id(value)] = value, call.known[0]
        if call.name in _CHOICE:
            scores = (self._choices[id(arg)][1] for arg in call.args if id(arg) in self._choices)
            return next(scores, surrogate)
        return surrogate

    def _replaced(self, call: _Call, value: Tensor, surrogate: Tensor | None) -> Tensor:
        """The value with the gradient of the surrogate, if that fits; an integer value gets a shadow."""
        if surrogate is None or surrogate.shape != value.shape or not surrogate.requires_grad:
            return value
        if not value.is_floating_point():
            self._shadows[id(value)] = value, _pass(surrogate, value.to(surrogate.dtype))
            return value
        passed = _pass(surrogate, value)
        in_place = value is call.args[0] and call.name not in _CHOICE
        if not in_place:
            return passed
        if not value.requires_grad:  # never a graph into a buffer
            return value
        return value.copy_(passed)


def _lead(base: str, u: Tensor, other: Tensor) -> Tensor:
    """By how much the comparison `base` of u with `other`, a tensor or a number, holds: > 0 where it does."""
    if base == "heaviside":
        return u
    if base in _DOWN:
        return other - u
    return u - other


def _quotient(name: str, u: Tensor, other: Tensor) -> Tensor:
    """What a floor division of u and `other`, a tensor or a number, rounds."""
    if name == "__rfloordiv__":
        return other / u
    return u / other
