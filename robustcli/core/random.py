"""Counter-based random numbers, one independent stream per row.

Every draw is a function of (seed, stream, epoch, restart, sample id, draw number, element). The draws of a
sample do not depend on the batch size, the order, the shard, the number of workers, or the rows that left
before it. No generator state has to be saved.

The generator is SplitMix64 used as a counter: mix(key + n * gamma), Steele, Lea & Flood, OOPSLA 2014. Integer
arithmetic is exact on every device, so uniforms and integers are bitwise equal everywhere; normals only on
one device.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64  # odd, 2^64 / golden ratio
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shift(h: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (h >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix64(h: Tensor) -> Tensor:
    """SplitMix64 finaliser on int64 tensors; multiplication wraps modulo 2^64. Returns a new tensor."""
    h = (h ^ _shift(h, 30)).mul_(_MIX_1)
    h = h.bitwise_xor_(_shift(h, 27)).mul_(_MIX_2)
    return h.bitwise_xor_(_shift(h, 31))


def _signed(word: int) -> int:
    """`word` modulo 2^64 as a signed number."""
    return (word + 2**63) % 2**64 - 2**63


def _word(*parts: object) -> int:
    """A signed 64-bit word from a few plain values. Unlike `hash` it is the same in every process."""
    digest = hashlib.blake2b("\x1f".join(str(p) for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class RowRandom:
    """One random stream per row of a batch.

    Args:
        seed: the run's seed.
        stream: what the draws are for, such as order, augment or start; streams are independent.
        ids: int64 [B], sample ids: the index in the stored split, never the place in the batch.
        epoch: training epoch; 0 in evaluation.
        restart: number of the attack restart.
    """

    def __init__(self, seed: int, stream: str, ids: Tensor, *, epoch: int = 0, restart: int = 0) -> None:
        self._origin = (seed, stream, epoch)
        self.ids = ids
        base = torch.full_like(ids, _word(seed, stream, epoch, restart))
        self._key = mix64(base ^ mix64(ids * _GAMMA + 1))
        self._draw = 0

    def restart(self, number: int) -> RowRandom:
        """The streams of the same rows for another restart, at draw number 0."""
        seed, stream, epoch = self._origin
        return RowRandom(seed, stream, self.ids, epoch=epoch, restart=number)

    def stream(self, name: str) -> RowRandom:
        """The streams of the same rows for another purpose, at draw number 0 of restart 0."""
        seed, _, epoch = self._origin
        return RowRandom(seed, name, self.ids, epoch=epoch)

    def rows(self, index: Tensor | slice) -> RowRandom:
        """The streams of some rows, at the same draw number; index is int64 [R], bool [B] or a slice."""
        part = object.__new__(RowRandom)
        part._origin, part._draw = self._origin, self._draw
        part.ids, part._key = self.ids[index], self._key[index]
        return part

    def _bits(self, tail: tuple[int, ...]) -> Tensor:
        """int64 [B, n] of 64 random bits each, n = product of `tail`; every call raises the draw number."""
        n = math.prod(tail)
        self._draw += 1
        key = mix64(self._key + _signed(self._draw * _GAMMA))
        counter = torch.arange(1, n + 1, device=key.device, dtype=torch.int64).mul_(_GAMMA)
        return mix64(key[:, None] + counter[None, :])

    def uniform(self, tail: tuple[int, ...] = ()) -> Tensor:
        """float32 [B, *tail], uniform in [0, 1) on the multiples of 2^-24."""
        n = math.prod(tail)
        half = (n + 1) // 2
        bits = self._bits((half,))
        # Two 24-bit numbers from each 64-bit word: half the integer work.
        both = torch.cat((_shift(bits, 40), bits.bitwise_and_(0xFFFFFF)), 1)[:, :n]
        return both.to(torch.float32).mul_(2.0**-24).reshape(len(bits), *tail)

    def integers(self, low: int, high: int, tail: tuple[int, ...] = ()) -> Tensor:
        """int64 [B, *tail], uniform on low, low + 1, up to high - 1; bias below (high - low) / 2^40.

        Raises:
            ValueError: high - low < 1 or > 2^22.
        """
        if not 0 < high - low <= 2**22:
            raise ValueError(f"integers needs 1 <= high - low <= 2^22, got [{low}, {high})")
        bits = _shift(self._bits(tail), 24)  # 40 bits
        return ((bits * (high - low)) >> 40).add_(low).reshape(len(bits), *tail)

    def signs(self, tail: tuple[int, ...] = ()) -> Tensor:
        """int64 [B, *tail], -1 or +1 with equal chance."""
        return self.integers(0, 2, tail).mul_(2).sub_(1)

    def normal(self, tail: tuple[int, ...] = ()) -> Tensor:
        """float32 [B, *tail], standard normal (Box & Muller, 1958); bitwise repeatable on one device only."""
        n = math.prod(tail)
        half = (n + 1) // 2
        radius = self.uniform((half,)).neg_().add_(1.0).log_().mul_(-2.0).sqrt_()  # 1 - u is in (0, 1]
        angle = self.uniform((half,)).mul_(2.0 * math.pi)
        both = torch.cat((radius * angle.cos(), radius * angle.sin()), 1)[:, :n]
        return both.reshape(len(both), *tail)
