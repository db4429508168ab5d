"""Pictures as files: NAME.png, and the numbers that it shows beside it as NAME.csv."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from robustcli.reporting.figure import write_picture
from robustcli.reporting.picture import Picture


def save_pictures(pictures: Iterable[Picture], folder: Path) -> list[Path]:
    """Write each picture and its table, atomically; returns the PNG files. The folder is made.

    Raises ResourceError when a file cannot be written.
    """
    written = []
    for picture in pictures:
        path = folder / f"{picture.name}.png"
        write_picture(path, picture.png)
        write_picture(path.with_suffix(".csv"), picture.table.csv().encode())
        written.append(path)
    return written
