"""Useful gradients for models that hide theirs.

`straight_through` keeps the logits and changes the backward pass. `rescaled` changes the scale of the logits.
"""

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
    """Forward: `value`. Backward: the gradient goes to `surrogate`, a tensor of the same shape."""

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, value: Tensor) -> Tensor:
        ctx.dtype = surrogate.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype), None


def _pass(surrogate: Tensor, value: Tensor) -> Tensor:
    """A tensor with the numbers of `value` and the gradient of `surrogate`, both of one shape."""
    passed: Tensor = _Pass.apply(surrogate, value.detach())
    return passed


def _soft_sign(u: Tensor) -> Tensor:
    """v / (1 + |v|) with v = 5 u / mean |u| per row: steep where the sign is about to change, never flat."""
    row = tuple(range(1, u.dim())) or None  # a vector or a number is one row
    v = 5 * u / u.detach().abs().mean(row, keepdim=True).clamp_min(1e-12)
    return v / (1 + v.abs())


def straight_through(model: Classifier) -> Classifier:
    """x -> model(x), whose backward pass puts smooth functions in place of the model's steps.

    This is BPDA without knowing the defence. While the model runs, calls of torch are intercepted. The
    backward pass differentiates, in place of
        rounding, a cast to integers: the number itself;
        floor division: the quotient;
        sign(u): v / (1 + |v|) with v = 5 u / mean |u|;
        a comparison u > t, used as a number or by `torch.where` between constants: half of sign(u - t);
        a one-hot vector of an argmax: the scores of which the argmax was taken.
    What the model computes from such an integer or bool has a gradient, too.

    No gradient is given to operations outside torch, `detach`, `no_grad`, custom autograd functions, scripted
    or compiled code, and tables indexed by integers.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K].

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

    The span of each row becomes 10, so that cross-entropy has a gradient at any scale of the model's logits.
    In float32, cross-entropy is exactly 0 where the true class leads by more than 17. Its gradient is exactly
    0 beyond a lead of 104. A row of probabilities p, see `distribution_rows`, becomes log max(p, 1e-30)
    before it is scaled. The order of the classes is kept, up to ties. A row of equal or non-finite logits is
    not scaled.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits or probabilities [B, K].

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

    Such a row lies in [0, 1], sums to 1 within 1e-5, and is no one-hot vector.
    """
    inside = (z >= 0) & (z <= 1)
    return inside.all(1) & ((z.sum(1) - 1).abs() < 1e-5) & ((z > 0) & (z < 1)).any(1)


class _Call(NamedTuple):
    """One intercepted call of torch: func(*args, **kwargs), called `name`.

    `known` are the positional arguments with the shadow of each integer or bool tensor in its place.
    """

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    known: list[Any]
    kwargs: dict[str, Any]


class _StraightThrough(TorchFunctionMode):
    """Intercepts torch calls and gives piecewise-constant ones a gradient.

    torch gives an integer or bool tensor no gradient. Such a result therefore gets a shadow: a float tensor
    of the same numbers, with a gradient. A later call on the result is made on the shadow, too.
    """

    def __init__(self) -> None:
        super().__init__()
        # id -> (the tensor, held so that no other gets its id; its shadow, or the scores of an argmax)
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
        """The argument with a shadow in place of each tensor that has one, also inside a list or tuple."""
        if isinstance(arg, (list, tuple)) and any(id(part) in self._shadows for part in arg):
            return [self._shadow(part) for part in arg]
        if isinstance(arg, Tensor) and id(arg) in self._shadows:
            return self._shadows[id(arg)][1]
        return arg

    def _surrogate(self, call: _Call) -> Tensor | None:
        """The float tensor to differentiate in place of the call; None leaves the call its own gradient."""
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
        """The result of the call made on shadows.

        None where no argument has a shadow, and where the call takes no float (a bit operation, an index).
        """
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
        """The surrogate to use, once `value`, the result of the call, is known.

        A cast gets the shadow of its argument. A call that turns an argmax into a vector gets the scores of
        which the argmax was taken. Every other call keeps the surrogate it has.
        """
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
        """The result that the model sees: numbers of `value`, gradient of `surrogate`.

        An integer or bool value is returned as it is, and its shadow is stored. Without a surrogate of the
        same shape that has a gradient, the value is returned as it is.
        """
        if surrogate is None or surrogate.shape != value.shape or not surrogate.requires_grad:
            return value
        if not value.is_floating_point():
            self._shadows[id(value)] = value, _pass(surrogate, value.to(surrogate.dtype))
            return value
        passed = _pass(surrogate, value)
        in_place = value is call.args[0] and call.name not in _CHOICE
        if not in_place:
            return passed
        if not value.requires_grad:  # a buffer of the model must not get a graph
            return value
        return value.copy_(passed)


def _lead(base: str, u: Tensor, other: Tensor) -> Tensor:
    """u - other, or other - u for a comparison `base` that asks for "less": > 0 where it holds.

    `other` is a tensor or a number. heaviside compares u with 0.
    """
    if base == "heaviside":
        return u
    if base in _DOWN:
        return other - u
    return u - other


def _quotient(name: str, u: Tensor, other: Tensor) -> Tensor:
    """u / other, the quotient that a floor division rounds; other / u for the reversed operator."""
    if name == "__rfloordiv__":
        return other / u
    return u / other
