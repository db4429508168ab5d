"""Adversarial patches: a square of the image is the attacker's, and the rest stays as it is.

`patch` has more than 50 lines: most are its signature and its documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.core.stamp import draw_pose, places, stamp
from robustcli.errors import DataError
from robustcli.registry import attacks
from robustcli.regular import read_bytes

#: The name of a stored patch in a run.
NAME = "patch.safetensors"
#: What `file` may be beside a path.
NOISE, FITTED = "noise", "fitted"
_USUAL = (0.1, 22.5, 0.8)  # area, rotation, smallest
_LIMIT = 1 << 26  # bytes of a file


class Stored(NamedTuple):
    """A patch and the threat that it was made for.

    Args:
        patch: [C, S, S], pixels in [0, 1].
        area, rotation, smallest: as in `draw_pose`.
    """

    patch: Tensor
    area: float
    rotation: float
    smallest: float

    def to_bytes(self) -> bytes:
        """The contents of a file that `read_patch` reads."""
        threat = torch.tensor(self[1:], dtype=torch.float64)
        return save({"patch": self.patch.contiguous().cpu(), "threat": threat})


def patch_file(named: str) -> Path:
    """The file that `file: NAMED` means: itself, or the patch in the directory of a run."""
    path = Path(named)
    return path / NAME if path.is_dir() else path


def read_patch(named: str) -> Stored:
    """The patch in a file, or in the directory of a run. Raises OSError, or DataError for another file."""
    path = patch_file(named)
    if named == FITTED:
        raise DataError(
            "no patch was fitted", where=f"file: {FITTED}", hint="`robustcli attack attack/patch` fits one"
        )
    _check_there(path)
    found: dict[str, Tensor] = {}
    with suppress(SafetensorError):
        found = load(read_bytes(path, _LIMIT))
    if sorted(found) != ["patch", "threat"] or found["threat"].shape != (3,) or not _square(found["patch"]):
        raise DataError("the file holds no patch", where=str(path), hint="file: the run that fitted one")
    stored = Stored(found["patch"].float(), *found["threat"].tolist())
    if not (0 <= stored.patch.amin() and stored.patch.amax() <= 1):  # NaN is refused, too
        raise DataError("the patch in the file is not in [0, 1]", where=str(path))
    if what := _threat_mistake(*stored[1:]):
        raise DataError(f"the patch in the file has {what}", where=str(path))
    return stored


def _check_there(path: Path) -> None:
    """Raises DataError where a patch is said to be, and no file is."""
    if not path.is_file():
        what = "no patch was fitted there" if path.name == NAME else "there is no such file"
        raise DataError(what, where=str(path), hint="`robustcli attack attack/patch` fits one")


def _square(patch: Tensor) -> bool:
    """Whether a tensor is a square of pixels [C, S, S], S >= 1."""
    return patch.ndim == 3 and patch.numel() > 0 and patch.shape[1] == patch.shape[2]


def _threat_mistake(area: float, rotation: float, smallest: float) -> str:
    """What is outside its range; "" for nothing. NaN is."""
    if 0 < area <= 1 and 0 <= rotation <= 180 and 0 < smallest <= 1:
        return ""
    return f"area, rotation or smallest outside their ranges: {area:.4g}, {rotation:.4g}, {smallest:.4g}"


def _ready(file: str | None, channels: int) -> Stored | None:
    """The patch in a file; None where none is named. Raises DataError, also for images of other channels."""
    if file in (None, NOISE):
        return None
    stored = read_patch(str(file))
    if stored.patch.shape[0] != channels:
        what = f"images have {channels} channels, the patch has {stored.patch.shape[0]}"
        raise DataError(what, where=str(file))
    return stored


def _fits(given: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
    """Raises DataError for a file without a patch, or with one for images of other channels."""
    _ready(given["file"], shape[0])


def _passes(given: Mapping[str, Any], classes: int, norm: str) -> int:
    """One pass for each place where a ready patch is shown; a search at each place otherwise."""
    each = 1 if given["file"] else 2 * given["steps"] + 1
    return int(given["draws"] * each)


def _label(given: Mapping[str, Any]) -> str:
    """patch-40, patch-noise, or patch-fitted for one from a file."""
    if given["file"] is None:
        return f"patch-{given['steps']}"
    return "patch-noise" if given["file"] == NOISE else "patch-fitted"


def _reads(given: Mapping[str, Any]) -> list[Path]:
    """The file that verdicts depend on."""
    if given["file"] in (None, NOISE, FITTED):
        return []
    path = patch_file(given["file"])
    _check_there(path)
    return [path]


@attacks.register(
    "patch",
    kind="unbounded",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="bf16",
    passes=_passes,
    use="stickers: a square of the image is the attacker's, the rest is not touched",
    deterministic=False,
    label=_label,
    reads=_reads,
    ready=lambda given: given["file"] is not None,
    fits=_fits,
)
def patch(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    file: str | None = None,
    draws: Annotated[int, Ge(1)] = 10,
    area: Annotated[float, Gt(0), Le(1)] | None = None,
    rotation: Annotated[float, Ge(0), Le(180)] | None = None,
    smallest: Annotated[float, Gt(0), Le(1)] | None = None,
    steps: Annotated[int, Ge(1)] = 40,
    dark: Annotated[float, Ge(0), Le(1)] = 0.0,
    bright: Annotated[float, Ge(0), Le(1)] = 1.0,
) -> Tensor:
    """x_adv = x outside the square, p inside it: the worst of `draws` places, turns and sizes.

    The threat: one square of at most the share `area` of the image holds what the attacker likes, between
    `dark` and `bright`; no other pixel moves. No norm bounds the change inside. The place is drawn for each
    image, not chosen. With file: p is a ready patch, the same for all images, as on a printed sticker.
    Without: p is searched for each image and place by `steps` steps of the sign of the gradient, which no
    printed patch can be. That is the worst that such a square can do, and bounds what a patch for all can.

    Args:
        oracle: answers with the input gradient [B, C, H, W]; keeps the worst point per row; holds one random
            stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: its pixel box; norm and radius are ignored.
        file: a patch that `attack` has fitted (attack.patch): a .safetensors file, or the directory of that
            run. "noise": a patch of uniform noise, drawn anew for each image and place, the control. null: a
            search for each image.
        draws: places tried per row, >= 1; cost = one forward pass each, and 2 * steps more in a search.
        area: largest share of the image's area, in (0, 1]; null = that of the file, else 0.1.
        rotation: largest turn to either side, degrees in [0, 180]; null = that of the file, else 22.5.
        smallest: smallest side in units of the largest, in (0, 1]; null = that of the file, else 0.8.
        steps: of a search, >= 1; their size falls from 1/4 to 1/64 of the range.
        dark, bright: what can be printed, pixel units, 0 <= dark < bright <= 1. A stored patch is clipped.

    Returns:
        x_adv [B, C, H, W], detached, in the pixel box.

    Raises:
        ValueError: a parameter outside its range.
        DataError: a file without a patch, or with one for images of other channels.
        OSError: the file cannot be read.

    Source: Brown et al., 2017, arXiv:1712.09665 (a patch for all images, places drawn); the search for one
        image: Karmon et al., ICML 2018, arXiv:1801.02608. Printable range: Sharif et al., CCS 2016,
        doi:10.1145/2976749.2978392.
    """
    if draws < 1 or steps < 1:
        raise ValueError(f"steps and draws must be >= 1, got steps {steps}, draws {draws}")
    if not 0 <= dark < bright <= 1:
        raise ValueError(f"0 <= dark < bright <= 1 was expected, got dark {dark}, bright {bright}")
    stored = _ready(file, x.shape[1])
    usual = _USUAL if stored is None else stored[1:]
    given = (area, rotation, smallest)
    threat = [own if own is not None else other for own, other in zip(given, usual, strict=True)]
    if what := _threat_mistake(*threat):
        raise ValueError(what)
    x_adv = x
    for _ in range(draws):
        pose = draw_pose(oracle.rng, x, *threat)
        if stored is not None:
            ready = stored.patch.to(x).clamp(dark, bright)
            x_adv = stamp(x, ready, pose).clamp(ball.low, ball.high)
        else:
            covered, _ = places(x, pose)
            noise = dark + (bright - dark) * oracle.rng.uniform(tuple(x.shape[1:])).to(x.dtype)
            x_adv = torch.where(covered, noise, x)
            if file is None:
                x, x_adv = _searched(oracle, x, x_adv, covered, steps, dark, bright)
        oracle.score(x_adv)
        x, x_adv = oracle.compact(x, x_adv)
        if not oracle.alive:
            break
    return oracle.result(x_adv)


def _searched(
    oracle: Oracle, x: Tensor, x_adv: Tensor, covered: Tensor, steps: int, dark: float, bright: float
) -> tuple[Tensor, Tensor]:
    """(x, x_adv) of the rows that stand after a search of `steps` steps in the covered pixels.

    x, x_adv: [R, C, H, W]. covered: bool [R, 1, H, W].
    """
    for k in range(steps):
        if not oracle.alive:
            break
        grad = oracle.gradient(x_adv).grad
        x, x_adv, covered, grad = oracle.compact(x, x_adv, covered, grad)
        size = (bright - dark) / 4 * 16 ** (-k / max(1, steps - 1))
        moved = (x_adv + size * grad.sign()).clamp(dark, bright)
        x_adv = torch.where(covered, moved, x)
    return x, x_adv
