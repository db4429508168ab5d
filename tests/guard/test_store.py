"""The evidence store: what it acknowledged survives, what it forgot is gone, its log cannot be bent."""

import os
import signal
import sqlite3
import stat
import sys
import time

import pytest
from evidence import MODEL, child, pixels, seen

from robustcli.errors import DataError, ResourceError, UsageError

pytest.importorskip("sqlalchemy", reason="the extra guard is not installed")

from robustcli.guard.store import EvidenceStore, Limits, Review  # noqa: E402

__all__ = ["child"]
posix = pytest.mark.skipif(os.name != "posix", reason="forks")


@pytest.fixture
def store(tmp_path):
    with EvidenceStore.open(tmp_path / "evidence" / "store.db", create=True) as opened:
        yield opened


def rows(store, statement, *values):
    """Run a statement on the file, beside the store, as somebody who bends it would."""
    with sqlite3.connect(store.where) as raw:
        return raw.execute(statement, values).fetchall()


def kept(store):
    return {each.hash for each in store.evidence()}


# ---- what is in it -----------------------------------------------------------------------------------------


def test_an_alarm_is_kept_with_its_image_and_found_again(store):
    names = store.record(MODEL, [seen(), seen(pixels("a"), scores={"energy": 2.5, "odd": float("nan")})])
    assert names[0] is None and store.image(names[1]) == pixels("a")
    (found,) = store.evidence()
    assert (found.hash, found.model, found.label, found.confidence) == (names[1], MODEL, 1, 0.75)
    assert found.scores == {"energy": 2.5, "odd": None} and found.review is None and found.seen == 1
    assert [each.accepted for each in store.observations()] == [True, False]
    assert [each.accepted for each in store.observations(last=1)] == [False]
    assert store.observations(since=time.time() + 60) == [] == store.observations(model="b" * 64)


def test_the_same_image_again_is_counted(store):
    at = [time.time() + k for k in range(3)]
    first = store.record(MODEL, [seen(pixels("a"), time=at[0])])
    assert store.record("b" * 64, [seen(pixels("a"), time=when) for when in at[1:]]) == first * 2
    (found,) = store.evidence()
    assert (found.seen, found.time, found.last, found.model) == (3, at[0], at[2], MODEL)
    assert store.counts()["image_bytes"] == 600 and store.counts()["observations"] == 3


@posix
def test_nobody_else_can_read_it(store):
    store.record(MODEL, [seen(pixels("a"))])
    folder = os.path.dirname(store.where)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert {stat.S_IMODE(os.stat(f"{folder}/{name}").st_mode) for name in os.listdir(folder)} == {0o600}
    assert os.path.exists(store.where + "-wal")


@pytest.mark.parametrize("text", ["3", "0", "clean", "clean:12", "unusable"])
def test_labels_are_read_as_they_are_written(text):
    assert str(Review.parse(text)) == text


@pytest.mark.parametrize("text", ["", "-1", "cat", "clean:", "clean:x", "unusable:3", "3.0", "²"])
def test_other_labels_are_refused(text):
    with pytest.raises(UsageError, match="is no label"):
        Review.parse(text)


def test_reviews_are_kept_and_logged(store):
    (name,) = store.record(MODEL, [seen(pixels("a"))])
    store.review(name, Review.parse("3"), by="ann")
    store.review(name, Review.parse("clean:4"))
    (found,) = store.evidence(reviewed=True)
    assert found.review == Review("clean", 4) and found.reviewed is not None
    assert store.evidence(reviewed=False) == []
    bodies = [entry.body for entry in store.entries() if entry.kind == "review"]
    assert [(body["review"], body["before"], body["by"]) for body in bodies] == [
        ("3", None, "ann"),
        ("clean:4", "3", ""),
    ]
    with pytest.raises(UsageError, match="no image"):
        store.review("f" * 64, Review("unusable"))


# ---- what it may hold --------------------------------------------------------------------------------------


def test_beyond_its_size_the_oldest_without_a_review_go_first(tmp_path):
    with EvidenceStore.open(tmp_path / "s.db", create=True, limits=Limits(bytes=6000)) as store:
        names = [store.record(MODEL, [seen(pixels(k), time=float(time.time()))])[0] for k in range(10)]
        store.review(names[0], Review("unusable"))
        store.record(MODEL, [seen(pixels(10))])  # 6,600 bytes: down to 5,400 or less
        assert kept(store) >= {names[0], *names[3:]} and not kept(store) & set(names[1:3])
        counts = store.counts()
        assert counts["dropped_for_room"] == 2 and counts["image_bytes"] == 5400 and counts["images"] == 9
        assert [entry.body for entry in store.entries() if entry.kind == "drop"] == [
            {"why": "dropped_for_room", "number": 2, "in_all": 2}
        ]


def test_old_images_and_observations_go_and_are_counted(tmp_path):
    limits, now = Limits(days=1.0, observations=20), time.time()
    with EvidenceStore.open(tmp_path / "s.db", create=True, limits=limits) as store:
        store.record(MODEL, [seen(pixels("young"), time=now)])
        store.record(MODEL, [seen(pixels("old"), time=now - 90000.0)])
        assert store.counts()["dropped_for_age"] == 1 and store.counts()["images"] == 1
        for _ in range(5):
            store.record(MODEL, [seen()] * 5)
        counts = store.counts()
        assert 20 <= counts["observations"] <= 22
        assert counts["observations"] + counts["dropped_observations"] == 27 and store.verify().ok


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        Limits(bytes=0)


# ---- what is forgotten -------------------------------------------------------------------------------------


def traces(store, image):
    """Files of the store that hold a piece of the image."""
    folder, pieces = os.path.dirname(store.where), [image[k : k + 24] for k in range(0, len(image) - 24, 24)]
    found = set()
    for name in os.listdir(folder):
        with open(f"{folder}/{name}", "rb") as file:
            content = file.read()
        found |= {name for piece in pieces if piece in content}
    return found


def test_a_forgotten_image_leaves_no_byte(store):
    """Of images that share a page, and of those that span pages; beside an idle second process."""
    images = [pixels(k, 90 + 700 * k) for k in range(12)]
    with EvidenceStore.open(store.where) as other:
        for image in images:
            store.record(MODEL, [seen(image)])
        names = other.record(MODEL, [seen(image) for image in images])
        store.review(names[3], Review("adversarial", 3))
        assert all(traces(store, image) for image in images)
        assert store.forget(names[::2] + ["0" * 64]) == 6
        assert [bool(traces(store, image)) for image in images] == [False, True] * 6
        assert kept(other) == set(names[1::2]) and store.counts()["forgotten"] == 6
    assert store.counts()["image_bytes"] == sum(map(len, images[1::2]))
    assert store.entries()[-1].body == {"hashes": sorted(names[::2])} and store.verify().ok
    with pytest.raises(DataError, match="no such image"):
        store.image(names[0])


def test_forgetting_while_another_process_reads_says_so(store, monkeypatch):
    monkeypatch.setattr("robustcli.guard.store.sqlite._PATIENCE", 0.05)
    with EvidenceStore.open(store.where) as impatient:
        (name,) = store.record(MODEL, [seen(pixels("a"))])
        with store._database.reading() as connection:
            connection.exec_driver_sql("SELECT * FROM guard_quarantine").fetchone()
            with pytest.raises(ResourceError, match="still in the write-ahead log") as caught:
                impatient.forget([name])
        assert caught.value.code == "E-DATABASE" and traces(store, pixels("a"))
        assert impatient.forget([name]) == 0 and not traces(store, pixels("a"))


# ---- the log -----------------------------------------------------------------------------------------------


@pytest.fixture
def filled(store):
    for k in range(5):
        store.append("update", {"step": k, "value": 0.1 * k})
    return store


BENT = {
    "a body": ("UPDATE guard_log SET body = '{\"step\":9}' WHERE seq = 3", 3, "content was changed"),
    "spaces": ("UPDATE guard_log SET body = ' ' || body WHERE seq = 3", 3, "content was changed"),
    "no JSON": ("UPDATE guard_log SET body = 'x' WHERE seq = 4", 4, "no JSON"),
    "a time": ("UPDATE guard_log SET time = time + 0.001 WHERE seq = 2", 2, "content was changed"),
    "a kind": ("UPDATE guard_log SET kind = 'promote' WHERE seq = 2", 2, "content was changed"),
    "a hash": (f"UPDATE guard_log SET hash = '{'0' * 64}' WHERE seq = 4", 4, "content was changed"),
    "an entry less": ("DELETE FROM guard_log WHERE seq = 3", 3, "missing: number 4 follows"),
    "the first one less": ("DELETE FROM guard_log WHERE seq = 1", 1, "missing: number 2 follows"),
    "closed up": (
        "DELETE FROM guard_log WHERE seq = 3; UPDATE guard_log SET seq = seq - 1 WHERE seq > 3",
        3,
        "does not follow",
    ),
    "none": ("DELETE FROM guard_log", 1, "empty"),
}


@pytest.mark.parametrize("how", BENT)
def test_a_bent_log_is_found(how, filled):
    statement, bad, words = BENT[how]
    for one in statement.split("; "):
        rows(filled, one)
    found = filled.verify()
    assert not found.ok and found.bad == bad and words in found.fault


def test_an_end_that_was_cut_off_is_found_by_a_noted_hash(filled):
    noted = filled.verify().head
    assert filled.verify(noted[:12]).ok
    rows(filled, "DELETE FROM guard_log WHERE seq = 6")
    assert filled.verify().ok and not filled.verify(noted[:12]).ok
    filled.append("update", {})
    assert "cut off" in filled.verify(noted).fault


def test_the_hash_is_what_the_documentation_says(filled):
    import hashlib
    import json

    entry = filled.entries()[2]
    text = json.dumps([entry.seq, entry.time, entry.kind, entry.body, entry.prev], separators=(",", ":"))
    assert entry.hash == hashlib.sha256(text.encode()).hexdigest() and entry.prev == filled.entries()[1].hash


def test_an_image_that_was_changed_is_not_given_out(store):
    (name,) = store.record(MODEL, [seen(pixels("a"))])
    rows(store, "UPDATE guard_quarantine SET image = ?", pixels("b"))
    with pytest.raises(DataError, match="changed"):
        store.image(name)


def test_a_label_that_was_changed_is_explained(store):
    store.record(MODEL, [seen(pixels("a"))])
    rows(store, "UPDATE guard_quarantine SET review = 'nonsense'")
    with pytest.raises(DataError, match="a row was changed: 'nonsense'"):
        store.evidence()


# ---- kills and company -------------------------------------------------------------------------------------


def writing(where, start):
    """Write for ever; each hash goes to the pipe when the store has acknowledged it."""

    def work(pipe):
        with EvidenceStore.open(where, create=True) as store:
            for k in range(10**6):
                name, _ = store.record(MODEL, [seen(pixels((start, k))), seen()])
                store.append("update", {"k": k})
                os.write(pipe, name.encode())

    return work


def killed_while_writing(tmp_path, child, times):
    acknowledged = set()
    for turn in range(times):
        pid, pipe = child(writing(tmp_path / "store.db", turn))
        held = os.read(pipe, 64) if turn % 5 else b""  # some die while they make or open the store
        time.sleep(0.0007 * (turn * 7919 % 50))
        os.kill(pid, signal.SIGKILL)
        assert child.wait(pid) == -signal.SIGKILL
        while piece := os.read(pipe, 65536):
            held += piece
        os.close(pipe)
        acknowledged |= {held[k : k + 64].decode() for k in range(0, len(held), 64)}
    with EvidenceStore.open(tmp_path / "store.db", create=True) as store:
        assert acknowledged and acknowledged <= kept(store)
        assert store.counts()["observations"] == 2 * len(kept(store))
        found = store.verify()
        assert found.ok and found.entries > len(acknowledged)
        store.image(max(acknowledged))


@posix
def test_killed_while_writing(tmp_path, child):
    killed_while_writing(tmp_path, child, 5)


@posix
@pytest.mark.slow
def test_killed_while_writing_fifty_times(tmp_path, child):
    killed_while_writing(tmp_path, child, 50)


@posix
def test_several_processes_write_at_once(tmp_path, child):
    """They make the store at the same moment, too. Nothing is lost, and the log has one order."""

    def work(number):
        def writes(pipe):
            with EvidenceStore.open(tmp_path / "store.db", create=True) as store:
                for k in range(15):
                    store.record(MODEL, [seen(pixels(k)), seen(pixels((number, k)))])
                    store.append("update", {"by": number, "k": k})

        return writes

    started = [child(work(number)) for number in range(4)]
    assert [child.wait(pid) for pid, _ in started] == [0] * 4
    with EvidenceStore.open(tmp_path / "store.db") as store:
        assert store.counts()["images"] == 15 + 60 and store.counts()["observations"] == 120
        assert sum(each.seen for each in store.evidence()) == 120
        assert store.verify().ok and store.verify().entries == 61
        for number in range(4):
            bodies = [entry.body for entry in store.entries() if entry.body.get("by") == number]
            assert [body["k"] for body in bodies] == list(range(15))


# ---- what is no store --------------------------------------------------------------------------------------


def test_what_is_no_store_is_explained(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, whatever its name says\n" * 50)
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as raw:
        raw.execute("CREATE TABLE mine (x INTEGER)")
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in (text, foreign)}
    for path in (text, foreign, tmp_path / "nowhere.db"):
        with pytest.raises(DataError) as caught:
            EvidenceStore.open(path)
        assert caught.value.code == "E-STORE" and str(path) in caught.value.line()
    for path, state in before.items():
        with pytest.raises(DataError):
            EvidenceStore.open(path, create=True)
        assert (path.read_bytes(), path.stat().st_mode) == state
    assert not (tmp_path / "nowhere.db").exists()


@pytest.mark.parametrize("where", ["mysql://me:secret@host/x", "sqlite:///x.db", "http://host"])
def test_other_databases_are_refused_without_their_password(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="a store cannot be at") as caught:
        EvidenceStore.open(where, create=True)
    assert "secret" not in caught.value.line() and list(tmp_path.iterdir()) == []


def test_a_full_disk_is_explained_and_changes_nothing(store):
    store.record(MODEL, [seen(pixels("a"))])
    before = store.counts()
    store._database._kind._alone("PRAGMA max_page_count=30")
    with pytest.raises(ResourceError, match="full") as caught:
        store.record(MODEL, [seen(pixels("large", 500_000))])
    assert caught.value.code == "E-DISK" and store.counts() == before and store.verify().ok
    store.record(MODEL, [seen(pixels("small"))])


def test_a_writer_that_waits_too_long_is_told_why(store, monkeypatch):
    monkeypatch.setattr("robustcli.guard.store.sqlite._PATIENCE", 0.05)
    with EvidenceStore.open(store.where) as impatient, store._database.writing():
        assert impatient.counts()["images"] == 0  # reading waits for nobody
        with pytest.raises(ResourceError, match="is busy") as caught:
            impatient.record(MODEL, [seen(pixels("a"))])
    assert caught.value.code == "E-DATABASE"


def test_a_store_of_a_newer_version_is_refused(store):
    rows(store, "UPDATE guard_meta SET value = '2' WHERE key = 'schema_version'")
    with pytest.raises(DataError, match="a newer robustcli"):
        EvidenceStore.open(store.where)


def test_without_its_package_one_line_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("robustcli.guard.store")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sqlalchemy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ResourceError, match="SQLAlchemy") as caught:
        import robustcli.guard.store  # noqa: F401
    assert caught.value.code == "E-EXTRA" and caught.value.hint == "pip install 'robustcli[guard]'"
