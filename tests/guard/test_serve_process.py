"""`robustcli guard serve` as a process: who may reach it, how it ends, and its workers."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from guarded import png, write_guard

from robustcli.guard.store import EvidenceStore

pytestmark = pytest.mark.usefixtures("stub")


@pytest.fixture(autouse=True)
def _threads_as_before(monkeypatch):
    """What the command sets in the environment is put back."""
    monkeypatch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "passive"))


@pytest.fixture
def serving(forked, tmp_path):
    """serving(flags): (url, pid, wait) of a server that listens."""

    def start(*flags):
        wait, pid = forked("guard", "serve", "g", "--port", "0", "--json", *flags)
        until = time.monotonic() + 30
        while not (text := (tmp_path / "out.txt").read_text() if (tmp_path / "out.txt").exists() else ""):
            assert time.monotonic() < until, (tmp_path / "err.txt").read_text()
            time.sleep(0.01)
        return json.loads(text)["url"], pid, wait

    return start


def sent(url, *files, **options):
    """A request over a connection of its own; httpx would read all certificates of the machine each time."""
    images = [("i", data) for data in files]
    return httpx.post(f"{url}/predict", files=images, timeout=30, verify=False, **options)


def metrics(url):
    return httpx.get(f"{url}/metrics", verify=False).text


def wait_until(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_sigterm_answers_what_is_inside_and_keeps_its_evidence(serving, stub, tmp_path):
    """A pass takes half a second. The signal comes in the middle of it; later requests are refused."""
    stub.wait = lambda: time.sleep(0.5)
    url, pid, wait = serving()
    replies = []
    inside = threading.Thread(target=lambda: replies.append(sent(url, png(alarm=True), png())))
    late = httpx.Client(base_url=url, verify=False)
    inside.start()
    wait_until(lambda: "robustcli_images_inside 2.0" in late.get("/metrics").text)
    os.kill(pid, signal.SIGTERM)
    asked = time.monotonic()
    inside.join()
    assert replies[0].status_code == 200
    name = replies[0].json()[0]["quarantined"]
    assert wait(20) == 0 and time.monotonic() - asked < 5
    with pytest.raises(httpx.TransportError):
        late.get("/health")
    with EvidenceStore.open(tmp_path / "evidence" / "store.db") as store:
        assert [one.hash for one in store.evidence()] == [name]
    assert "all requests were answered" in (tmp_path / "err.txt").read_text()


def test_ctrl_c_ends_a_server_as_well(serving):
    url, pid, wait = serving()
    assert sent(url, png()).is_success
    os.kill(pid, signal.SIGINT)
    assert wait(20) == 0


def test_a_request_that_never_ends_is_given_up(serving, stub, monkeypatch):
    """The server ends although a pass hangs for longer than a drain may take."""
    monkeypatch.setattr("robustcli.guard.server.process.DRAIN", 1)
    stub.wait = lambda: time.sleep(2.5)
    url, pid, wait = serving("--batch", "1")
    threads = [threading.Thread(target=lambda: _quietly(url)) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: "robustcli_images_inside 6.0" in metrics(url))
    os.kill(pid, signal.SIGTERM)
    asked = time.monotonic()
    assert wait(20) == 0 and time.monotonic() - asked < 9.9, "the pass ends, the other five do not begin"
    for thread in threads:
        thread.join()


def _quietly(url):
    try:
        sent(url, png())
    except httpx.TransportError:
        return


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_lost_worker_is_replaced_and_all_end_together(serving, monkeypatch):
    """Two workers write to one store. They are forked here, so that PyTorch is imported once."""
    monkeypatch.setattr(
        multiprocessing, "get_context", lambda kind, context=multiprocessing.get_context: context("fork")
    )
    url, pid, wait = serving("--workers", "2")
    names = {sent(url, png(level / 255, alarm=True)).json()[0]["quarantined"] for level in range(1, 21)}
    assert len(names) == 20 and None not in names
    children = _children(pid)
    assert len(children) == 2
    os.kill(children[0], signal.SIGKILL)
    wait_until(lambda: len(_children(pid)) == 2 and children[0] not in _children(pid))
    assert sent(url, png()).is_success
    os.kill(pid, signal.SIGTERM)
    assert wait(20) == 0
    with EvidenceStore.open("evidence/store.db") as store:
        assert {one.hash for one in store.evidence()} == names and store.verify().ok


@pytest.mark.slow
def test_workers_of_their_own_share_address_store_and_numbers(tmp_path):
    """As a user starts them: each worker imports PyTorch and opens the guard that `guard fit` wrote."""
    write_guard(tmp_path, threshold=-100.0)  # everything is an alarm
    words = [
        sys.executable,
        "-m",
        "robustcli",
        "guard",
        "serve",
        ".",
        "--port",
        "0",
        "--workers",
        "2",
        "--json",
    ]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = json.loads(process.stdout.readline())["url"]
    wait_until(lambda: len(_children(process.pid)) >= 3)  # with the tracker of multiprocessing
    names = {sent(url, png(level / 255)).json()[0]["quarantined"] for level in range(1, 41)}
    assert len(names) == 40 and None not in names
    assert 'robustcli_images_total{outcome="rejected"} 40.0' in metrics(url)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in said, said
    with EvidenceStore.open(tmp_path / "evidence" / "store.db") as store:
        assert {one.hash for one in store.evidence()} == names


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


# ---- who may reach it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--i-know",)])
def test_other_machines_need_a_token_and_the_users_word(cli, monkeypatch, flags):
    answer = cli("guard", "serve", "g", "--host", "0.0.0.0", *flags)
    assert answer.code == 9 and "error[E-POLICY]: other machines could ask this server" in answer.err
    monkeypatch.setenv("ROBUSTCLI_TOKEN", "a" * 20)
    if not flags:
        assert cli("guard", "serve", "g", "--host", "0.0.0.0").code == 9


def test_a_short_token_is_refused(cli, monkeypatch):
    monkeypatch.setenv("MINE", "short")
    answer = cli("guard", "serve", "g", "--token-env", "MINE")
    assert answer.code == 2 and "fewer than 16 characters; MINE" in answer.err and "short;" not in answer.err


def test_with_a_token_and_the_users_word_it_listens_everywhere(serving, monkeypatch):
    monkeypatch.setenv("ROBUSTCLI_TOKEN", "a" * 20)
    url, pid, wait = serving("--host", "0.0.0.0", "--i-know")
    assert sent(url, png()).status_code == 401
    assert sent(url, png(), headers={"authorization": "Bearer " + "a" * 20, "host": "any.name"}).is_success
    os.kill(pid, signal.SIGTERM)
    assert wait(20) == 0


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_that_wait_leave_the_cores_to_requests(cli, monkeypatch, given):
    """OpenMP reads the variable when it is loaded, which is after this; a value of the user stays."""
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert cli("guard", "serve", "g", "--host", "0.0.0.0").code == 9
    assert os.environ["OMP_WAIT_POLICY"] == (given or "passive")


def test_an_address_that_is_taken(cli, serving):
    url, pid, wait = serving()
    answer = cli("guard", "serve", "g", "--port", url.rpartition(":")[2])
    assert answer.code == 6 and "error[E-PORT]: cannot listen" in answer.err
    os.kill(pid, signal.SIGTERM)
    assert wait(20) == 0


def test_a_missing_package_is_one_line(cli, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("robustcli.guard.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "robustcli.jobs.guard.serve")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    answer = cli("guard", "serve", "g", "--json")
    assert (
        answer.code == 6 and "error[E-EXTRA]" in answer.err and "pip install 'robustcli[serve]'" in answer.err
    )
    assert answer.document["error"]["code"] == "E-EXTRA"
