"""A data set ready for use: its splits, each read when it is needed, and what describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TypeVar

from robustcli.config.sections import Augment, DataConfig
from robustcli.data.augment import choose_augment
from robustcli.data.check import check_split, check_two_classes
from robustcli.data.normalisation import Channels, normalisation
from robustcli.data.sampling import carve_part, source_of
from robustcli.data.split import PARTS, Split
from robustcli.data.stored import Loaded, Stored
from robustcli.data.unreadable import readable
from robustcli.errors import DataError, ResourceError
from robustcli.registry import datasets

T = TypeVar("T")
_TEST_FRACTION = 0.25  # of data without a test split, where data.test_fraction is null


@contextmanager
def enough_memory(config: DataConfig) -> Iterator[None]:
    """Raises ResourceError E-MEMORY where the block runs out of memory."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(
            f"no memory to load {config.name}",
            hint="data.storage=stream, or a smaller data.size",
            code="E-MEMORY",
        ) from error


class DataBundle:
    """train, val and test, and what describes them. A split is read when it is first asked for.

    Args:
        config: the data section.
        entry: registered name; its facts give presets, augment, mean and std.
        name: as shown in tables.
        where: path or name, for messages.
        stored: what the data set stores.
        notes: what the loader has to say.
        explain: error of a split -> the same error in words of the data set, such as a line of its table.

    Attributes:
        classes: names, class k is classes[k].
        presets: norm -> usual radius.
        notes: what was chosen on the way, in plain words. warnings: what looks wrong.
        digest: SHA-256 of the splits that `need` has read, see `Loaded`.
        whole: digest -> whether all images of the user's own data are the test; see `load_data`.
    """

    def __init__(
        self,
        config: DataConfig,
        entry: str,
        *,
        name: str,
        where: str,
        stored: Stored,
        notes: Sequence[str] = (),
        explain: Callable[[DataError], DataError] = lambda error: error,
    ) -> None:
        self.name, self.where, self.stored = name, where, stored
        self.classes, self.num_classes = stored.classes, len(stored.classes)
        self.notes, self.warnings = list(notes), list[str]()
        self.digest = ""
        self.whole: Callable[[str], bool] = lambda digest: False
        self._config, self._entry, self._explain = config, entry, explain
        self._loaded: dict[str, Loaded] = {}
        self._splits: dict[str, Split] = {}

    @property
    def train(self) -> Split:
        """The images to train on."""
        return self._split("train")

    @property
    def val(self) -> Split:
        """The images that choose the best epoch; empty where data.val_fraction is 0."""
        return self._split("val")

    @property
    def test(self) -> Split:
        """The images to measure on."""
        return self._split("test")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        if not self._loaded:
            self.need(PARTS)
        return next(split.shape for loaded in self._loaded.values() for split in loaded.splits.values())

    @property
    def image_size(self) -> str:
        """8x8, or 8x8 (files: 640x480)."""
        _, height, width = self.shape
        made_from = next((loaded.made_from for loaded in self._loaded.values() if loaded.made_from), "")
        return f"{height}x{width}" + (f" (files: {made_from})" if made_from else "")

    @property
    def presets(self) -> dict[str, float]:
        """Norm -> usual radius, in pixel units."""
        return dict(datasets.get(self._entry).facts.presets)

    @cached_property
    def augment(self) -> Augment:
        """Of training images, as resolved from the configuration and the data set."""
        facts = datasets.get(self._entry).facts
        return self._noted(*choose_augment(self._config, facts.augment, self.shape[1]))

    @property
    def mean(self) -> Channels:
        """Per channel, on the [0, 1] scale, for the model's own normalisation."""
        return self._statistics[0]

    @property
    def std(self) -> Channels:
        """Standard deviation per channel, on the [0, 1] scale."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[Channels, Channels]:
        part = "test" if self._all_test() else "train"
        mean, std, note = normalisation(datasets.get(self._entry).facts, self._split(part), part)
        return self._noted((mean, std), note)

    def _all_test(self) -> bool:
        """Whether no image is left to train on."""
        names = self.stored.names
        return self._test_fraction() == 1 if len(names) == 1 else "train" not in names

    def need(self, parts: Sequence[str]) -> None:
        """Read and check train, val or test now, and nothing that they do not need.

        Raises:
            DataError: one class alone, an empty split, a class without training images, or unreadable images
                that may not be skipped.
            ConfigError: an augmentation that does not fit the images.
        """
        if not parts:
            return
        with self._explained(), enough_memory(self._config):
            names = [name for name in self.stored.names if name in {self._source(part) for part in parts}]
            self.digest = self._read(names).digest
            check_two_classes(self.classes, where=self.where)
        for part in PARTS:
            if part in parts:
                self._split(part)
        if "train" in parts:
            _ = self.augment

    @property
    def read_names(self) -> tuple[str, ...]:
        """The stored splits that `digest` covers."""
        return tuple(name for name, loaded in self._loaded.items() if loaded.digest == self.digest)

    def digest_of(self, names: Sequence[str]) -> str:
        """SHA-256 of these stored splits."""
        known = self._loaded.get(names[0])
        if known is not None and list(known.splits) == list(names):
            return known.digest
        return self.stored.load(names).digest

    def _read(self, names: Sequence[str]) -> Loaded:
        """The stored splits of these names; those that were not read before are read together."""
        missing = [name for name in names if name not in self._loaded]
        if missing:
            loaded = self.stored.load(missing)
            self._loaded |= dict.fromkeys(missing, loaded)
            self.notes += loaded.notes
            self.warnings += loaded.warnings
        return self._loaded[names[0]]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise self._explain(error) from error

    def _source(self, part: str) -> str:
        return source_of(self.stored.names, part, where=self.where)

    def _split(self, part: str) -> Split:
        if part not in self._splits:
            with self._explained():
                self._splits[part] = self._carved(part)
        return self._splits[part]

    def _carved(self, part: str) -> Split:
        """One split, without the images that may be skipped."""
        config, source = self._config, self._source(part)
        loaded = self._read([source])
        positions, notes = carve_part(
            self.stored.names,
            part,
            self.stored.labels,
            val_fraction=float(config.val_fraction),
            test_fraction=self._test_fraction(),
            seed=config.split_seed,
        )
        kept, skip_notes = readable(config, part, positions, loaded.faults.get(source, {}))
        split = loaded.splits[source].subset(kept)
        self.notes += [*notes, *skip_notes, *self._complete(split, part, source)]
        return split

    def _complete(self, split: Split, part: str, source: str) -> list[str]:
        """Check that the split has images, and of a training split every class; else a note on what lacks."""
        if part == "val" and not len(split) and self._config.val_fraction == 0:
            return ["val: none (data.val_fraction=0): the last checkpoint is the best"]
        lacking = check_split(split.labels, self.classes, part, where=self.where, every_class=part == "train")
        if not lacking:
            return []
        note = f"{part} has no image of {len(lacking)} of {self.num_classes} classes"
        if part == "val" and source != "val":
            return [f"{note}: raise data.val_fraction"]
        return [f"{note}: {', '.join(lacking[:5])}{' …' if len(lacking) > 5 else ''}"]

    def _test_fraction(self) -> float:
        if self._config.test_fraction is not None:
            return float(self._config.test_fraction)
        own = datasets.get(self._entry).facts.path or self.stored.names != ("train",)
        return 1.0 if own and self.whole(self.digest) else _TEST_FRACTION

    def _noted(self, value: T, note: str) -> T:
        self.notes.append(note)
        return value
