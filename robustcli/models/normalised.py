"""The normalisation layer that stands in front of every backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from robustcli.config.spec import PluginConfig, normalize_numbers
from robustcli.errors import ConfigError, DataError, UsageError
from robustcli.models.contract.reading import Contract
from robustcli.models.info import ModelInfo, check_normalisation

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # (mean, std), pixel units of [0, 1]


class NormalisedModel(nn.Module):
    """logits = backbone((x - mean) / std), of D(x) in place of x where something stands in front.

    `contract` says how the backbone is called and read; a probe finds it where the backbone is not ours.

    Args:
        backbone: normalised images [B, C, H, W] -> logits [B, K].
        mean, std: one value per channel, pixel units of [0, 1], std > 0; persistent buffers [1, C, 1, 1].
        arch: name that `build_model` understands, "" for a foreign module.
        params: the architecture's parameters, all of them, defaults too.
        info: the shape it was built for; None for a foreign module whose shape is not known.
        fixed_size: True when only images of side `info.size` fit (a fully connected net).

    forward(x): x [B, C, H, W] float pixels in [0, 1] -> logits [B, K]. Raises DataError when C (or, with
    `fixed_size`, H and W) differs from `info`: torch would broadcast one grey channel over three without a
    word.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        arch: str = "",
        params: Mapping[str, Any] | None = None,
        info: ModelInfo | None = None,
        fixed_size: bool = False,
    ) -> None:
        super().__init__()
        check_normalisation(tuple(mean), tuple(std))
        self.arch, self.params, self.info, self.fixed_size = arch, dict(params or {}), info, fixed_size
        self.contract = Contract()
        self.classes: tuple[str, ...] | None = None  # names, when a checkpoint told them
        self.sha256: str | None = None  # of the checkpoint's manifest, when it came from one
        self.plugin: PluginConfig | None = None  # the user's code that made the backbone
        self.front: nn.Module | None = None  # D, see `put_in_front`
        self.front_spec: dict[str, Any] | None = None
        self.register_buffer("mean", _column(mean))
        self.register_buffer("std", _column(std))
        self.backbone = backbone

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Other values; on the device of the old ones, and in `info` too. Raises ConfigError as ModelInfo."""
        check_normalisation(tuple(mean), tuple(std))
        if self.info is not None:
            self.info = replace(self.info, mean=tuple(mean), std=tuple(std))
        self.mean, self.std = _column(mean, self.mean.device), _column(std, self.std.device)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor):  # a torch.fx proxy has no shape to look at
            self.check(tuple(x.shape))
        if self.front is not None:
            x = self.front(x)
        return self.bare(x)

    def bare(self, x: Tensor) -> Tensor:
        """Logits [B, K] of pixels x [B, C, H, W], without what stands in front."""
        return self.contract.ask(self.backbone, self.normalise(x))

    def put_in_front(self, module: nn.Module, spec: Mapping[str, Any]) -> None:
        """Let `module` change the pixels first: [B, C, H, W] -> the same shape.

        From here on training moves it alone: the backbone has no gradients, and stays in eval mode, so that
        its statistics stay, too. Its tensors stand under ``front.`` in the state.

        spec: its name and parameters, in JSON types, by which a checkpoint can build it again.
        """
        self.front, self.front_spec = module.train(self.training), dict(spec)
        self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """See torch; a backbone that something stands in front of stays in eval mode."""
        super().train(mode)
        if self.front is not None:
            self.backbone.eval()
        return self

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std, what the backbone sees."""
        return (x - self.mean) / self.std

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises DataError E-SHAPE unless it takes images of this shape, [B, C, H, W]."""
        channels, side = self._channels(), self._side()
        if len(shape) == 4:
            channels_fit = channels is None or shape[1] == channels
            side_fits = side is None or shape[2:] == (side, side)
            if channels_fit and side_fits:
                return
        want = f"{channels or 'C'}x{side or 'H'}x{side or 'W'}"
        raise DataError(
            f"the model takes images {want}, got {'x'.join(map(str, shape[1:])) or 'a scalar'}",
            where=self.arch,
            hint=_other_images(shape, channels, side),
            code="E-SHAPE",
        )

    def _channels(self) -> int | None:
        """C of the images; None when any C fits, as with one mean for all channels of a foreign module."""
        if self.info is not None:
            return self.info.channels
        means = self.mean.shape[1]
        return None if means == 1 else means

    def _side(self) -> int | None:
        """H and W of the images; None when any side fits."""
        if self.info is None or not self.fixed_size:
            return None
        return self.info.size


def _other_images(shape: tuple[int, ...], channels: int | None, side: int | None) -> str:
    """The keys that give images of another shape."""
    if len(shape) != 4:
        return ""
    keys = []
    if channels in (1, 3) and shape[1] in (1, 3) and channels != shape[1]:
        keys.append(f"data.channels={channels}")
    if side is not None and shape[2:] != (side, side):
        keys.append(f"data.size={side}")
    return f"for files: {' '.join(keys)}" if keys else ""


def normalised(model: nn.Module, normalize: str) -> NormalisedModel:
    """A foreign network behind the normalisation it expects; its device and its mode stay.

    Raises UsageError when the model normalises already; ConfigError as `parse_normalize`.
    """
    if isinstance(model, NormalisedModel):
        raise UsageError("this model normalises already", hint="drop --normalize", code="E-MODEL")
    wrapped = NormalisedModel(model, *parse_normalize(normalize))
    wrapped.train(model.training)
    like = next(model.parameters(), torch.empty(0))
    return wrapped.to(like.device)


def _column(values: Sequence[float], device: torch.device | None = None) -> Tensor:
    """One value per channel, float32 [1, C, 1, 1]."""
    return torch.tensor(tuple(values), dtype=torch.float32, device=device).view(1, -1, 1, 1)


def parse_normalize(text: str, channels: int | None = None) -> Normalisation:
    """(mean, std) of ``"imagenet"`` or of ``"m1,m2,m3,s1,s2,s3"``, in pixel units of [0, 1].

    ``"m,s"`` is one pair for all `channels`.

    Raises:
        ConfigError: odd count, not numbers, a std <= 0, or a mean outside [0, 1] (it was meant for pixels
        0..255).
    """
    if text.strip().lower() == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    hint = "write imagenet, or the means then the stds: 0.49,0.48,0.45,0.25,0.24,0.26"
    try:
        mean, std = normalize_numbers(text)
    except ValueError as error:
        raise ConfigError(f"normalize={text!r}: {error}", hint=hint) from None
    if max(abs(v) for v in mean) > 1:
        raise ConfigError(
            f"normalize={text!r} has a mean outside [0, 1]: pixels are in [0, 1], not 0..255",
            hint="divide by 255",
        )
    if channels and len(mean) == 1:
        return mean * channels, std * channels
    return mean, std
