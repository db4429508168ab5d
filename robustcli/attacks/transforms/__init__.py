"""Input transforms: a momentum attack changes what the model sees, so that its points fool other models.

A transform is one registered function per file, `(x, rng, copy) -> seen`: pixels [R, C, H, W], a random
stream per row, and the number of the copy, below `copies` of its facts. It is differentiable in x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import Annotated

from pydantic import AfterValidator
from torch import Tensor

from robustcli.core.random import RowRandom
from robustcli.core.views import View
from robustcli.registry import transforms


def _known(name: str) -> str:
    """The name of a transform. Raises ValueError naming the known ones."""
    return transforms.get(name).name


#: The parameter `transforms` of an attack: names, applied one after the other.
Transforms = tuple[Annotated[str, AfterValidator(_known)], ...]


def copies(names: Iterable[str]) -> int:
    """Copies of the image that the model sees for one gradient, >= 1."""
    return prod(transforms.get(name).facts.copies for name in names)


def views(names: Iterable[str]) -> list[View]:
    """One view per copy; [] for no names.

    Transforms that leave the pixels and change the gradient come first, so that they change it last. Raises
    ValueError for an unknown name.
    """
    entries = [transforms.get(name) for name in names]
    if not entries:
        return []
    entries.sort(key=lambda entry: not entry.facts.still)
    numbers = product(*(range(entry.facts.copies) for entry in entries))
    still = all(entry.facts.still for entry in entries)
    return [View(partial(_shown, [entry.fn for entry in entries], given), still) for given in numbers]


def _shown(fns: Sequence[Callable[..., Tensor]], numbers: Sequence[int], x: Tensor, rng: RowRandom) -> Tensor:
    """The copy of these numbers, one for each function, [R, C, H, W]."""
    for fn, number in zip(fns, numbers, strict=True):
        x = fn(x, rng, number)
    return x
