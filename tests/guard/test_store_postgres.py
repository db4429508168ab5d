"""The evidence store in a real PostgreSQL: what the tests of the file say holds there, too."""

import os
import signal
import sys
import time

import pytest
from evidence import MODEL, child, pixels, seen

from robustcli.errors import ResourceError

pytest.importorskip("sqlalchemy", reason="the extra guard is not installed")
psycopg = pytest.importorskip("psycopg", reason="the extra postgres is not installed")
postgres_server = pytest.importorskip("postgres_server", reason="needs POSIX")
if postgres_server.missing():
    pytest.skip(postgres_server.missing(), allow_module_level=True)

from robustcli.guard.rules import Reference  # noqa: E402
from robustcli.guard.store import EvidenceStore, Limits, Review, address  # noqa: E402

__all__ = ["child"]


@pytest.fixture(scope="module")
def server():
    with postgres_server.running() as url:
        yield url


@pytest.fixture
def url(server):
    """A database of its own; connections of dead children may still be there at its end."""
    name = f"evidence_{time.monotonic_ns()}"
    bend(server, f"CREATE DATABASE {name}")
    yield server.replace("/postgres", f"/{name}")
    bend(server, f"DROP DATABASE {name} WITH (FORCE)")


def bend(url, statement):
    """Run a statement beside the store."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def test_all_that_a_store_does(url):
    """Alarms, counting, labels, limits, references, forgetting and the log, as in a file."""
    with EvidenceStore.open(url, create=True, limits=Limits(bytes=4000)) as store:
        names = store.record(
            MODEL, [seen(pixels(k)) for k in range(3)] + [seen(scores={"odd": float("nan")})]
        )
        assert names == [*store.record(MODEL, [seen(pixels(k)) for k in range(3)]), None]
        assert {(each.hash, each.seen) for each in store.evidence()} == {(name, 2) for name in names[:3]}
        assert store.image(names[0]) == pixels(0) and store.named(names[1][:8]) == names[1]
        last = store.observations(last=4)
        assert [each.accepted for each in last] == [True, False, False, False]
        assert last[0].scores == {"odd": None}
        store.review(names[0], Review("adversarial", 3), "ann")
        with EvidenceStore.open(url) as other:
            assert [each.review for each in other.evidence(reviewed=True)] == [Review("adversarial", 3)]
            assert other.forget([names[1]]) == 1
        store.record(MODEL, [seen(pixels(("more", k))) for k in range(5)])  # 4,200 bytes: down to 3,600
        counts = store.counts()
        assert (counts["image_bytes"], counts["dropped_for_room"], counts["forgotten"]) == (3600, 1, 1)
        assert {each.hash for each in store.evidence()} & set(names) == {names[0]}
        fit = Reference(3, 2, 1, {"a": [0.1, 0.2]})
        store.remember(MODEL, {})
        store.remember(MODEL, fit.to_json())
        assert Reference.from_json(store.reference(MODEL)) == fit
        assert [entry.kind for entry in store.entries()] == ["create", "review", "forget", "drop"]
        assert store.verify().ok
        bend(url, "UPDATE guard_log SET time = time + 1 WHERE seq = 2")
        assert store.verify().bad == 2


def test_killed_while_writing(url, child):
    def writing(pipe):
        with EvidenceStore.open(url, create=True) as store:
            for k in range(10**6):
                name = store.record(MODEL, [seen(pixels((os.getpid(), k)))])[0]
                store.append("update", {"k": k})
                os.write(pipe, name.encode())

    acknowledged = set()
    for turn in range(3):
        pid, pipe = child(writing)
        held = os.read(pipe, 64)
        time.sleep(0.01 * turn)
        os.kill(pid, signal.SIGKILL)
        assert child.wait(pid) == -signal.SIGKILL
        while piece := os.read(pipe, 65536):
            held += piece
        os.close(pipe)
        acknowledged |= {held[k : k + 64].decode() for k in range(0, len(held), 64)}
    with EvidenceStore.open(url) as store:
        assert acknowledged <= {each.hash for each in store.evidence()} and store.verify().ok


def test_several_processes_write_at_once(url, child):
    def work(number):
        def writes(pipe):
            with EvidenceStore.open(url, create=True) as store:
                for k in range(10):
                    store.record(MODEL, [seen(pixels(k)), seen(pixels((number, k)))])
                    store.append("update", {"by": number, "k": k})

        return writes

    started = [child(work(number)) for number in range(3)]
    assert [child.wait(pid) for pid, _ in started] == [0] * 3
    with EvidenceStore.open(url) as store:
        counts = store.counts()
        assert (counts["images"], counts["observations"], counts["image_bytes"]) == (40, 60, 40 * 600)
        assert store.verify().ok and store.verify().entries == 31


def test_a_connection_that_the_server_closed_is_opened_again(url, server):
    with EvidenceStore.open(url, create=True) as store:
        bend(
            server,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname LIKE 'evidence%'",
        )
        assert store.record(MODEL, [seen(pixels("a"))])[0] is not None


def test_no_message_repeats_the_password(cli, url):
    password = url.split(":")[2].split("@")[0]
    assert password in url and password not in address(url) and "***" in address(url)
    answer = cli("guard", "log", url, "--json")
    assert answer.code == 3 and "its tables are missing" in answer.err
    wrong = cli("guard", "log", url.replace(password, "wr0ng-Secret"))
    assert wrong.code == 6 and "E-DATABASE" in wrong.err
    nobody = cli("guard", "log", "postgresql://robust:wr0ng-Secret@127.0.0.1:1/postgres")
    assert nobody.code == 6 and nobody.err.count("\n") == 1
    odd = cli("guard", "log", "postgresql://robust:wr0ng-Secret@host:port/x")
    assert odd.code == 2
    with EvidenceStore.open(url, create=True) as store:
        (name,) = store.record(MODEL, [seen(pixels("a"))])
        store.remember(MODEL, Reference(3, 2, 1, {"reconstruction": [0.1, 0.2]}).to_json())
    fine = [
        *(cli("guard", "status", url, *json) for json in ([], ["--json"])),
        *(cli("guard", "review", url, "--list", *json) for json in ([], ["--json"])),
        cli("guard", "review", url, "--label", f"{name}=1"),
        cli("guard", "log", url, "--verify"),
        cli("guard", "forget", url, name),
    ]
    assert [each.code for each in fine] == [0] * 7
    said = "".join(each.out + each.err for each in (answer, wrong, nobody, odd, *fine))
    assert password not in said and "wr0ng-Secret" not in said and "***" in said


def test_a_lock_that_never_ends_is_no_hang_for_readers(url):
    """A writer holds the lock of all writers; whoever reads does not wait for it."""
    with EvidenceStore.open(url, create=True) as store, store._database.writing():
        with EvidenceStore.open(url) as reader:
            assert reader.verify().ok and reader.counts()["images"] == 0


def test_without_its_driver_one_line_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "psycopg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ResourceError, match="needs psycopg") as caught:
        EvidenceStore.open("postgresql://nobody@127.0.0.1:1/nothing")
    assert caught.value.code == "E-EXTRA" and "robustcli[postgres]" in caught.value.hint
