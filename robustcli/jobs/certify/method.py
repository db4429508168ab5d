"""The method of proof that a configuration asks for, and what its attacks are run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from robustcli.assembly.setting import Setting
from robustcli.certify.smoothing import Smoothing
from robustcli.config.certify_sections import SmoothingConfig
from robustcli.core.modes import frozen
from robustcli.core.types import declares_draws, reject_of
from robustcli.errors import UsageError
from robustcli.evaluation.alarms import check_model_output
from robustcli.evaluation.certificates.attacked import Confirm
from robustcli.evaluation.certificates.certifier import Certifier
from robustcli.evaluation.certificates.smoothed import NoisyModel, SmoothedCertifier
from robustcli.evaluation.judge import Judge


@dataclass(frozen=True)
class Method:
    """A method of proof, ready to work.

    Args:
        certifier: the method.
        parameters: what its answers depend on beside model, data, ball and radii.
        attacked: what is attacked: the model, or its smoothed form.
        draws: model passes of the proof on one sample at the most; 0 = not known before.
        confirm, reset: as of `Attacked`.
    """

    certifier: Certifier
    parameters: Mapping[str, Any]
    attacked: nn.Module
    draws: int = 0
    confirm: Confirm | None = None
    reset: Callable[[str], None] = lambda key: None


@dataclass(frozen=True)
class Watch:
    """Who is asked to go on, and told how far the work is.

    Args:
        stop: raises to interrupt.
        progress: told how many samples' worth of work was done.
    """

    stop: Callable[[], None]
    progress: Callable[[float], None]


def method_of(setting: Setting, model: nn.Module, watch: Watch) -> Method:
    """The configured method. Raises UsageError for one that cannot prove anything here."""
    return _smoothing(setting, model, watch)


def check_model(setting: Setting, model: nn.Module, x: Tensor) -> None:
    """Raises UsageError E-MODEL for a model that is no fixed function from pixels to K logits.

    x: a few images [B, C, H, W] of the data.
    """
    if reject_of(model) is not None or setting.config.defences:
        raise UsageError(
            "a guarded model is not certified: its answer is that of the network or of its defences",
            where="model",
            hint="certify the network that stands behind the guard, without defences",
            code="E-MODEL",
        )
    with frozen(model):
        judge = Judge(model, setting.ball)
        alarms = check_model_output(judge.logits(x), judge.logits(x))
    if declares_draws(model) or any(alarm.name == "random-forward" for alarm in alarms):
        raise UsageError(
            "the model answers differently each time, and a certificate is about one function",
            where="model",
            hint="certify the network without its draws; --method smoothing adds noise whose effect is known",
            code="E-MODEL",
        )


def _smoothing(setting: Setting, model: nn.Module, watch: Watch) -> Method:
    """Randomised smoothing. Raises UsageError for a norm in which its noise proves nothing."""
    config = setting.config.certify.smoothing
    plan = smoothing_plan(config, setting.config.seed)
    norm = plan.family.norm
    if norm != setting.ball.norm:
        others = {"l2": "gaussian", "l1": "uniform"}
        noise = others.get(setting.ball.norm)
        hint = f"--norm {norm}"
        if noise is not None:
            hint += f", or certify.smoothing.noise={noise} for {setting.ball.norm}"
        raise UsageError(
            f"{plan.noise} noise proves {norm} radii, and ball.norm is {setting.ball.norm}",
            where="certify.smoothing.noise",
            hint=hint,
        )
    certifier = SmoothedCertifier(
        model,
        setting.classes,
        setting.ball,
        plan,
        shape=setting.data.shape,
        device=setting.device,
        stop=watch.stop,
        progress=watch.progress,
    )
    noisy = NoisyModel(model, plan)
    # The draws of an attack are one stream over a batch: they depend on its size.
    parameters = {**asdict(plan), "attacked_at_once": setting.config.eval.batch_size}
    return Method(certifier, parameters, noisy, plan.n0 + plan.n, certifier.confirm, noisy.reset)


def smoothing_plan(config: SmoothingConfig, seed: int) -> Smoothing:
    """The plan of a section `certify.smoothing`."""
    return Smoothing(
        sigma=float(config.sigma),
        n0=config.n0,
        n=config.n,
        alpha=float(config.alpha),
        noise=config.noise,
        stop=config.stop,
        enough=None if config.enough is None else float(config.enough),
        seed=seed,
    )
