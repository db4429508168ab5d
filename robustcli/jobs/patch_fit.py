"""A patch that `attack` fits before it attacks: on images that are not measured, kept in the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcli.assembly.samples import choose, samples, split_of
from robustcli.assembly.setting import Setting
from robustcli.attacks.patch import FITTED, NAME, NOISE, Stored
from robustcli.config.schema import Config
from robustcli.config.spec import Spec
from robustcli.config.verb_sections import PatchConfig
from robustcli.core.types import offers
from robustcli.data.png import encode_png
from robustcli.errors import DataError, UsageError
from robustcli.evaluation.patching import PatchFit
from robustcli.store.atomic import write_atomic
from robustcli.store.run import Run
from robustcli.terminal.console import Console

PICTURE = "patch.png"


def check_patch(config: Config, processes: int) -> None:
    """Raises UsageError for a patch that no attack shows, that cannot be fitted, or an attack without one."""
    asked, spec = config.attack.patch, [one for one in config.attacks if one.params.get("file") == FITTED]
    if asked is None and not spec:
        return
    if asked is None or not spec:
        raise UsageError(
            "a patch is fitted where attack.patch says how and an attack shows it",
            where="attack.patch",
            hint=f"attack.patch.area=0.1 'attacks=[{{name: patch, file: {FITTED}}}]'",
        )
    if not asked.dark < asked.bright:
        raise UsageError("attack.patch.dark must be below attack.patch.bright", where="attack.patch")
    if isinstance(config.eval.target, str):
        raise UsageError(
            f"one patch for all images cannot head for target {config.eval.target}",
            where="eval.target",
            hint="a class number, or null for any wrong class",
        )
    if processes > 1:
        raise UsageError(
            "a patch is fitted by one process",
            where="--nproc",
            hint="fit it without, then show it: eval --nproc 4 --attack patch:RUN",
        )


def check_fits_on(model: nn.Module, config: Config) -> None:
    """Raises UsageError for a patch that is to be fitted on a black box, before a run is made."""
    if config.attack.patch is not None and offers(model) != "gradient":
        raise UsageError(
            "a patch is fitted by gradients, and a black box has none",
            where="attack.patch",
            hint="fit it on a network of your own, then show it to this one: --attack patch:RUN",
            code="E-BLACK-BOX",
        )


def fitted(
    setting: Setting, model: nn.Module, run: Run, console: Console, stop: Callable[[], None]
) -> Setting:
    """Fit the patch, write it into the run, and return the setting whose attacks show it.

    The file is NAME, the picture PICTURE. Where the configuration fits none the setting is returned as it is.
    """
    asked = setting.config.attack.patch
    if asked is None:
        return setting
    x, y, ids = _images(setting, asked)
    job = PatchFit(
        **asked.model_dump(exclude={"split", "n"}),
        target=_target(setting.config),
        seed=setting.config.seed,
    )
    console.info(f"one patch for all, fitted on {len(x)} {asked.split} images: {threat(asked)}")
    with console.progress(asked.steps, "fitting the patch") as bar:

        def told(share: float) -> None:
            stop()
            bar.advance(1, broken=f"{share:.1%}")

        patch = job.run(model, x, y, ids, told).cpu()
    stored = Stored(patch, asked.area, asked.rotation, asked.smallest)
    path = run.path / NAME
    write_atomic(path, stored.to_bytes())
    write_atomic(run.path / PICTURE, encode_png((patch * 255).round().to(torch.uint8)))
    console.info(f"patch: {path}, picture: {run.path / PICTURE}")
    attacks = [_shown(spec, path, stored) for spec in setting.config.attacks]
    return replace(setting, config=setting.config.model_copy(update={"attacks": attacks}))


def threat(asked: PatchConfig) -> str:
    """What the patch may do, in words."""
    return (
        f"a square of at most {asked.area:.1%} of the image, turned by up to {asked.rotation:g} degrees, "
        f"pixels in [{asked.dark:g}, {asked.bright:g}], at places that are drawn"
    )


def _target(config: Config) -> int | None:
    return config.eval.target if isinstance(config.eval.target, int) else None


def _images(setting: Setting, asked: PatchConfig) -> tuple[Tensor, Tensor, Tensor]:
    """(x [n, C, H, W], y [n], ids [n]) to fit on: no image that is measured is among them."""
    split = split_of(setting.data, asked.split)
    if asked.split == setting.config.eval.split:
        apart = torch.ones(len(split), dtype=torch.bool)
        apart[samples(setting)[1]] = False
        split = split.subset(apart.nonzero()[:, 0])
        if not len(split):
            raise DataError(
                "all images of the split are measured, and none is left to fit the patch on",
                where="attack.patch.split",
                hint="measure another eval.split, or fewer: --n",
            )
    at = choose(split, n=asked.n, first=None, seed=setting.config.seed)
    return next(iter(split.stream([at], setting.device)))


def _shown(spec: Spec, path: Path, stored: Stored) -> Spec:
    """The spec with the fitted patch as its file; noise takes the size and places of that patch."""
    params = dict(spec.params)
    if params.get("file") == FITTED:
        params["file"] = str(path)
    elif params.get("file") == NOISE:
        params = {"area": stored.area, "rotation": stored.rotation, "smallest": stored.smallest} | params
    else:
        return spec
    return Spec.of(spec.name, **params)
