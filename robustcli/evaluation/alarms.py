"""Signs that a robustness number must not be believed. Each is explained in docs/alarms.md."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from robustcli.core.gradients import distribution_rows

Level = Literal["note", "suspect", "invalid"]

#: A count raises its alarm when an honest model would reach it with less than this probability.
CHANCE = 0.01


@dataclass(frozen=True)
class Alarm:
    """One warning: a stable name, how bad it is ("note" leaves the reliability as it is), what was measured, and what to do."""

    name: str
    level: Level
    evidence: str
    remedy: str

    def to_json(self) -> dict[str, str]:
        """For the JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class Rule:
    """An alarm that counts: raised for `count` of `of` cases when P(Binomial(of, honest) >= count) < 1 %.

    honest: largest rate of an honest model. what: the cases, after "3 of 64 ". helps: extra stages that may break such a model.
    """

    name: str
    level: Level
    honest: float
    what: str
    remedy: str
    helps: tuple[str, ...] = ()

    def alarm(self, count: int, of: int, more: str = "") -> list[Alarm]:
        """The alarm, or nothing where chance explains the count."""
        return (
            [Alarm(self.name, self.level, f"{count} of {of} {self.what}{more}", self.remedy)]
            if too_many(count, of, self.honest)
            else []
        )


_SLOPE = "gradients lead nowhere here: read the number after the bpda and square stages, and give the model a differentiable surrogate"
_BLIND = "the white-box search is misled or too weak: read the number after the square stage as an upper bound, and attack through a surrogate"
_SCALE = "return plain logits; the rescaled stage searches with their span brought to 10"
_BATCH = "use running statistics in BatchNorm: a verdict must not depend on other images"
_DRAWS = "fix the seed or average inside the model; searched with gradients averaged over draws, judged by the majority of fresh draws"
_INNER = "attack the whole loop, and the classifier without it; read the number after the square stage"
_LOSS = "attack with the margin or DLR too; the rescaled stage searches cross-entropy on logits of span 10"
_BEYOND = "gradients inside the ball lead astray: report AutoAttack standard, which has a wide and a minimal-norm stage"
_STEPS = "use more steps and restarts, or AutoAttack: the number still falls with effort"
_NOISE = "return logits without the constant that drowns them; the square stage looks without gradients"

_ALL = (
    Rule(
        "non-finite-logits",
        "invalid",
        0,
        "images give NaN or Inf logits",
        "repair the model; no verdict is possible",
    ),
    Rule(
        "batch-dependent", "invalid", 0, "images get other logits when half of the batch is left out", _BATCH
    ),
    Rule(
        "model-mutated",
        "invalid",
        0,
        "buffers were written by forward passes in eval mode",
        "a forward in eval mode must not write state",
    ),
    Rule("random-forward", "suspect", 0, "images get other logits in another pass", _DRAWS, ("eot",)),
    Rule("softmax-output", "suspect", 0, "images give outputs in [0, 1] that sum to 1", _SCALE, ("rescale",)),
    Rule(
        "saturated-loss",
        "suspect",
        0.01,
        "images lead by so much that cross-entropy has no gradient in float32",
        _SCALE,
        ("rescale",),
    ),
    Rule(
        "loss-dependent",
        "suspect",
        0.15,
        "images fall to 20 steps on the margin and not to 60 on cross-entropy",
        _LOSS,
        ("rescale",),
    ),
    Rule(
        "zero-gradient",
        "suspect",
        0.01,
        "images have a margin whose gradient is exactly zero",
        _SLOPE,
        ("bpda", "square"),
    ),
    Rule(
        "non-finite-gradient",
        "suspect",
        0,
        "images have NaN or Inf in their gradient",
        _SLOPE,
        ("bpda", "square"),
    ),
    Rule(
        "exploding-gradient",
        "suspect",
        0.01,
        "gradients promise 1e6 times the span of the logits within eps",
        _SLOPE,
        ("bpda", "square"),
    ),
    Rule(
        "gradient-mismatch",
        "suspect",
        0.1,
        "images gain less than a tenth of what their gradient promises over eps / 32",
        _SLOPE,
        ("bpda", "square"),
    ),
    Rule(
        "survives-huge-eps",
        "suspect",
        0.01,
        "images stand though every pixel may take any value",
        _SLOPE,
        ("bpda", "square"),
    ),
    Rule(
        "float-noise",
        "suspect",
        0.01,
        "images have logits within 1000 units in the last place of each other",
        _NOISE,
        ("square",),
    ),
    Rule(
        "optimisation-at-inference",
        "suspect",
        0,
        "forward passes call autograd",
        _INNER,
        ("bpda", "square", "transfer"),
    ),
    Rule(
        "noise-beats-gradient",
        "suspect",
        0.005,
        "images fall to 10 random points and not to gradients",
        _BLIND,
        ("minimal", "square", "transfer"),
    ),
    Rule(
        "fgsm-beats-pgd",
        "suspect",
        0.5,
        "images on which FGSM and PGD-30 disagree fall to FGSM alone",
        _BLIND,
        ("minimal", "square", "transfer"),
    ),
    Rule(
        "black-box-beats-white-box",
        "suspect",
        0.005,
        "images fall to 150 queries of Square and not to gradients",
        _BLIND,
        ("minimal", "square", "transfer"),
    ),
    Rule(
        "minimal-beats-fixed",
        "suspect",
        0.1,
        "images that gradients in the ball left fall to a search from outside it",
        _BEYOND,
        ("minimal",),
    ),
    Rule("not-converged", "suspect", 0.05, "images fall only after step 30 of 60", _STEPS),
)
RULES: Mapping[str, Rule] = {rule.name: rule for rule in _ALL}


def too_many(count: int, of: int, honest: float) -> bool:
    """P(Binomial(of, honest) >= count) < 1 %. With honest = 0 a single case is too many; with honest = 1/2 this is McNemar's exact test, one-sided."""
    from scipy.special import bdtrc  # late: torch alone is needed to measure

    return count > 0 and bool(bdtrc(count - 1, of, honest) < CHANCE)


def reliability(alarms: Sequence[Alarm]) -> Literal["ok", "suspect", "invalid"]:
    """The worst level of all alarms; notes do not count."""
    levels = {alarm.level for alarm in alarms}
    return "invalid" if "invalid" in levels else "suspect" if "suspect" in levels else "ok"


def state_digest(model: nn.Module) -> str:
    """SHA-256 over parameters and buffers: an evaluation must not change the model it measures."""
    digest = hashlib.sha256()
    for name, tensor in {**model.state_dict(), **dict(model.named_buffers())}.items():
        digest.update(name.encode())
        if not isinstance(tensor, Tensor):  # a module's extra state
            digest.update(repr(tensor).encode())
            continue
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            if tensor.numel()
            else b""
        )
    return digest.hexdigest()


def differing(logits: Tensor, again: Tensor, share: float) -> int:
    """Rows of two passes [B, K] over the same images that differ by more than `share` of the largest logit."""
    scale = logits.nan_to_num().abs().max().clamp_min(1e-12) if logits.numel() else 1.0
    return int(((logits - again).nan_to_num().abs().amax(1) > share * scale).sum()) if logits.numel() else 0


def output_counts(logits: Tensor, again: Tensor) -> dict[str, int]:
    """Alarm name -> rows concerned, from two forward passes [B, K] over the same clean images."""
    shares = bool((distribution_rows(logits) | one_hot_rows(logits)).all()) and logits.shape[1] > 1
    return {
        "non-finite-logits": int((~torch.isfinite(logits)).any(1).sum()),
        "random-forward": differing(logits, again, 1e-4),
        "softmax-output": len(logits) if shares else 0,
    }


def check_model_output(logits: Tensor, again: Tensor) -> list[Alarm]:
    """Alarms from two forward passes [B, K] over the same clean images."""
    return [
        alarm
        for name, count in output_counts(logits, again).items()
        for alarm in RULES[name].alarm(count, len(logits))
    ]


def one_hot_rows(logits: Tensor) -> Tensor:
    """bool [B]: rows that hold one 1 and else 0."""
    return ((logits == 0) | (logits == 1)).all(1) & (logits.sum(1) == 1)


def check_setup(model: nn.Module, classes: int, was_training: bool) -> list[Alarm]:
    """Notes: what the user should know, while the number stands."""
    notes = []
    if classes < 4:
        lost = (
            "no DLR loss, attacks use the margin"
            if classes < 3
            else "no targeted DLR loss, attacks use z_t - z_y"
        )
        notes.append(Alarm("too-few-classes", "note", f"{classes} classes: {lost}", "nothing to do"))
    kinds = {
        type(module).__name__ for module in model.modules() if isinstance(module, (_BatchNorm, _DropoutNd))
    }
    if was_training and kinds:
        notes.append(
            Alarm(
                "train-mode",
                "note",
                f"handed over in train mode ({', '.join(sorted(kinds))}), measured in eval mode",
                "call model.eval() first",
            )
        )
    return notes


def check_search(
    zero_gradient_share: float, refused_rows: int, mutated: bool, broken_rows: int = 0
) -> list[Alarm]:
    """Alarms from a finished search: share of zero gradients, points outside the ball, whether the digest of the model changed, answers with NaN or Inf."""
    alarms = []
    if zero_gradient_share > 0.05:
        alarms.append(
            Alarm(
                "zero-gradient",
                "suspect",
                f"{zero_gradient_share:.1%} of gradient answers were exactly zero",
                _SLOPE,
            )
        )
    if refused_rows:
        evidence = f"{refused_rows} points left the ball or the pixel box and were not counted"
        alarms.append(Alarm("outside-ball", "suspect", evidence, "report it: the attack is wrong"))
    if broken_rows:
        alarms += RULES["non-finite-logits"].alarm(broken_rows, broken_rows, " while they were attacked")
    if mutated:
        alarms.append(
            Alarm(
                "model-mutated",
                "invalid",
                "parameters or buffers changed while they were measured",
                "a forward in eval mode must not write state",
            )
        )
    return alarms


def with_new(alarms: Sequence[Alarm], more: Sequence[Alarm]) -> list[Alarm]:
    """`alarms` and those of `more` whose name is not among them: of two findings by one name the first stands."""
    known = {alarm.name for alarm in alarms}
    return [*alarms, *(alarm for alarm in more if alarm.name not in known)]


def final_checks(stages: Mapping[str, int], needs: Mapping[str, str], n: int) -> list[Alarm]:
    """`black-box-beats-white-box` for a stage without gradients that lowers what white-box stages left by 2 samples and 0.2 % of n.

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
            return [
                Alarm(
                    "black-box-beats-white-box",
                    "suspect",
                    f"{label} broke {left - standing} of the {left} images that white-box attacks left",
                    _BLIND,
                )
            ]
    return []


@contextmanager
def autograd_calls() -> Iterator[list[str]]:
    """Names of the calls of torch.autograd.grad and .backward that this thread makes inside."""
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
        sys.setprofile(before)
