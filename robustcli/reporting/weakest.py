"""Where a model is weakest: the classes and the images of an evaluation, from its records."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.proportions import Rate
from robustcli.records.eval import EvalRow
from robustcli.records.sample import SampleRow
from robustcli.reporting.cells import Cell, percent, share_of
from robustcli.reporting.tables import Table

_CLASSES = 10  # shown at most
_IMAGES = 5  # shown at most, of those wrong without an attack and of those that one broke


def weakest_classes(clean: EvalRow, worst: EvalRow) -> list[str]:
    """Names of the classes that have samples: the lowest robust accuracy first, then the lowest clean one."""

    def accuracies(name: str) -> tuple[float, float]:
        (standing, n), (right, _) = worst.per_class[name], clean.per_class[name]
        return standing / n, right / n

    return sorted((name for name, (_, n) in worst.per_class.items() if n), key=accuracies)


def weakest_images(samples: Sequence[SampleRow], stages: Sequence[str]) -> list[SampleRow]:
    """Images that are wrong without an attack, the surest answer first, then those that broke first.

    Of the images that one attack broke, the least sure come first.

    stages: labels of the attacks in the order they ran.
    """
    place = {label: k for k, label in enumerate(stages)}
    wrong = [sample for sample in samples if not sample.correct]
    broken = [(sample, sample.broken_by) for sample in samples if sample.broken_by is not None]
    wrong.sort(key=lambda sample: -sample.confidence)
    broken.sort(key=lambda pair: (place[pair[1]], pair[0].confidence))
    return wrong[:_IMAGES] + [sample for sample, _ in broken[:_IMAGES]]


def weak_class_table(clean: EvalRow, worst: EvalRow) -> Table:
    """Clean and robust accuracy of the weakest classes."""
    weakest = weakest_classes(clean, worst)
    rows: list[list[Cell]] = [[name, _rate(clean, name), _rate(worst, name)] for name in weakest[:_CLASSES]]
    columns = ["class", "clean accuracy", f"accuracy under {worst.title}"]
    note = "Brackets: 95 % Wilson interval."
    if len(weakest) > _CLASSES:
        note = f"The weakest {_CLASSES} of {len(weakest)} classes; summary.md has all. {note}"
    return Table("accuracy per class, the weakest first", columns, rows, note)


def _rate(row: EvalRow, name: str) -> Rate | None:
    return share_of(*row.per_class[name])


def weak_image_table(weakest: Sequence[SampleRow]) -> Table:
    """One line per image. The column of files is left out where the data have none."""
    columns = ["sample", "label", "without attack", "under attack", "broken by"]
    rows: list[list[Cell]] = [
        [sample.id, sample.label, _clean(sample), sample.attacked, sample.broken_by] for sample in weakest
    ]
    if any(sample.file is not None for sample in weakest):
        columns.insert(1, "file")
        for row, sample in zip(rows, weakest, strict=True):
            row.insert(1, sample.file)
    note = "Wrong without an attack, the surest first; then those that broke first. All are in samples.jsonl."
    return Table("weakest images", columns, rows, note)


def _clean(sample: SampleRow) -> str:
    """The answer to the clean image, with its confidence where the model tells one."""
    if sample.clean is None:
        return "NaN or Inf"
    if not sample.confidence:
        return sample.clean
    return f"{sample.clean} ({percent(sample.confidence)} %)"
