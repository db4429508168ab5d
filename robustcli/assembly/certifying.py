"""From the name of a method of proof to what proves, and to what is attacked beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.certificates.noise import NOISES
from robustcli.certificates.smoothing import Smoothing
from robustcli.core.geometry import Ball
from robustcli.core.modes import frozen
from robustcli.core.types import declares_draws, reject_of
from robustcli.errors import UsageError
from robustcli.evaluation.alarms import check_model_output
from robustcli.evaluation.certificates.attacked import Confirm
from robustcli.evaluation.certificates.certifier import Certifier
from robustcli.evaluation.certificates.deterministic import CASCADE, Effort, deterministic
from robustcli.evaluation.certificates.smoothed import NoisyModel, SmoothedCertifier
from robustcli.evaluation.judge import Judge

SMOOTHING = "smoothing"
_NOISE_OF = {family.norm: name for name, family in NOISES.items()}


@dataclass(frozen=True)
class Subject:
    """What is certified.

    Args:
        model: pixels [B, C, H, W] in [0, 1] -> logits [B, K].
        ball: the threat.
        radii: that are asked for, ascending, the threat's among them.
        shape: of an image, (C, H, W).
        classes: K.
        device: of the model.
    """

    model: nn.Module
    ball: Ball
    radii: Sequence[float]
    shape: tuple[int, int, int]
    classes: int
    device: torch.device


@dataclass(frozen=True)
class Watch:
    """Who is asked to go on, and told how far the work is.

    Args:
        stop: raises to interrupt.
        progress: told how many samples' worth of draws were made.
        say: told of what was chosen, and of batches that did not fit.
    """

    stop: Callable[[], None] = lambda: None
    progress: Callable[[float], None] = lambda samples: None
    say: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Method:
    """A method of proof, ready to work.

    Args:
        certifier: the method.
        parameters: name of each method of its answers -> what it depends on, as certificate files state it.
        seed: of its draws; None for one without.
        limits: what answers depend on beside that.
        attacked: what is attacked: the model, or its smoothed form.
        draws: model passes of the proof on one sample at the most; 0 = not known before.
        confirm, reset: as of `Attacked`.
    """

    certifier: Certifier
    parameters: Mapping[str, Mapping[str, Any]]
    seed: int | None
    limits: Mapping[str, Any]
    attacked: nn.Module
    draws: int = 0
    confirm: Confirm | None = None
    reset: Callable[[str], None] = lambda key: None

    @property
    def sampled(self) -> bool:
        """Whether the classifier is known by draws alone."""
        return self.confirm is not None


def method_of(
    subject: Subject, name: str | None, smoothing: Smoothing, effort: Effort, watch: Watch
) -> Method:
    """The method `name`.

    None means cascade where every operation of the network has bounds, else smoothing under l2.

    Raises UsageError: E-BOUNDS for an operation without bounds; noise that proves nothing in this norm; l0.
    """
    if subject.ball.norm == "l0":
        raise UsageError(
            "no method here certifies an l0 ball",
            where="ball.norm",
            hint="certify linf, l2 or l1; `robustcli eval --norm l0` attacks under l0",
        )
    if name == SMOOTHING:
        return _smoothed(subject, smoothing, effort, watch)
    try:
        return _bounded(subject, name or CASCADE, effort, watch)
    except UsageError as error:
        if name is not None or error.code != "E-BOUNDS":
            raise
        if subject.ball.norm != "l2":
            error.hint += "; or --norm l2 --method smoothing, which takes any network"
            raise
        watch.say(f"{error.what} ({error.where}): randomised smoothing is used instead")
        return _smoothed(subject, smoothing, effort, watch)


def check_model(model: nn.Module, ball: Ball, x: Tensor) -> None:
    """Raises UsageError E-MODEL for a model that is no fixed function from pixels to K logits.

    x: a few images [B, C, H, W] of the data.
    """
    if reject_of(model) is not None:
        raise UsageError(
            "a guarded model is not certified: its answer is that of the network or of its defences",
            where="model",
            hint="certify the network that stands behind the guard, without defences",
            code="E-MODEL",
        )
    with frozen(model):
        judge = Judge(model, ball)
        alarms = check_model_output(judge.logits(x), judge.logits(x))
    if declares_draws(model) or any(alarm.name == "random-forward" for alarm in alarms):
        raise UsageError(
            "the model answers differently each time, and a certificate is about one function",
            where="model",
            hint="certify the network without its draws; --method smoothing adds noise whose effect is known",
            code="E-MODEL",
        )


def _bounded(subject: Subject, name: str, effort: Effort, watch: Watch) -> Method:
    """Bounds of the network, or the cascade of them."""
    certifier = deterministic(
        subject.model,
        subject.ball,
        subject.radii,
        name,
        shape=subject.shape,
        device=subject.device,
        effort=effort,
        stop=watch.stop,
        say=watch.say,
    )
    limits = {"budget": effort.budget}
    return Method(certifier, certifier.parameters, None, limits, subject.model)


def _smoothed(subject: Subject, plan: Smoothing, effort: Effort, watch: Watch) -> Method:
    """Randomised smoothing. Raises UsageError for a norm in which its noise proves nothing."""
    norm, wanted = plan.family.norm, subject.ball.norm
    if norm != wanted:
        noise = _NOISE_OF.get(wanted)
        more = f", or certify.smoothing.noise={noise} for {wanted}" if noise else ""
        raise UsageError(
            f"{plan.noise} noise proves {norm} radii, and ball.norm is {wanted}",
            where="certify.smoothing.noise",
            hint=f"--norm {norm}{more}",
        )
    certifier = SmoothedCertifier(
        subject.model,
        subject.classes,
        subject.ball,
        plan,
        shape=subject.shape,
        device=subject.device,
        stop=watch.stop,
        progress=watch.progress,
    )
    noisy = NoisyModel(subject.model, plan)
    parameters = {name: value for name, value in asdict(plan).items() if name != "seed"}
    return Method(
        certifier,
        {SMOOTHING: parameters},
        plan.seed,
        {"attacked_at_once": effort.batch_size},  # the draws of an attack are one stream over a batch
        noisy,
        plan.n0 + plan.n,
        certifier.confirm,
        noisy.reset,
    )
