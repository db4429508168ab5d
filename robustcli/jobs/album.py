"""What the processes of a team made of the images of `robustcli attack`, sample by sample.

Each batch is noted in a file before its verdicts are kept, so what a lost process noted may come twice. The
notes of one sample are equal whoever made them. The images lie beside the notes, and stay there: a rank 0
that is lost while it puts them together is started again, and finds all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robustcli.runtime.team import Team
from robustcli.store.atomic import strict_json, write_atomic


@dataclass(frozen=True)
class Scored:
    """One attacked image.

    Args:
        id: of the sample.
        fell: an attack broke it, as floats.
        broken: it is broken as an 8-bit image, too.
        right_float, right_8bit: the model is right about it, attacked.
        line: its line of images.jsonl; None where no file was written.
    """

    id: int
    fell: bool
    broken: bool
    right_float: bool
    right_8bit: bool
    line: dict[str, Any] | None = None


class Album:
    """The notes of all processes, and their images, in one folder."""

    def __init__(self, team: Team) -> None:
        self._rank, self.folder = team.rank, team.folder / "album"
        self.folder.mkdir(exist_ok=True)

    def note(self, images: Sequence[Scored]) -> None:
        """Note a batch of this process."""
        name = f"{images[0].id}-{self._rank}.json"
        write_atomic(self.folder / name, strict_json([asdict(image) for image in images]).encode())

    def images(self) -> list[Scored]:
        """All that was noted, in the order of ids."""
        found: dict[int, Scored] = {}
        for path in self.folder.glob("*.json"):
            for image in json.loads(path.read_bytes()):
                found[image["id"]] = Scored(**image)
        return [found[sample] for sample in sorted(found)]
