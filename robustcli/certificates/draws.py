"""Draws that are a function of (seed, sample id, purpose, draw number), whatever asks for them.

A block of `BLOCK` draws has one seed, and torch's own generator fills it: 3 to 15 times as fast as a key
for each number. A block is always made whole, so its draws do not depend on how many are used.

torch's generator on CPUs keeps 32 bits of a seed. The blocks of one sample therefore count through a
bijection of 32 bits: no two of them are equal, as two of 1,563 random seeds would be with chance 3e-4.
Different samples may share a block. That is harmless, as each statement is about one sample.

Draws are bitwise repeatable on one kind of device.
"""

from __future__ import annotations

import hashlib

import torch

#: Draws that share a seed. It is part of what a seed means: another number gives other draws.
BLOCK = 64
#: First block of the draws that choose the class; those that estimate its chance begin at block 0.
CHOICE = 2**31
#: First block of the draws with which PREDICT looks at a point: none of them helped to certify it.
LOOK = 2**31 + 2**30


def generator_of(seed: int, sample: int, block: int, device: torch.device) -> torch.Generator:
    """The generator of one block of a sample, at its start.

    seed: the run's seed. sample: its id, the index in the stored split. block: 0 <= block < 2^32.
    """
    generator = torch.Generator(device)
    generator.manual_seed(_mixed((_word(seed, sample) + block) % 2**32))
    return generator


def _word(seed: int, sample: int) -> int:
    """32 bits that are the same in every process."""
    digest = hashlib.blake2b(f"smoothing\x1f{seed}\x1f{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def _mixed(h: int) -> int:
    """The finaliser of MurmurHash3: a bijection of 32 bits, so that neighbours get unlike seeds."""
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
    return h ^ (h >> 16)
