"""A pretended CUDA device for machines without one: does every tensor go where it should, and who waits?

`with pretended_cuda() as device:` makes torch answer as if it had one GPU. docs/testing.md says what it sees
and what it cannot see.
"""

from pretended.place import CUDA, Device, OnDevice, pretended_cuda

__all__ = ["CUDA", "Device", "OnDevice", "pretended_cuda"]
