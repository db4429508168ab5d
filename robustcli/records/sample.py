"""What an evaluation found on one sample: a line of samples.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from robustcli.records.common import SCHEMA_VERSION, from_fields, plain, rebuild


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One sample: what the model answered, and which attack broke it.

    Args:
        id: of the sample in its stored split. file: path of its image below the root of the data set; None
            for data that lie in arrays.
        label: name of its class.
        clean: name of the class that the model answers to the clean image; None where its logits are not
            finite. confidence: the softmax probability of that class, rounded to 1e-4; 0 without a class,
            and of a model that answers with labels alone.
        attacked: name of the class that the model answers to the point that broke the sample; for a
            randomised model the one that most of its successful draws name.
        broken_by: label of the attack that broke it, the first one in the list; attacks that do not count for
            the robust accuracy do not stand here. Both are None where no attack broke it, and where it is
            wrong on the clean image, since attacks do not run there.
        threats: of a union: name of each ball -> label of the attack that broke the sample in it, or None.
            Empty for one ball, and then not written.

    Raises ValueError when the fields contradict each other.
    """

    id: int
    file: str | None
    label: str
    clean: str | None
    confidence: float
    attacked: str | None
    broken_by: str | None
    threats: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence={self.confidence} is no probability")
        if (self.attacked is None) != (self.broken_by is None):
            raise ValueError(f"attacked={self.attacked!r}, but broken_by={self.broken_by!r}")
        if self.broken_by is not None and not self.correct:
            raise ValueError(f"broken by {self.broken_by!r}, but wrong on the clean image")
        if self.threats and (self.broken_by is None) != (not any(self.threats.values())):
            raise ValueError(f"broken_by={self.broken_by!r}, but by ball {dict(self.threats)}")

    @property
    def correct(self) -> bool:
        """Whether the model is right on the clean image."""
        return self.clean == self.label

    def to_json(self) -> dict[str, Any]:
        """One JSON object: the fields."""
        own = plain(self)
        if not self.threats:
            del own["threats"]
        return {"schema_version": SCHEMA_VERSION, "kind": "sample", **own}

    @classmethod
    def from_json(cls, row: Any) -> SampleRow:
        """The line again. Raises DataError E-RECORD as `rebuild`."""
        return rebuild(row, ("sample",), partial(from_fields, cls))
