"""Black boxes: models that answer with scores or with labels, and never with a gradient.

`BlackBox` is what another file fills with its way of asking; `LabelsOnly` hides all but the label of any
model. `check_served` refuses, before any work, attacks that such a model cannot serve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.core.oracle import one_hot
from robustcli.core.types import declares_draws, offers, reject_of
from robustcli.errors import UsageError
from robustcli.facts import AttackFacts, Needs

Answers = Literal["scores", "labels"]
_ORDER: tuple[Needs, ...] = ("decisions", "scores", "gradient")
_SAID: dict[Needs, str] = {"decisions": "labels alone", "scores": "scores, without a gradient"}
_CODE = "E-BLACK-BOX"


class Wanted(Protocol):
    """What `check_served` reads of an attack: its name in tables, its registered name, and what it needs."""

    @property
    def label(self) -> str:
        """Name in tables."""

    @property
    def name(self) -> str:
        """Registered name; something else for an attack of the user's own."""

    @property
    def needs(self) -> Needs:
        """What it asks the model for."""


class BlackBox(nn.Module):
    """Pixels float [B, C, H, W] in [0, 1] -> logits float [B, K], or one-hot rows of labels; no gradient.

    A subclass fills in `ask`. There is no copy of it: searches in low precision, the diagnosis of gradients
    and batches that are filled up leave it alone. Each row that it gets is one query.

    Args:
        answers: "scores" or "labels".

    Raises:
        UsageError E-BLACK-BOX: a gradient is asked for. Others as `ask` raises them.
    """

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers, self.training = answers, False
        self._asked = Counter[str]()  # `untouched.as_before` takes back numbers, and leaves this

    @property
    def queries(self) -> int:
        """How many rows were asked so far, by whomever: by attacks, by the judge, by a first look."""
        return self._asked["rows"]

    def ask(self, x: Tensor) -> Tensor:
        """Logits [B, K] for "scores", one-hot rows for "labels", of pixels x [B, C, H, W] in [0, 1]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            most = offers(self)
            what = f"a gradient was asked of a model that answers with {_SAID[most]}"
            raise UsageError(what, hint=_hint(most, None), code=_CODE)
        self._asked["rows"] += len(x)
        with torch.no_grad():
            return self.ask(x.detach()).to(x.device, x.dtype)


class LabelsOnly(BlackBox):
    """Any model pixels -> logits [B, K] (or [B, K + 1] of a guarded one), of which labels alone are seen.

    A row whose logits hold NaN or Inf has no label, and stays as it is: the judge counts it as broken.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__("labels")
        self.model, self.reject, self.randomised = model, reject_of(model), declares_draws(model)
        self.classes: tuple[str, ...] | None = getattr(model, "classes", None)

    def ask(self, x: Tensor) -> Tensor:
        return one_hot(self.model(x))


class LabelFunction(BlackBox):
    """A Python function, pixels float [B, C, H, W] in [0, 1] -> B class numbers, as a model of labels.

    Args:
        fn: the function; a tensor, an array or a list is taken.
        num_classes: K.

    Raises UsageError E-COMMAND for another number of answers, or one that is no class.
    """

    def __init__(self, fn: Callable[[Tensor], Any], num_classes: int) -> None:
        super().__init__("labels")
        self.fn, self.num_classes = fn, num_classes

    def ask(self, x: Tensor) -> Tensor:
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        answer = self.fn(x)
        try:
            labels = torch.as_tensor(answer).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise _bad(f"{name} answered with {type(answer).__name__}, not with class numbers") from error
        if labels.shape != (len(x),) or labels.is_floating_point() or labels.is_complex():
            got = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
            raise _bad(f"{name} answered {got} for {len(x)} images, not one class number each")
        return hot(labels.long(), self.num_classes, name)


def labels_only(model: nn.Module | Callable[[Tensor], object], num_classes: int | None = None) -> nn.Module:
    """A model of which labels alone are seen: no gradient and no score can be used by accident.

    model: a network, pixels [B, C, H, W] in [0, 1] -> logits [B, K]; or a function of the same pixels that
    answers with B class numbers, of `num_classes` classes. Raises UsageError for a function without that.
    """
    if isinstance(model, nn.Module):
        return LabelsOnly(model)
    if num_classes is None:
        raise UsageError("labels_only of a function", hint="give num_classes", code="E-MODEL")
    return LabelFunction(model, num_classes)


def hot(labels: Tensor, num_classes: int, name: str) -> Tensor:
    """One-hot rows float32 [B, K]. Raises UsageError for a label that is no class."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise _bad(
            f"{name} answered class {int(wrong[0])}, and the data have 0 to {num_classes - 1}",
            hint="number the classes as the data does",
        )
    return nn.functional.one_hot(labels, num_classes).float()


def _bad(what: str, hint: str = "") -> UsageError:
    return UsageError(what, where="model", hint=hint, code="E-COMMAND")


def queries_of(model: nn.Module, elsewhere: int) -> dict[str, int]:
    """`queries` of a record: how many images a black box was asked about; {} for any other model.

    elsewhere: how many of them in other processes, or before a resume.
    """
    return {"queries": model.queries + elsewhere} if isinstance(model, BlackBox) else {}


def check_served(
    model: nn.Module,
    attacks: Iterable[Wanted],
    norm: str,
    *,
    target: str | int | None = None,
    where: str = "attacks",
) -> None:
    """Raises UsageError E-BLACK-BOX for attacks that need more than the model answers; it names some that do.

    An attack of the user's own does not say what it needs: the model refuses when it asks for too much.

    attacks: what is to run. norm: of the ball. target: of the attacks; the least likely class of a model of
    labels is refused, too, since nothing says which that is. where: who brought the model or the attacks.
    """
    most = offers(model)
    if most == "gradient":
        return
    if most == "decisions" and target == "least-likely":
        raise UsageError(
            f"the model answers with {_SAID[most]}, which do not say which class is the least likely",
            where="target",
            hint="target: random, or the number of a class",
            code=_CODE,
        )
    too_much = [call for call in attacks if _known(call) and _ORDER.index(call.needs) > _ORDER.index(most)]
    if too_much:
        named = ", ".join(f"{call.label} (needs {call.needs})" for call in too_much)
        raise UsageError(
            f"the model answers with {_SAID[most]}, which does not serve {named}",
            where=where,
            hint=_hint(most, norm),
            code=_CODE,
        )


def _known(call: Wanted) -> bool:
    """Whether the attack says what it needs: one that is registered, or another library's class."""
    return call.name in registry.attacks or call.name.startswith("torchattacks:")


def served(most: Needs, norm: str | None) -> list[str]:
    """Names of the registered attacks for this norm (None: any) that need no more than `most`."""
    return [name for name in registry.attacks.names() if _fits(registry.attacks.get(name).facts, most, norm)]


def _fits(facts: AttackFacts, most: Needs, norm: str | None) -> bool:
    return _ORDER.index(facts.needs) <= _ORDER.index(most) and (norm is None or norm in facts.norms)


def _hint(most: Needs, norm: str | None) -> str:
    return f"attacks that it serves: {', '.join(served(most, norm))}"
