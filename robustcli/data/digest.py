"""What identifies the stored data: digests that a resumed run and the extra data are compared by."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping

import torch

from robustcli.data.files import Listing
from robustcli.data.images import Decoder
from robustcli.data.split import MemorySplit

_CHUNK_BYTES = 2**26  # pixels hashed at a time


def digest_memory(stored: Mapping[str, MemorySplit]) -> str:
    """SHA-256 (hex) over each stored split's name, classes, dtype, shape, labels and pixels."""
    state = hashlib.sha256()
    for part, split in sorted(stored.items()):
        about = [part, split.classes, str(split.store.pixels.dtype), len(split), *split.shape]
        state.update(json.dumps(about).encode())
        state.update(split.labels.numpy().tobytes())
        images = max(1, _CHUNK_BYTES // max(1, math.prod(split.shape)))
        for chunk in torch.arange(len(split)).split(images):
            state.update(split.raw(chunk).contiguous().numpy().tobytes())
    return state.hexdigest()


def digest_files(listings: Mapping[str, Listing], decoder: Decoder) -> str:
    """SHA-256 (hex) over each split's name and classes, and the relative path and size of each file.

    Labels that the paths do not say count too. The digest stands for the pixels where reading every byte of a
    large set would take too long.
    """
    state = hashlib.sha256()
    for part, listing in listings.items():
        about: list[object] = [part, listing.classes]
        if not listing.labels_in_paths:
            about.append(listing.labels)
        state.update(json.dumps(about).encode())
        for path in listing.paths:
            size = str(_size(decoder, path))
            state.update(os.fsencode(path) + b"\0" + size.encode() + b"\n")
    return state.hexdigest()


def _size(decoder: Decoder, path: str) -> int:
    """Bytes of the file; -1 when it cannot be reached."""
    try:
        return decoder.stamp(path)[0]
    except OSError:
        return -1
