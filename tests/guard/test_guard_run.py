"""`robustcli guard run`: a line for each file, alarms in the store, a webhook that may fail."""

import base64
import contextlib
import http.server
import io
import json
import os
import threading

import pytest
import torch
from guarded import SIDE, Stub, png, running, write_guard
from PIL import Image

import robustcli
from robustcli.guard import webhook as hooks
from robustcli.guard.evidence import Keeper
from robustcli.guard.server.app import application
from robustcli.guard.server.door import Rules
from robustcli.guard.server.service import Limits, Service
from robustcli.guard.store import EvidenceStore


@pytest.fixture
def images(tmp_path, stub):
    """images/: two accepted, one alarm, one damaged; files that are no images, and hidden ones."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(0.2))
    (folder / "b.png").write_bytes(png(0.9, alarm=True))
    (folder / "bad.png").write_bytes(png()[:-20])
    (folder / "below" / "c.bmp").write_bytes(png(0.9, kind="BMP"))
    (folder / "notes.txt").write_text("images/a.png")
    (folder / ".hidden").mkdir()
    for hidden in ("._a.png", ".hidden/d.png"):
        (folder / hidden).write_bytes(png())
    return folder


def lines(answer):
    return [json.loads(line) for line in answer.out.splitlines()]


def test_a_folder(cli, images):
    """Each file has its line, in the order of names; the damaged one does not stop the rest, and exits 3."""
    answer = cli("guard", "run", "g", "images")
    found = {line["file"]: line for line in lines(answer)}
    assert list(found) == ["images/a.png", "images/b.png", "images/bad.png", "images/below/c.bmp"]
    kept = found["images/b.png"]
    assert (kept["label"], kept["accepted"], kept["scores"]) == (1, False, {"corner": 1.0})
    assert found["images/a.png"] == {
        "file": "images/a.png",
        "label": 0,
        "confidence": 0.99,
        "accepted": True,
        "scores": {"corner": 0.0},
        "quarantined": None,
    }
    assert found["images/bad.png"]["code"] == "E-IMAGE" and "damaged" in found["images/bad.png"]["error"]
    assert answer.code == 3 and answer.err.count("error[") == 1
    assert "1 of 4 files could not be answered" in answer.err
    with EvidenceStore.open("evidence/store.db") as store:
        assert [one.hash for one in store.evidence()] == [kept["quarantined"]]
        assert len(store.observations()) == 3
        stored = Image.open(io.BytesIO(store.image(kept["quarantined"])))
        assert list(stored.tobytes()) == list(Image.open(images / "b.png").tobytes())


def test_files_and_lists(cli, images, tmp_path):
    """A list names files beside it, or anywhere."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "some.txt").write_text(f"../images/a.png\n\n{images}/b.png\n")
    answer = cli("guard", "run", "g", "images/below/c.bmp", "lists/some.txt", "--batch", 1)
    assert answer.code == 0, answer.err
    assert [line["file"] for line in lines(answer)] == [
        "images/below/c.bmp",
        "lists/../images/a.png",
        f"{images}/b.png",
    ]
    assert "3 images: 2 accepted, 1 alarm;" in answer.err


def test_standard_input_is_answered_as_it_comes(cli, images, monkeypatch, tmp_path):
    """The second file is made only when the first one was answered."""
    reading, writing = os.pipe()
    monkeypatch.setattr("sys.stdin", os.fdopen(reading))
    later = tmp_path / "later.png"

    def work(say):
        def heard(text):
            say(text)
            if "a.png" in text:
                later.write_bytes(png(0.9))
                os.write(writing, b"later.png")
                os.close(writing)

        return heard

    from robustcli.terminal.console import Console

    result = Console.result
    monkeypatch.setattr(Console, "result", lambda self, text: work(lambda said: result(self, said))(text))
    os.write(writing, b"images/a.png\n")
    answer = cli("guard", "run", "g", "-")
    assert answer.code == 0 and [line["label"] for line in lines(answer)] == [0, 1]


@pytest.fixture
def piped(monkeypatch):
    """Standard input with these bytes."""

    def pipe(content):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        monkeypatch.setattr("sys.stdin", os.fdopen(reading))

    return pipe


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_an_image_on_standard_input(cli, stub, piped, kind):
    """The bytes say what they are; every format that files may have."""
    stub.info = Stub(channels=3).info  # GIF and WebP have colours
    piped(png(0.9, kind=kind))
    answer = cli("guard", "run", "g", "-")
    (line,) = lines(answer)
    assert answer.code == 0 and (line["file"], line["label"]) == ("-", 1)
    assert "1 image: " in answer.err and "0 alarms" in answer.err


@pytest.mark.parametrize(
    ("content", "said"), [(png() * 2, "more than one image"), (png()[:-20], "damaged")], ids=["two", "half"]
)
def test_what_is_piped_and_is_not_one_image_is_one_line(cli, stub, piped, content, said):
    piped(content)
    answer = cli("guard", "run", "g", "-")
    (line,) = lines(answer)
    assert answer.code == 3 and line["code"] == "E-IMAGE" and said in line["error"]


def test_names_that_begin_as_images_do_are_still_a_list(cli, stub, piped, tmp_path):
    names = ["BM1234.png", "P5", "GIF.png", "II.png"]
    for name in names:
        (tmp_path / name).write_bytes(png())
    piped("\n".join(names).encode())
    answer = cli("guard", "run", "g", "-")
    assert answer.code == 0 and [line["file"] for line in lines(answer)] == names


@pytest.mark.parametrize("kind", ["missing", "fifo", "folder link", "another size", "colour"])
def test_what_cannot_be_read_is_one_line(cli, images, tmp_path, kind):
    path = images / "odd.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder link":
        (tmp_path / "outside.png").write_bytes(png())
        path.symlink_to(tmp_path / "outside.png")
    elif kind != "missing":
        path.write_bytes(png(size=9) if kind == "another size" else png(mode="RGB"))
    words = ["images"] if kind == "folder link" else ["images/a.png", "images/odd.png"]
    answer = cli("guard", "run", "g", *words)
    odd = {line["file"]: line for line in lines(answer)}["images/odd.png"]
    assert answer.code == 3 and odd["code"] in ("E-FILE", "E-SHAPE")
    assert lines(answer)[0]["label"] == 0


def test_a_list_that_is_none(cli, stub, tmp_path):
    (tmp_path / "binary").write_bytes(b"x" * 10_000)
    answer = cli("guard", "run", "g", "binary")
    assert answer.code == 3 and "error[E-FILE]: a line has more than 4096 bytes" in answer.err
    assert cli("guard", "run", "g", "nowhere").code == 3


def test_a_guard_that_fit_wrote(cli, tmp_path):
    """Its answers are those of the model that `load_model` opens."""
    sha256 = write_guard(tmp_path)
    (tmp_path / "one.png").write_bytes(png(0.9))
    answer = cli("guard", "run", ".", "one.png", "--store", "s.db")
    assert answer.code == 0, answer.err
    x = torch.full((1, 1, SIDE, SIDE), round(255 * 0.9) / 255)
    x[0, 0, 0, 0] = 0
    logits = robustcli.load_model("guard:.")(x)[0].detach()
    (line,) = lines(answer)
    assert line["accepted"] == (int(logits.argmax()) < 3) and line["label"] == int(logits[:3].argmax())
    assert line["confidence"] == pytest.approx(float(logits[:3].softmax(0).max()), abs=0.006)
    with EvidenceStore.open("s.db") as store:
        assert store.observations()[0].model == sha256


@pytest.mark.parametrize(("folder", "code"), [("nowhere", 4), ("images", 4)])
def test_what_is_no_guard(cli, images, monkeypatch, folder, code):
    monkeypatch.undo()
    answer = cli("guard", "run", str(images.parent / folder), str(images))
    assert answer.code == code and answer.err.startswith("error[E-CKPT"), answer.err


# ---- the webhook -------------------------------------------------------------------------------------------


class Address:
    """A server that answers with `statuses`, one after the other, then with 200."""

    def __init__(self, *statuses):
        self.got, self.statuses, self.open = [], list(statuses), threading.Event()
        self.open.set()
        address = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                address.open.wait(20)
                address.got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(address.statuses.pop(0) if address.statuses else 200)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/alarm"


@contextlib.contextmanager
def address(*statuses):
    one = Address(*statuses)
    thread = threading.Thread(target=one.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield one
    finally:
        one.server.shutdown()
        thread.join()
        one.server.server_close()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(hooks, "_PAUSES", (0.0, 0.001, 0.001))


@pytest.mark.parametrize("image", [False, True])
def test_a_webhook_is_told_of_alarms_and_gets_images_only_when_asked(cli, images, image):
    with address(500, 302) as one:
        answer = cli(
            *("guard", "run", "g", "images/a.png", "images/b.png", "--webhook", one.url),
            *(["--webhook-image"] if image else []),
        )
    assert answer.code == 0, answer.err
    assert len(one.got) == 3 and one.got[0] == one.got[2], "tried again after a failure and a redirect"
    (alarm,) = one.got[0]["alarms"]
    kept = lines(answer)[1]
    assert alarm["hash"] == kept["quarantined"] and alarm["label"] == 1 and alarm["scores"] == {"corner": 1.0}
    assert set(alarm) - {"image"} == {"hash", "time", "model", "label", "confidence", "accepted", "scores"}
    with EvidenceStore.open("evidence/store.db") as store:
        expected = base64.b64encode(store.image(alarm["hash"])).decode() if image else None
    assert alarm.get("image") == expected


def test_a_webhook_that_fails_is_said_once_and_exits_6(cli, images, monkeypatch):
    with address(*[503] * 20) as one:
        monkeypatch.setenv("ROBUSTCLI_WEBHOOK", one.url)
        answer = cli("guard", "run", "g", *["images/b.png"] * 3, "--batch", 1)
        assert len(one.got) == 9, "three tries each"
    assert answer.code == 6 and "error[E-WEBHOOK]: the webhook did not take 3 of 3 alarms" in answer.err
    assert answer.err.count("warning") == 1 and "it answers 503" in answer.err
    assert all(line["quarantined"] for line in lines(answer)), "the evidence is kept"


def test_an_address_that_is_none(cli, images):
    assert cli("guard", "run", "g", "images/a.png", "--webhook", "file:///etc/passwd").code == 2


def test_no_answer_of_the_server_waits_for_the_webhook(stub, tmp_path):
    with address() as one, EvidenceStore.open(tmp_path / "s.db", create=True) as store:
        one.open.clear()
        webhook = hooks.Webhook(one.url, images=False, say=lambda text: None)
        service = Service(stub, Keeper(store, stub.sha256, webhook), Limits(), lambda text: None)
        with running(application(service, Rules("", (), 100_000), b"")) as client:
            reply = client.post("/predict", files={"image": png(alarm=True)})
            assert reply.json()[0]["quarantined"] and not one.got
            one.open.set()
        assert one.got[0]["alarms"][0]["hash"] == reply.json()[0]["quarantined"], "sent at the end"


def test_alarms_beyond_what_may_wait_are_counted():
    """The address takes nothing; memory does not grow with the alarms."""
    said = []
    with address() as one:
        one.open.clear()
        webhook = hooks.Webhook(one.url, images=True, say=said.append)
        for _ in range(150):
            webhook.tell([{"hash": "h"}], [b"png"])
        assert 45 <= webhook.lost <= 50 and len(said) == 1
        one.open.set()
        assert webhook.close(20) == webhook.lost and len(one.got) + webhook.lost == 150
