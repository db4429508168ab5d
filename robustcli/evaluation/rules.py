"""The alarms that count cases: how many an honest model may have, and what to do about more.

See docs/alarms.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robustcli.records.alarm import Alarm, Level

#: A count raises its alarm when an honest model would reach it with less than this probability.
CHANCE = 0.01


@dataclass(frozen=True)
class Rule:
    """An alarm, raised for `count` of `of` cases when P(Binomial(of, honest) >= count) < CHANCE.

    Args:
        name, level, remedy: fields of the alarm.
        honest: the largest share of such cases that an honest model has, in [0, 1].
        what: the words that follow "3 of 64 " in the evidence.
        helps: names of extra stages that may break a model with this alarm.
    """

    name: str
    level: Level
    honest: float
    what: str
    remedy: str
    helps: tuple[str, ...] = ()

    def alarm(self, count: int, of: int, more: str = "") -> list[Alarm]:
        """[the alarm], or [] where chance explains the count; more: words added to the evidence."""
        if not too_many(count, of, self.honest):
            return []
        return [Alarm(self.name, self.level, f"{count} of {of} {self.what}{more}", self.remedy)]


def too_many(count: int, of: int, honest: float) -> bool:
    """P(Binomial(of, honest) >= count) < CHANCE.

    With honest = 0 a single case is too many. With honest = 1/2 this is McNemar's exact test, one-sided.
    """
    from scipy.special import bdtrc  # late: torch alone is needed to measure

    return count > 0 and bool(bdtrc(count - 1, of, honest) < CHANCE)


# ---- what to do --------------------------------------------------------------------------------------------

SLOPE = (
    "gradients lead nowhere here: read the number after the bpda and square stages,"
    " and give the model a differentiable surrogate"
)
BLIND = (
    "the white-box search is misled or too weak: read the number after the square stage as an upper bound,"
    " and attack through a surrogate"
)
STATE = "a forward in eval mode must not write state"
_REPAIR = "repair the model; no verdict is possible"
_SCALE = "return plain logits; the rescaled stage searches with their span brought to 10"
_BATCH = "use running statistics in BatchNorm: a verdict must not depend on other images"
_DRAWS = (
    "fix the seed or average inside the model; searched with gradients averaged over draws,"
    " judged by the majority of fresh draws"
)
_INNER = "attack the whole loop, and the classifier without it; read the number after the square stage"
_LOSS = "attack with the margin or DLR too; the rescaled stage searches cross-entropy on logits of span 10"
_BEYOND = (
    "gradients inside the ball lead astray: report AutoAttack standard,"
    " which has a wide and a minimal-norm stage"
)
_STEPS = "use more steps and restarts, or AutoAttack: the number still falls with effort"
_NOISE = "return logits without the constant that drowns them; the square stage looks without gradients"

# ---- which extra stages may help ---------------------------------------------------------------------------

_RESCALED = ("rescale",)
_STEEP = ("bpda", "square")
_MISLED = ("minimal", "square", "transfer")

_ALL = (
    # the model's answers
    Rule("non-finite-logits", "invalid", 0, "images give NaN or Inf logits", _REPAIR),
    Rule(
        "batch-dependent", "invalid", 0, "images get other logits when half of the batch is left out", _BATCH
    ),
    Rule("model-mutated", "invalid", 0, "buffers were written by forward passes in eval mode", STATE),
    Rule("random-forward", "suspect", 0, "images get other logits in another pass", _DRAWS, ("eot",)),
    Rule("softmax-output", "suspect", 0, "images give outputs in [0, 1] that sum to 1", _SCALE, _RESCALED),
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
    # gradients
    Rule(
        "saturated-loss",
        "suspect",
        0.01,
        "images lead by so much that cross-entropy has no gradient in float32",
        _SCALE,
        _RESCALED,
    ),
    Rule(
        "zero-gradient",
        "suspect",
        0.01,
        "images have a margin whose gradient is exactly zero",
        SLOPE,
        _STEEP,
    ),
    Rule("non-finite-gradient", "suspect", 0, "images have NaN or Inf in their gradient", SLOPE, _STEEP),
    Rule(
        "exploding-gradient",
        "suspect",
        0.01,
        "gradients promise 1e6 times the span of the logits within eps",
        SLOPE,
        _STEEP,
    ),
    Rule(
        "gradient-mismatch",
        "suspect",
        0.1,
        "images gain less than a tenth of what their gradient promises over eps / 32",
        SLOPE,
        _STEEP,
    ),
    # attacks
    Rule(
        "loss-dependent",
        "suspect",
        0.15,
        "images fall to 20 steps on the margin and not to 60 on cross-entropy",
        _LOSS,
        _RESCALED,
    ),
    Rule(
        "survives-huge-eps",
        "suspect",
        0.01,
        "images stand though every pixel may take any value",
        SLOPE,
        _STEEP,
    ),
    Rule(
        "noise-beats-gradient",
        "suspect",
        0.005,
        "images fall to 10 random points and not to gradients",
        BLIND,
        _MISLED,
    ),
    Rule(
        "fgsm-beats-pgd",
        "suspect",
        0.5,
        "images on which FGSM and PGD-30 disagree fall to FGSM alone",
        BLIND,
        _MISLED,
    ),
    Rule(
        "black-box-beats-white-box",
        "suspect",
        0.005,
        "images fall to 150 queries of Square and not to gradients",
        BLIND,
        _MISLED,
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
