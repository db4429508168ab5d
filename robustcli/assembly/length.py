"""How long a run will last, as far as its configuration says: what a race at its start may cost follows."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.assembly.method import method_of
from robustcli.assembly.setting import Setting
from robustcli.config.schema import Config
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.quickest import Length

_PASSES = 2  # of a gradient
_SIZES = 6  # powers of two from 8 to 256: batches shrink as rows fall


def budget(config: Config) -> tuple[str, float]:
    """The length of a training as (unit, amount); 10 epochs where the configuration gives none."""
    for unit in ("steps", "minutes", "epochs"):
        amount = getattr(config.train, unit)
        if amount is not None:
            return unit, float(amount)
    return "epochs", 10.0


def training_images(setting: Setting) -> float:
    """Images that a training shows the network, each once per epoch; 0 where minutes are given."""
    unit, amount = budget(setting.config)
    if unit == "minutes":
        return 0.0
    return amount * (setting.config.train.batch_size if unit == "steps" else len(setting.data.train))


def training_length(setting: Setting) -> Length:
    """Gradients of the attack in a configured training, or its seconds."""
    unit, amount = budget(setting.config)
    if unit == "minutes":
        return Length(seconds=60 * amount)
    method = method_of(setting.config)
    if method.inner is None or not method.step_attacks:
        return Length()
    norms = [ball.norm for ball in setting.union or (setting.ball,)]
    passes = sum(method.adversary.passes(setting.classes, norm) for norm in norms) * method.copies
    if setting.config.train.union == "random":
        passes //= len(norms)
    return Length(gradients=training_images(setting) * passes / _PASSES)


def evaluation_length(calls: Sequence[AttackCall], n: int, classes: int, norm: str) -> Length:
    """Gradients in an evaluation of n samples; half of them are taken to fall early."""
    passes = sum(call.passes(classes, norm) for call in calls)
    return Length(gradients=0.5 * n * passes / _PASSES, sizes=_SIZES)
