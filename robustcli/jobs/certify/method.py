"""The method of proof that a configuration asks for."""

from __future__ import annotations

from torch import nn

from robustcli.assembly.certifying import Method, Subject, Watch, check_model, method_of
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting
from robustcli.certificates.smoothing import Smoothing
from robustcli.config.certify_sections import SmoothingConfig
from robustcli.evaluation.certificates.certifier import radii_of
from robustcli.evaluation.certificates.deterministic import Effort

_SHOWN = 8  # images on which the model is looked at first


def radii(setting: Setting) -> tuple[float, ...]:
    """The radii that are asked for, ascending, the threat's among them."""
    return radii_of(setting.ball, setting.config.certify.radii)


def configured_method(setting: Setting, model: nn.Module, watch: Watch) -> Method:
    """The configured method, after a look at the model. Raises as `check_model` and `method_of`."""
    split, positions = samples(setting)
    x, _, _ = next(iter(split.stream([positions[:_SHOWN]], setting.device)))
    check_model(model, setting.ball, x)
    config, seed = setting.config.certify, setting.config.seed
    subject = Subject(
        model, setting.ball, radii(setting), setting.data.shape, setting.classes, setting.device
    )
    effort = Effort(
        alpha_steps=config.alpha_steps,
        budget=None if config.budget is None else float(config.budget),
        batch_size=setting.config.eval.batch_size,
        seed=seed,
    )
    return method_of(subject, config.method, smoothing_plan(config.smoothing, seed), effort, watch)


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
