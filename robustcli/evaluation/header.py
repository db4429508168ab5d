"""What the verdicts of an evaluation depend on, as plain JSON with one digest.

Verdicts under unequal headers are never put together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from robustcli.errors import CheckpointError, DataError
from robustcli.evaluation.stored import header_fields
from robustcli.regular import read_regular, strict_loads
from robustcli.store.atomic import strict_json, write_json

NAME = "header.json"
_FORMAT, _LIMIT = "robustcli-shards-1", 1 << 24  # bytes
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]+\b")
_NAMED = 3  # differences that a message names
#: Fields of a plan that no verdict depends on, and functions, which the hash of the code covers.
_FREE = ("batch_size", "fn", "cost", "compile", "graph", "wide", "length", "short_forms")


@dataclass(frozen=True)
class Header:
    """Which evaluation a shard is part of; `Header.of` makes one.

    Args:
        model, data, code: SHA-256 of the weights, the data set and the source.
        plan: plain JSON: ball, attacks in order with their parameters, seed, target, search.
        ids: SHA-256 over the sorted sample ids.
        n: number of samples.
        size: samples per shard.
        about: names for tables; not compared.
        alarms: raised by the diagnosis; not compared.
    """

    model: str
    data: str
    code: str
    plan: Mapping[str, Any]
    ids: str
    n: int
    size: int
    about: Mapping[str, Any] = field(default_factory=dict)
    alarms: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(
        cls,
        plan: Any,
        ids: Tensor,
        *,
        model: str,
        data: str,
        code: str,
        size: int,
        about: Mapping[str, Any] | None = None,
        alarms: Sequence[Mapping[str, Any]] = (),
    ) -> Header:
        """The header of a plan, a dataclass, over samples with these ids, int64 [n] in any order."""
        return cls(
            model=model,
            data=data,
            code=code,
            plan=_plain(plan),
            ids=ids_digest(ids),
            n=len(ids),
            size=size,
            about=_plain(about or {}),
            alarms=_plain(alarms),
        )

    @property
    def shards(self) -> int:
        """Number of shards of the whole evaluation."""
        return -(-self.n // self.size)

    @property
    def digest(self) -> str:
        """SHA-256 over all that is compared."""
        return _sha(self._compared())

    def rows(self, number: int) -> int:
        """Samples in shard `number`."""
        return min(self.size, self.n - number * self.size)

    def differences(self, other: Header) -> list[str]:
        """What differs, such as "seed: 0 there, 1 here"; [] when the digests agree.

        `self` is there, `other` is here.
        """
        return list(_differences(self._compared(), other._compared(), ""))

    def write(self, folder: Path) -> None:
        """Save as header.json, atomically. Raises ResourceError."""
        document = {"format": _FORMAT, **_plain(self)}
        write_json(folder / NAME, {**document, "sha256": _sha(document)})

    @classmethod
    def read(cls, folder: Path) -> Header | None:
        """The header in a folder; None where there is none.

        Raises DataError: it is damaged or of another version.
        """
        path = folder / NAME
        try:
            document = strict_loads(read_regular(path, _LIMIT))
            if document.pop("sha256") != _sha(document) or document.pop("format") != _FORMAT:
                raise ValueError("its hash does not match, or another version wrote it")
            return cls(**header_fields(document))
        except CheckpointError as error:
            if error.code == "E-CKPT-MISSING":
                return None
            why = error.what
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = str(error)
        raise DataError(
            f"the header of these shards is damaged ({why})",
            where=str(path),
            hint="`--resume` of that run writes it anew",
        )

    def _compared(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "data": self.data,
            "code": self.code,
            "ids": self.ids,
            "n": self.n,
            "size": self.size,
            "plan": self.plan,
        }


def ids_digest(ids: Tensor) -> str:
    """SHA-256 over the sorted sample ids, int64 [n]."""
    return hashlib.sha256(ids.sort().values.numpy().astype("<i8").tobytes()).hexdigest()


def few(differences: Sequence[str]) -> str:
    """The first differences on one line, and how many more there are."""
    first, more = ", ".join(differences[:_NAMED]), len(differences) - _NAMED
    if more > 0:
        return f"{first}, and {more} more"
    return first


def _differences(there: Any, here: Any, path: str) -> Iterator[str]:
    """One line per difference between two plain JSON values, each with its dotted path below `path`."""
    if strict_json(there) == strict_json(here):
        return
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted({*there, *here}):
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}")
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for k, pair in enumerate(zip(there, here, strict=True)):
            yield from _differences(*pair, f"{path}.{k}")
    else:
        yield f"{path.removeprefix('.').removeprefix('plan.')}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    """A value on one line: a list by the labels of its entries, a hash by its first 12 digits."""
    if isinstance(value, list):
        return f"[{', '.join(_short(_label(entry)) for entry in value)}]"
    if isinstance(value, str):
        return _HASH.sub(r"\1", value)
    return strict_json(value)


def _label(entry: Any) -> Any:
    """The label of an attack; any other entry of a list as it is."""
    if isinstance(entry, Mapping):
        return entry.get("label")
    return entry


def _plain(value: Any) -> Any:
    """`value` as plain JSON: a dataclass without the fields `_FREE`, torch.float32 and the like as text."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name not in _FREE}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _sha(document: Any) -> str:
    return hashlib.sha256(strict_json(document).encode()).hexdigest()
