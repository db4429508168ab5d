from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import PIL
import pytest
import torch

from robustcli.config.sections import DataConfig
from robustcli.data import cache, decoded
from robustcli.data import listings as module
from robustcli.data import split as split_module
from robustcli.data.ahead import ahead
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data
from robustcli.data.extra import extra_split
from robustcli.data.images import Decoder
from robustcli.data.mixture import MixedSplit, epoch_batches
from robustcli.data.sets.folder import find_splits
from robustcli.data.split import MemorySplit, Store
from robustcli.errors import DataError, Interrupted, ResourceError
from robustcli.runtime.signals import StopFlag
from robustcli.store import disk
from robustcli.store.lock import RunLock

CPU, META = torch.device("cpu"), torch.device("meta")
SPLITS = {"train/cat": 12, "train/dog": 8, "test/cat": 4, "test/dog": 3}
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are decoded."""
    found: list[str] = []
    original = Decoder.__call__

    def counted(self, relative):
        found.append(relative)
        return original(self, relative)

    monkeypatch.setattr(Decoder, "__call__", counted)
    return found


def load(root: Path, storage: str = "cached", **options) -> DataBundle:
    return load_data(DataConfig(name=f"folder:{root}", storage=storage, **{"workers": 0, **options}))


def place(root: Path) -> Path:
    """The one folder of decoded images."""
    (found,) = (root.parent / "home/robustcli/decoded").iterdir()
    return found


def names(root: Path) -> set[str]:
    return {path.name for path in place(root).iterdir()}


def skipped(bundle: DataBundle) -> list[str]:
    return [note for note in bundle.notes if note.startswith("skipped")]


def same(one: DataBundle, other: DataBundle) -> None:
    assert one.digest == other.digest and one.classes == other.classes and one.shape == other.shape
    assert (one.mean, one.std, one.augment, skipped(one)) == (
        other.mean,
        other.std,
        other.augment,
        skipped(other),
    )
    for part in ("train", "val", "test"):
        a, b = getattr(one, part), getattr(other, part)
        assert torch.equal(a.labels, b.labels) and torch.equal(a.ids, b.ids)
        order = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
        for batches in ([order], list(order.split(3)), []):
            for x, y in zip(a.stream(batches, CPU), b.stream(batches, CPU), strict=True):
                assert all(torch.equal(p, q) and p.dtype == q.dtype for p, q in zip(x, y, strict=True))


def how(bundle: DataBundle) -> str:
    (note,) = [note for note in bundle.notes if note.startswith("storage: cached")]
    return note.rpartition("(")[2]


# ---- the same as in memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"mode": "L"}, {"size": (10, 12)}], ids=["colour", "grey", "resized"]
)
def test_bit_for_bit_what_memory_gives(make_folder, calls: list[str], options) -> None:
    root = make_folder(SPLITS, **options)
    size = 6 if "size" in options else None
    memory = load(root, "memory", size=size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that cannot be written to
        first = load(root, size=size)
    calls.clear()
    second = load(root, size=size)
    assert not calls and how(first).startswith("decoded now in ") and how(second) == "found)"
    assert f"27 images of {memory.shape[1]}x{memory.shape[2]}, {place(root)}" in second.notes[0]
    same(memory, first)
    same(memory, second)
    assert torch.equal(first.train.raw(torch.tensor([3, 1])), memory.train.raw(torch.tensor([3, 1])))
    assert first.train.store.mapped and second.test.store.mapped and second.train.store is second.test.store
    assert (
        os.path.getsize(place(root) / "pixels.u8") == 27 * memory.shape[0] * memory.shape[1] * memory.shape[2]
    )


def test_colour_that_the_probes_missed(make_folder, picture, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(SPLITS, mode="L")
    picture(5).save(root / "train/dog/003.png")
    monkeypatch.setattr(module, "_PROBES", 2)
    assert module._channels([f"train/dog/{k:03d}.png" for k in range(8)], Decoder(str(root))) == 1
    same(load(root, "memory"), load(root))
    assert names(root) == {"pixels.u8", "about.json", ".lock"}


def test_extra_images_and_mixed_batches(make_folder, tmp_path: Path) -> None:
    root = make_folder(SPLITS)
    root.rename(tmp_path / "extra")
    extra, root = (
        tmp_path / "extra",
        make_folder({"train/cat": 9, "train/dog": 9, "test/cat": 1, "test/dog": 1}),
    )
    (root / "train/cat/000.png").unlink()
    seen = []
    for storage in ("memory", "cached", "cached"):
        bundle = load(root, storage)
        config = DataConfig(name=f"folder:{root}", storage=storage, workers=0)
        train = MixedSplit(bundle.train, extra_split(f"folder:{extra}", bundle, config), 0.5)
        seen.append(
            [tensor for batch in train.stream(epoch_batches(train, 4, 0, 0), CPU) for tensor in batch]
        )
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("skip", [True, False])
def test_unreadable_images(make_folder, skip: bool) -> None:
    root = make_folder(SPLITS)
    train = load(root, "memory").train.ids
    for k in (2, 5):
        index = int(train[k])
        (
            root / (f"train/cat/{index:03d}.png" if index < 12 else f"train/dog/{index - 12:03d}.png")
        ).write_bytes(b"broken")
    options = {"bad_image": "skip", "max_bad": 0.2} if skip else {}
    if skip:
        memory = load(root, "memory", **options)
        assert len(skipped(memory)) == 2
        for _ in range(2):
            same(memory, load(root, **options))
        return
    lines = []
    for storage in ("memory", "cached", "cached"):
        with pytest.raises(DataError) as caught:
            load(root, storage)
        lines.append(caught.value.line())
    assert lines[0] == lines[1] == lines[2] and "(+1 more in train)" in lines[0]


def test_wrong_shape_stops_before_anything_is_written(make_folder) -> None:
    root = make_folder(SPLITS, size=(10, 12))
    with pytest.raises(DataError, match="not square: 3x12x10"):
        load(root)
    assert names(root) == {".lock"}


# ---- when it is made again ---------------------------------------------------------------------------------


def test_a_changed_file_is_seen(make_folder, picture) -> None:
    root = make_folder(SPLITS)
    first = load(root)
    file = root / "train/cat/003.png"
    before = file.stat()
    picture(77).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    second = load(root)
    assert how(second).startswith("decoded") and second.digest != first.digest
    same(load(root, "memory"), second)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 2))
    assert how(load(root)).startswith("decoded") and how(load(root)) == "found)"


def test_what_the_key_holds(make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(SPLITS)
    load(root)
    monkeypatch.chdir(root.parent)
    assert how(load(Path("images"))) == "found)", "another spelling of the same folder"
    assert how(load(root, val_fraction=0.3, augment="none")) == "found)"
    assert how(load(root, size=4)).startswith("decoded")
    assert how(load(root, cache=str(tmp_path / "elsewhere"))).startswith("decoded")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["decoded"]
    with monkeypatch.context() as patch:
        patch.setattr(PIL, "__version__", "0.0")
        assert how(load(root)).startswith("decoded")
    for part in ("train", "test"):
        (root / part / "dog").rename(root / part / "wolf")
    renamed = load(root)
    assert how(renamed).startswith("decoded") and renamed.digest == load(root, "memory").digest


def test_other_labels_of_the_same_files(make_folder) -> None:
    """A table gives them, as in GTSRB."""
    root = make_folder(SPLITS)
    listers, classes, _ = find_splits(root, DataConfig(), (str(root),))
    listings = {part: lister() for part, lister in listers.items()}
    swapped = {
        part: replace(listing, labels=[1 - label for label in listing.labels])
        for part, listing in listings.items()
    }
    made = []
    for given in (listings, swapped):
        listers = {part: partial(given.get, part) for part in given}
        for storage in ("memory", "cached"):
            config = DataConfig(storage=storage, name=f"folder:{root}", workers=0)
            made.append(
                module.bundle_listings(config, "folder", Decoder(str(root)), listers, classes, name="x")
            )
            made[-1].need(("train", "val", "test"))
    same(made[0], made[1])
    same(made[2], made[3])
    assert made[0].digest != made[2].digest


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert cache.cache_folder("~/x") == Path("/h/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache.cache_folder(None) == Path("/c/robustcli") and cache.cache_folder("x") == Path("x")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache.cache_folder(None) == Path("/h/.cache/robustcli")


def about(**changes: object) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        found = json.loads((folder / "about.json").read_text())
        found.update(changes)
        (folder / "about.json").write_text(
            json.dumps({key: value for key, value in found.items() if value is not None})
        )

    return act


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: os.truncate(f / "pixels.u8", 100), "pixels.u8 has 100 of 5184 bytes"),
    "longer": (lambda f: os.truncate(f / "pixels.u8", 5185), "pixels.u8 has 5185 of 5184 bytes"),
    "other bytes": (lambda f: (f / "pixels.u8").write_bytes(bytes(5184)), "pixels.u8 was written to since"),
    "no time": (about(mtime_ns=None), "about.json is damaged"),
    "gone": (lambda f: (f / "pixels.u8").unlink(), "cannot be read: No such file"),
    "not JSON": (lambda f: (f / "about.json").write_bytes(b'{"shape": [27'), "about.json is damaged"),
    "not text": (lambda f: (f / "about.json").write_bytes(b"\xff\xfe\x00"), "about.json is damaged"),
    "empty": (lambda f: (f / "about.json").write_bytes(b""), "about.json is damaged"),
    "a list": (lambda f: (f / "about.json").write_text("[]"), "about.json is damaged"),
    "no digest": (about(digest=None), "about.json is damaged"),
    "short digest": (about(digest="12"), "about.json is damaged"),
    "other count": (about(shape=[26, 3, 8, 8]), "about.json is damaged"),
    "text in shape": (about(shape=[27, "3", 8, 8]), "about.json is damaged"),
    "three numbers": (about(shape=[27, 3, 64]), "about.json is damaged"),
    "row beyond the end": (about(faults=[27]), "about.json is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_never_used(make_folder, kind: str) -> None:
    root = make_folder(SPLITS)
    load(root)
    act, text = DAMAGE[kind]
    act(place(root))
    again = load(root)
    (note,) = [note for note in again.notes if note.startswith("cache:")]
    assert text in note and note.endswith("decoded again") and how(again).startswith("decoded")
    same(load(root, "memory"), again)
    assert how(load(root)) == "found)"


def test_an_image_that_can_be_read_again(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk that was away, a permission: neither size nor time of the file tells."""
    root = make_folder(SPLITS)
    original = Decoder.__call__
    victim = str(load(root, "memory").train.ids[0].item())

    def away(self, relative):
        if relative.endswith(
            f"cat/{victim.zfill(3)}.png" if int(victim) < 12 else f"dog/{int(victim) - 12:03d}.png"
        ) and relative.startswith("train"):
            raise DataError("away", where=relative, code="E-FILE")
        return original(self, relative)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "__call__", away)
        assert len(load(root, bad_image="skip", max_bad=0.2).train) == 17
    healed = load(root)
    assert any("1 of 1 unreadable images can be read now" in note for note in healed.notes)
    same(load(root, "memory"), healed)


# ---- kills, other processes, disks -------------------------------------------------------------------------


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(act: Callable[[], object]) -> None:
    process = FORK.Process(target=act)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["decode", "fsync", "replace", "digest", "about"])
def test_a_kill_leaves_nothing_that_is_taken_for_whole(make_folder, moment: str) -> None:
    root = make_folder(SPLITS)

    def work() -> None:
        if moment == "decode":
            original = decoded.write_all
            decoded.write_all = lambda fd, data: (
                die() if os.lseek(fd, 0, os.SEEK_CUR) > 2000 else original(fd, data)
            )
        elif moment == "digest":
            module.digest_memory = die
        elif moment == "about":
            decoded.write_json = die
        else:
            setattr(os, moment, die)
        load(root)

    killed(work)
    left = names(root) - {".lock"}
    assert left == ({"pixels.u8"} if moment in ("digest", "about") else left) and len(left) == 1
    again = load(root)
    assert how(again).startswith("decoded") and names(root) == {"pixels.u8", "about.json", ".lock"}
    assert not any(note.startswith("cache:") for note in again.notes), "a kill is no damage"
    same(load(root, "memory"), again)


def test_a_kill_while_damage_is_repaired(make_folder) -> None:
    root = make_folder(SPLITS)
    load(root)
    os.truncate(place(root) / "pixels.u8", 100)

    def work() -> None:
        module.digest_memory = die
        load(root)

    killed(work)
    assert names(root) == {"pixels.u8", ".lock"}
    same(load(root, "memory"), load(root))


def test_an_error_while_decoding_leaves_nothing(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(SPLITS)

    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(decoded, "write_all", fails)
        with pytest.raises(RuntimeError, match="a bug"):
            load(root)
    assert names(root) == {".lock"}
    same(load(root, "memory"), load(root))


def test_two_processes_decode_once(make_folder, tmp_path: Path) -> None:
    root = make_folder(SPLITS)
    together, results = FORK.Barrier(2), FORK.SimpleQueue()
    alone, written = cache._alone, str(tmp_path / "written")

    def work() -> None:
        def both(folder):
            together.wait(60)  # both have looked, and found nothing
            return alone(folder)

        cache._alone = both
        original = decoded._decode

        def counted(*args):
            with open(written, "a") as file:
                file.write("once\n")
            return original(*args)

        decoded._decode = counted
        bundle = load(root)
        results.put((how(bundle), bundle.digest))

    processes = [FORK.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    found = sorted(results.get() for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    digest = load(root, "memory").digest
    assert found[0][0].startswith("decoded") and found[1] == ("found)", digest) and found[0][1] == digest
    assert Path(written).read_text() == "once\n"


def test_it_waits_for_the_one_who_decodes(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(SPLITS)
    load(root)
    (place(root) / "about.json").unlink()
    polled, done = threading.Event(), []
    monkeypatch.setattr(cache.time, "sleep", lambda seconds: polled.set())
    with RunLock(place(root)):
        thread = threading.Thread(target=lambda: done.append(load(root)))
        thread.start()
        assert polled.wait(60) and not done
    thread.join(60)
    assert how(done[0]).startswith("decoded")


def test_a_file_system_without_locks(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(SPLITS)

    def none(directory: Path) -> RunLock:
        raise ResourceError("this file system has no locks", where=str(directory), code="E-LOCK-FS")

    monkeypatch.setattr(cache, "RunLock", none)
    load(root)
    (place(root) / "about.json").unlink()
    (place(root) / ".tmp-1-other").write_bytes(b"another process may be writing it")
    same(load(root, "memory"), load(root))
    assert names(root) == {"pixels.u8", "about.json", ".tmp-1-other"}


def refused(root: Path, **options) -> ResourceError:
    with pytest.raises(ResourceError) as caught:
        load(root, **options)
    error = caught.value
    assert error.exit_code == 6 and "data.cache" in error.hint and "--out" not in error.line()
    return error


def test_no_room(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(SPLITS, size=64)
    monkeypatch.setattr(disk, "free_bytes", lambda path: 300_000)
    error = refused(root)
    assert (
        error.code == "E-DISK"
        and f"need 0.3 MB, have 0.3 MB at {place(root)}" in error.what
        and "data.storage=stream" in error.hint
    )
    assert names(root) == {".lock"}


def test_disk_full_while_writing(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(SPLITS)
    original, count = decoded.write_all, []

    def full(fd: int, data: bytes) -> None:
        count.append(fd)
        if len(count) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(decoded, "write_all", full)
        error = refused(root)
    assert error.code == "E-DISK" and "disk full" in error.what and names(root) == {".lock"}
    same(load(root, "memory"), load(root))


def test_unwritable_folder(make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(SPLITS)
    (tmp_path / "file").write_text("x")
    error = refused(root, cache=str(tmp_path / "file"))
    assert error.code == "E-WRITE" and str(tmp_path / "file") in error.where

    def readonly(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    load(root)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", readonly)
        patch.setattr(cache, "RunLock", readonly)
        assert how(load(root)) == "found)", "what is there can be used"
        assert "Read-only file system" in refused(root, cache=str(tmp_path / "other")).what


def test_a_folder_that_cannot_be_looked_at(
    make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(SPLITS)
    assert refused(root, cache=str(tmp_path / ("x" * 300))).code == "E-WRITE"

    def hidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", hidden)
    monkeypatch.setattr(Path, "mkdir", hidden)
    error = refused(root)
    assert error.code == "E-WRITE" and "Permission denied" in error.what


@pytest.mark.parametrize("waiting", [False, True])
def test_a_stop_is_heeded_while_decoding_and_while_waiting_for_another(make_folder, waiting: bool) -> None:
    root = make_folder(SPLITS)
    load(root)
    (place(root) / "about.json").unlink()
    lock = RunLock(place(root)) if waiting else None
    with StopFlag() as stop, pytest.raises(Interrupted):
        stop.request()
        load(root)
    if lock is not None:
        lock.close()
    assert names(root) == {".lock", "pixels.u8"} and how(load(root)).startswith("decoded")


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="needs the size of the memory")
def test_a_file_larger_than_the_memory_can_be_mapped(tmp_path: Path) -> None:
    size = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with open(tmp_path / "large", "wb") as file:
        try:
            file.truncate(size)  # takes no room
        except OSError as error:
            pytest.skip(str(error))
    assert int(decoded._mapped(tmp_path / "large", (size,))[size - 1]) == 0


# ---- batches ahead of the reader ---------------------------------------------------------------------------


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("robustcli-ahead")]


def test_ahead_keeps_the_order_and_makes_two_more() -> None:
    for count in (0, 1, 2, 3, 9):
        assert list(ahead(lambda k: k * k, range(count))) == [k * k for k in range(count)]
    begun: list[tuple[int, int]] = []
    stream = ahead(lambda k: begun.append((k, threading.get_ident())), range(9))
    for k in range(4):
        next(stream)
        assert k < len(begun) <= k + 3
    stream.close()
    assert [k for k, _ in begun] == list(range(len(begun))) and len(begun) <= 6 and not running()
    assert len({ident for _, ident in begun} - {threading.get_ident()}) == 1


def test_the_next_two_are_made_while_the_reader_works() -> None:
    made = [threading.Event() for _ in range(9)]
    stream = ahead(lambda k: made[k].set(), range(9))
    next(stream)
    assert made[2].wait(60) and not made[3].is_set()
    next(stream)
    assert made[3].wait(60)
    stream.close()


def test_an_exception_reaches_the_reader_in_its_place() -> None:
    def job(k: int) -> int:
        if k == 2:
            raise DataError("broken", where=str(k))
        return k

    stream = ahead(job, range(9))
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(DataError, match="broken; 2"):
        next(stream)
    assert not running() and list(stream) == []


def mapped(count: int = 24) -> MemorySplit:
    pixels = torch.arange(count * 4, dtype=torch.uint8).reshape(count, 1, 2, 2)
    return MemorySplit(Store(pixels, mapped=True), torch.arange(count) % 2, ("a", "b"))


def test_no_thread_is_left() -> None:
    split, batches = mapped(), list(torch.arange(24).split(2))
    assert len(list(split.stream(batches, CPU))) == 12 and not running()
    stream = split.stream(batches, CPU)
    next(stream)
    assert len(running()) == 1
    stream.close()  # type: ignore[attr-defined]
    assert not running()
    with pytest.raises(ZeroDivisionError):
        for _ in split.stream(batches, CPU):
            assert running()
            raise ZeroDivisionError
    assert not running()
    with pytest.raises(IndexError):
        list(split.stream([torch.tensor([0]), torch.tensor([24])], CPU))
    assert not running()


def test_a_subset_of_a_mapped_split() -> None:
    part = mapped().subset(torch.tensor([7, 3, 11]))
    ((x, y, ids),) = part.stream([torch.tensor([2, 0])], CPU)
    assert (
        ids.tolist() == [11, 7]
        and y.tolist() == [1, 1]
        and (x[:, 0, 0, 0] * 255).round().tolist() == [44, 28]
    )


def test_pixels_in_memory_are_gathered_directly() -> None:
    split = mapped()
    split.store.mapped = False
    next(iter(split.stream([torch.arange(4)], CPU)))
    assert not running() and split.store.on(CPU) is split.store.pixels


@pytest.mark.parametrize(("free", "fits"), [(2 * 96, True), (2 * 96 - 1, False), (None, True)])
def test_what_does_not_fit_on_the_device_is_fed(
    monkeypatch: pytest.MonkeyPatch, free: int | None, fits: bool
) -> None:
    split = mapped()
    split.store.mapped = False
    asked = []
    monkeypatch.setattr(split_module, "free_bytes", lambda device: asked.append(device) or free)
    used = []
    monkeypatch.setattr(split_module, "ahead", lambda job, items: used.append(1) or ahead(job, items))
    for _ in range(2):
        for x, y, ids in split.stream(list(torch.arange(24).split(5)), META):
            assert (
                x.device == y.device == ids.device == META
                and x.dtype == torch.float32
                and y.dtype == ids.dtype == torch.int64
            )
    assert asked == [META] and bool(used) is not fits, "the answer is kept"
    assert (split.store.on(META) is not None) is fits
