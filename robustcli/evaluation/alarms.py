"""Checks that raise alarms: signs that a robustness number must not be believed. See docs/alarms.md.

`evaluation.rules` has the alarms that count cases.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from robustcli.core.gradients import distribution_rows
from robustcli.core.modes import trained_modules
from robustcli.evaluation.rules import BLIND, CHANCE, RULES, SLOPE, STATE
from robustcli.records.alarm import Alarm

_WITHOUT_DLR = {2: "no DLR loss, attacks use the margin", 3: "no targeted DLR loss, attacks use z_t - z_y"}

# ---- the model's answers -----------------------------------------------------------------------------------


def state_digest(model: nn.Module) -> str:
    """SHA-256 over parameters, buffers and extra state, in hex: a change of the model shows in it."""
    digest = hashlib.sha256()
    for name, value in {**model.state_dict(), **dict(model.named_buffers())}.items():
        digest.update(name.encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Any) -> bytes:
    """The bytes of a tensor, or of the `repr` of anything else: a module's extra state may be any object."""
    if not isinstance(value, Tensor):
        return repr(value).encode()
    if not value.numel():
        return b""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def differing(logits: Tensor, again: Tensor, share: float) -> int:
    """How many rows of two passes [B, K] over the same images differ by more than share * max |logits|.

    The maximum is over all B rows. A difference of NaN counts as 0.
    """
    if not logits.numel():
        return 0
    scale = logits.nan_to_num().abs().max().clamp_min(1e-12)
    return int(((logits - again).nan_to_num().abs().amax(1) > share * scale).sum())


def output_counts(logits: Tensor, again: Tensor) -> dict[str, int]:
    """Alarm name -> rows concerned, from two forward passes [B, K] over the same clean images.

    softmax-output counts B or 0: outputs are called probabilities only where all rows are.
    """
    probabilities = distribution_rows(logits) | one_hot_rows(logits)
    all_are = logits.shape[1] > 1 and bool(probabilities.all())
    return {
        "non-finite-logits": int((~torch.isfinite(logits)).any(1).sum()),
        "random-forward": differing(logits, again, 1e-4),
        "softmax-output": all_are * len(logits),
    }


def check_model_output(
    logits: Tensor, again: Tensor, *, declared: bool = False, labels: bool = False
) -> list[Alarm]:
    """Alarms from two forward passes [B, K] over the same clean images.

    declared: whether the model says that each pass draws anew; then other logits are no alarm.
    labels: whether the model is a black box that answers with labels, whose rows are one-hot.
    """
    expected = {"random-forward": declared, "softmax-output": labels}
    alarms: list[Alarm] = []
    for name, count in output_counts(logits, again).items():
        if not expected.get(name):
            alarms += RULES[name].alarm(count, len(logits))
    return alarms


def one_hot_rows(logits: Tensor) -> Tensor:
    """bool [B]: the rows of logits [B, K] that are a single 1 among zeros."""
    return ((logits == 0) | (logits == 1)).all(1) & (logits.sum(1) == 1)


def trained_kinds(model: nn.Module) -> list[str]:
    """The kinds of modules that are in train mode and behave otherwise there, in order of their names.

    BatchNorm and Dropout do, and so does a module whose own forward reads `training`. A wrapper in train mode
    around a network in eval mode changes nothing.
    """
    return sorted({type(module).__name__ for module in trained_modules(model) if _modal(module)})


def _modal(module: nn.Module) -> bool:
    """Whether the module itself behaves otherwise in train mode."""
    if isinstance(module, (_BatchNorm, _DropoutNd)):
        return True
    if isinstance(module, torch.jit.ScriptModule):
        return issubclass(getattr(nn, module.original_name, nn.Module), (_BatchNorm, _DropoutNd))
    code = getattr(type(module).forward, "__code__", None)
    foreign = not type(module).__module__.startswith(("torch.", "robustcli."))
    return foreign and code is not None and "training" in code.co_names


def check_setup(classes: int, trained: Sequence[str]) -> list[Alarm]:
    """Alarms of level "note": what the user should know; they put no doubt on the number.

    Args:
        classes: K, of the model's logits.
        trained: see `trained_kinds`, of the model as it was handed over.
    """
    notes = []
    if classes < 4:
        lost = _WITHOUT_DLR[max(2, classes)]
        notes.append(Alarm("too-few-classes", "note", f"{classes} classes: {lost}", "nothing to do"))
    if trained:
        evidence = f"handed over in train mode ({', '.join(trained)}), measured in eval mode"
        notes.append(Alarm("train-mode", "note", evidence, "call model.eval() first"))
    return notes


@contextmanager
def autograd_calls() -> Iterator[list[str]]:
    """Yields a list, to which each call of torch.autograd.grad or .backward inside adds its name.

    Calls of other threads are not seen.
    """
    codes = {torch.autograd.grad.__code__, torch.autograd.backward.__code__}
    seen: list[str] = []

    def look(frame: Any, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code in codes:
            seen.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        _profile_again(before)


def _profile_again(before: Any) -> None:
    """Go on with the profiler that worked before: a function, or cProfile, which names itself."""
    if callable(before):
        sys.setprofile(before)
    elif before is not None:
        before.enable()


# ---- a finished search -------------------------------------------------------------------------------------


def check_search(
    zero_gradient_share: float, refused_rows: int, mutated: bool, broken_rows: int = 0
) -> list[Alarm]:
    """Alarms from a finished search.

    Args:
        zero_gradient_share: share of the gradients of all attacks that were 0 everywhere, in [0, 1].
        refused_rows: how many points left the ball or the pixel box.
        mutated: whether the digest of the model changed.
        broken_rows: how many rows of logits held NaN or Inf.
    """
    alarms = []
    if zero_gradient_share > 0.05:
        evidence = f"{zero_gradient_share:.1%} of gradient answers were exactly zero"
        alarms.append(Alarm("zero-gradient", "suspect", evidence, SLOPE))
    if refused_rows:
        evidence = f"{refused_rows} points left the ball or the pixel box and were not counted"
        alarms.append(Alarm("outside-ball", "suspect", evidence, "report it: the attack is wrong"))
    if broken_rows:
        alarms += RULES["non-finite-logits"].alarm(broken_rows, broken_rows, " while they were attacked")
    if mutated:
        evidence = "parameters or buffers changed while they were measured"
        alarms.append(Alarm("model-mutated", "invalid", evidence, STATE))
    return alarms


def with_new(alarms: Sequence[Alarm], more: Sequence[Alarm]) -> list[Alarm]:
    """`alarms`, followed by those of `more` whose name is not in `alarms`."""
    known = {alarm.name for alarm in alarms}
    return [*alarms, *(alarm for alarm in more if alarm.name not in known)]


def below_chance(right: int, n: int, classes: int) -> list[Alarm]:
    """`below-chance`, where P(Binomial(n, 1 / classes) <= right) < CHANCE.

    Guessing is right on 1 of K images. Fewer right answers say that labels and logits do not mean the same:
    another order of the classes, say.

    Args:
        right: clean images that the model is right on.
        n: samples measured.
        classes: K, of the model's logits.
    """
    from scipy.special import bdtr  # late: torch alone is needed to measure

    if classes < 2 or not n or bdtr(right, n, 1 / classes) >= CHANCE:
        return []
    evidence = f"right on {right} of {n} clean images, and guessing is right on 1 of {classes}"
    remedy = "compare the order of the classes (data.classes states it), and what normalisation it expects"
    return [Alarm("below-chance", "suspect", evidence, remedy)]


def final_checks(stages: Mapping[str, int], needs: Mapping[str, str], n: int) -> list[Alarm]:
    """`black-box-beats-white-box`, where stages without gradients break what a gradient stage left.

    They must break 2 samples at least, and more than 0.2 % of n, counted from the last gradient stage before
    them. The first stage at which that is so is named. [] where there is none.

    Args:
        stages: label -> samples still right after this stage and all before it, in the order they ran.
        needs: label -> gradient, scores, decisions or transfer.
        n: samples measured.

    Source: the check of AutoAttack, Croce & Hein, ICML 2020, arXiv:2003.01690.
    """
    left: int | None = None
    for label, standing in stages.items():
        if needs.get(label) == "gradient":
            left = standing
        elif left is not None and left - standing >= 2 and left - standing > 0.002 * n:
            evidence = f"{label} broke {left - standing} of the {left} images that white-box attacks left"
            return [Alarm("black-box-beats-white-box", "suspect", evidence, BLIND)]
    return []
