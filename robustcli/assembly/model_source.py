"""Where the model of a run comes from: one door to every kind of network and of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from robustcli.assembly.guarding import guard_around, ready_guard
from robustcli.assembly.setting import Setting
from robustcli.config.spec import COMMAND, GUARD, ONNX, ModelConfig, names_code
from robustcli.errors import ConfigError, DataError, UsageError
from robustcli.foreign import PLUGIN
from robustcli.models.architectures.blocks import seeded
from robustcli.models.blackbox import LabelsOnly
from robustcli.models.build import build_model, ours
from robustcli.models.contract.adapted import adapted
from robustcli.models.contract.probe import images
from robustcli.models.contract.training import fit_to_train, is_overrun
from robustcli.models.front import put_in_front
from robustcli.models.guarded import GuardedModel
from robustcli.models.info import ModelInfo
from robustcli.models.initialise import ibp_init
from robustcli.models.meant import meant_model
from robustcli.models.normalised import NormalisedModel
from robustcli.models.size import check_classes
from robustcli.models.source import load_model
from robustcli.models.zoos import split_zoo
from robustcli.registry import models
from robustcli.terminal.console import Console


class ModelFlags(Protocol):
    """What the command line alone says of a model."""

    @property
    def plugin(self) -> str | None:
        """`FILE.py:factory`: the user's own network."""

    @property
    def allow_pickle(self) -> bool:
        """Whether weights may be read from a file that can run code."""


@dataclass(frozen=True)
class ModelSource:
    """The model that a configuration and the command line name.

    Args:
        setting: the configuration, the device, and the data that the model is for.
        plugin: `FILE.py:factory`, taken in place of the configured model.
        allow_pickle: whether weights may be read from a file that can run code.
    """

    setting: Setting
    plugin: str | None = None
    allow_pickle: bool = False

    @classmethod
    def of(cls, setting: Setting, flags: ModelFlags) -> ModelSource:
        """The source of the model, with the flags of the command line."""
        return cls(setting, flags.plugin, flags.allow_pickle)

    def to_train(
        self, warn: Callable[[str], None] = lambda text: None, info: Callable[[str], None] = lambda text: None
    ) -> NormalisedModel:
        """The model on its device, for the classes of the data: new, or with the weights to fine-tune.

        A network that is not ours is looked at in both modes and in the memory layout of training; `warn` is
        told what is done otherwise than asked, `info` what normalisation was chosen. Under `train.init` an
        untrained network gets other first weights. Raises ConfigError E-MODEL where it cannot be trained,
        UsageError for such weights in place of trained ones.
        """
        if self._spec.name.startswith(GUARD):
            raise UsageError(
                f"{self._spec.name} is a guarded model, which only measures",
                hint="train the model that stands behind it",
                code="E-MODEL",
            )
        if self._spec.labels_only:
            raise UsageError(
                "model.labels_only hides the gradients that training needs",
                where="model.labels_only",
                hint="set it for attack and eval: --labels-only",
                code="E-MODEL",
            )
        with self._telling(info):
            model = self._fresh() if self._untrained else self._loaded(self.setting.classes, warn)
        if not isinstance(model, NormalisedModel):  # the data say the shape of all others
            raise UsageError(
                f"{self._spec.name} is a black box, and has no gradient to train with",
                where="model",
                hint="train the network that stands behind it",
                code="E-MODEL",
            )
        if self.setting.config.train.init == "ibp":
            self._start_narrow(model, warn)
        self._put_in_front(model)
        model, channels_last = model.to(self.setting.device), self.setting.config.train.channels_last
        if not ours(model.arch) and model.front is not None:  # it is not trained, and its layout is its own
            model.contract = replace(model.contract, channels_last=False)
        elif not ours(model.arch):
            fit_to_train(model, channels_last=channels_last, say=warn)
        elif channels_last and not is_overrun(model, warn):
            model.to(memory_format=torch.channels_last)
        return model

    def _start_narrow(self, model: NormalisedModel, say: Callable[[str], None]) -> None:
        """Draw the first weights of an untrained model for narrow bounds, from the configured seed.

        Raises UsageError where the configuration names trained weights.
        """
        spec = self._spec
        if self._brings_weights:
            raise UsageError(
                f"train.init: ibp would overwrite the weights of {spec.weights or spec.name}",
                where="train.init",
                hint="train.init: own keeps them",
            )
        with seeded(self.setting.config.seed):
            layers = ibp_init(model)
        if not self._untrained:
            say(f"train.init: ibp: the weights of {layers} layers of {spec.label} are drawn anew")

    def _put_in_front(self, model: NormalisedModel) -> None:
        """Put what `train.front` names in front of a trained model."""
        config = self.setting.config
        if config.train.front is None:
            return
        if self._untrained:
            raise UsageError(
                f"train.front stands in front of a trained model, and {self._spec.name} has no weights",
                where="train.front",
                hint="train it first, then --model run:DIR",
                code="E-MODEL",
            )
        put_in_front(model, config.train.front.name, config.train.front.params, seed=config.seed)

    def to_measure(self, console: Console) -> nn.Module:
        """The model on its device, behind the configured defences where there are some.

        Under `model.labels_only` labels are all that it answers.
        Warns about untrained weights. Raises an error when its classes are not those of the data, or when a
        defence needs a fit.
        """
        model = self.bare(console)
        if self.setting.config.defences:
            model = ready_guard(self.setting, model, lambda reference: self._member(reference, console))
        return LabelsOnly(model) if self._spec.labels_only else model

    def to_fit(self, console: Console) -> GuardedModel:
        """The model on its device, behind the configured defences, none of them fitted; errors as above."""
        return guard_around(
            self.setting, self.bare(console), lambda reference: self._member(reference, console)
        )

    def bare(self, console: Console) -> nn.Module:
        """The model on its device, without the configured defences; errors as above."""
        if self._untrained:
            console.warn(
                f"model {self._spec.name} has untrained weights; point --model to a run "
                "(run:runs/train/latest) or give model.weights"
            )
            with self._telling(console.info):
                return self._fresh().eval().to(self.setting.device)
        # A factory is told the classes of the data; all other networks get them from their weights.
        told = self.plugin is not None or names_code(self._spec.name) or self._spec.name.startswith(COMMAND)
        classes = self.setting.classes if told else None
        with self._telling(console.info):
            model = self._loaded(classes, console.warn).to(self.setting.device)
        data = self.setting.data
        if isinstance(model, GuardedModel):
            _check_shape(model, data.shape)
        model, found = adapted(model, images(data.shape, self.setting.device))
        check_classes(found, data.classes, getattr(model, "classes", None))
        return model

    def _member(self, reference: str, console: Console) -> nn.Module:
        """Another model for the vote, on its device. `--plugin` makes it only where its run says so."""
        name = meant_model(reference)
        config = self.setting.config.model_copy(update={"model": ModelConfig(name=name), "defences": []})
        plugin = self.plugin if name.startswith("run:") else None
        source = ModelSource(replace(self.setting, config=config), plugin, self.allow_pickle)
        model = source.bare(console)
        if isinstance(model, GuardedModel):
            raise ConfigError(f"{name} is a guarded model; a vote joins bare ones", where="defences")
        return model

    @contextmanager
    def _telling(self, info: Callable[[str], None]) -> Iterator[None]:
        """Tells what the data have to say of what is asked of them inside, such as their normalisation."""
        notes = self.setting.data.notes
        known = len(notes)
        yield
        for note in notes[known:]:
            info(note)

    @property
    def _spec(self) -> ModelConfig:
        return self.setting.config.model

    @property
    def _untrained(self) -> bool:
        """Whether the model is a registered network without weights; it is then initialised from the seed."""
        return self.plugin is None and not self._spec.is_reference and self._spec.weights is None

    @property
    def _brings_weights(self) -> bool:
        """Whether the configuration names trained weights: a file, a run, or a published network's."""
        spec = self._spec
        names_a_network = spec.name in models or names_code(spec.name) or spec.name.startswith(PLUGIN)
        zoo, of_zoo = split_zoo(spec.name)
        bare = zoo is not None and not zoo.pretrained(of_zoo)
        return spec.weights is not None or not (names_a_network or bare)

    def _fresh(self) -> nn.Module:
        config, data = self.setting.config, self.setting.data
        info = ModelInfo(
            num_classes=self.setting.classes,
            channels=data.shape[0],
            size=data.shape[1],
            mean=data.mean,
            std=data.std,
        )
        return build_model(config.model.name, config.model.params, info, seed=config.seed)

    def _check_code(self, model: nn.Module) -> None:
        """Raises UsageError where the user's code made nothing of what a run holds: that would be measured.

        The members of a vote may be what the code is for.
        """
        made = self.plugin is None or getattr(model, "plugin", None) is not None
        if made or self.setting.config.defences or not self._spec.name.startswith("run:"):
            return
        raise UsageError(
            f"the network of {self._spec.name} is {getattr(model, 'arch', 'another')}, which {self.plugin} "
            "does not make: it would be measured in its place",
            hint="leave the code out; your own network is measured with its --weights, or without "
            "`model: run:...` in the configuration",
            code="E-PLUGIN",
        )

    def _loaded(self, num_classes: int | None, say: Callable[[str], None]) -> nn.Module:
        """The model with its weights.

        num_classes: of the data, or None where the weights tell it. say: told what was chosen in a file.
        """
        spec, config, data = self._spec, self.setting.config, self.setting.data
        # The channels' statistics need the training images, which are left alone where the model has its own.
        foreign = spec.name.startswith(("run:", GUARD, ONNX, COMMAND)) or "@" in spec.name
        brings_its_own = self.plugin is not None or foreign or spec.normalize is not None
        mean, std = (None, None) if brings_its_own else (data.mean, data.std)
        model = load_model(
            spec.name,
            params=spec.params,
            weights=spec.weights,
            plugin=self.plugin,
            num_classes=num_classes,
            channels=data.shape[0],
            size=data.shape[1],
            mean=mean,
            std=std,
            normalize=spec.normalize,
            allow_pickle=self.allow_pickle,
            download=config.data.download,
            seed=config.seed,
            weights_kind=spec.weights_kind,
            timeout=spec.timeout,
            say=say,
        )
        self._check_code(model)
        return model


def _check_shape(guard: GuardedModel, shape: tuple[int, int, int]) -> None:
    """Raises DataError E-SHAPE for images of another shape than those that the guard was fitted on."""
    if guard.info is not None and guard.info.shape != tuple(shape):
        want, got = ("x".join(map(str, sizes)) for sizes in (guard.info.shape, shape))
        raise DataError(
            f"the guard was fitted on images {want}, got {got}",
            hint="its thresholds hold for no other size: set data.size and data.channels",
            code="E-SHAPE",
        )
