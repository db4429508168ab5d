"""What the server answers to images, good and bad."""

import asyncio
import base64
import hashlib
import io
import json
import math
import os
import random
import threading
import warnings

import pytest
import torch
from guarded import SIDE, Stub, pixels, png, running
from PIL import Image
from starlette.requests import Request

from robustcli.guard.answer import Answer, answers
from robustcli.guard.evidence import Keeper, png_of
from robustcli.guard.server.app import application
from robustcli.guard.server.door import Rules
from robustcli.guard.server.reading import images_in
from robustcli.guard.server.refusal import Refused
from robustcli.guard.server.service import Limits, Service
from robustcli.guard.store import EvidenceStore

OPEN = Rules("", (), 100_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """server(model, ...): an application with a store of its own."""
    torch.set_num_threads(1)

    def make(model=None, evidence=None, rules=OPEN, say=lambda text: None, **limits):
        store = tmp_path_factory.mktemp("evidence") / "store.db"
        keeper = evidence or Keeper(EvidenceStore.open(store, create=True), "0" * 64)
        return application(Service(model or Stub(), keeper, Limits(**limits), say), rules, b"secret")

    return make


@pytest.fixture(scope="module")
def client(server):
    with running(server()) as client:
        yield client


@pytest.fixture(scope="module")
def colour(server):
    with running(server(Stub(channels=3))) as client:
        yield client


def sent(client, *files, **options):
    return client.post("/predict", files=[("images", ("name", data)) for data in files], **options)


def one_line(reply):
    """The text of a refusal; it is one line without a path of this machine."""
    assert set(reply.json()) == {"error"}
    text = reply.json()["error"]
    assert text and "\n" not in text and "Traceback" not in text and "/tmp" not in text and ".py" not in text
    assert "object at 0x" not in text
    return text


def test_files_and_base64_get_the_same_answers(client):
    images = [png(0.2), png(0.9), png(0.9, alarm=True)]
    name = hashlib.sha256(png_of(torch.from_numpy(pixels(0.9, alarm=True) / 255)[None])).hexdigest()
    expected = [
        {"label": 0, "confidence": 0.99, "accepted": True, "scores": {"corner": 0.0}, "quarantined": None},
        {"label": 1, "confidence": 1.0, "accepted": True, "scores": {"corner": 0.0}, "quarantined": None},
        {"label": 1, "confidence": 1.0, "accepted": False, "scores": {"corner": 1.0}, "quarantined": name},
    ]
    reply = sent(client, *images)
    assert reply.status_code == 200 and reply.json() == expected
    texts = [base64.b64encode(data).decode() for data in images]
    assert client.post("/predict", json={"images": texts}).json() == expected


def test_an_image_is_read_as_a_file_is(client):
    """16 bits, a palette, and the turn of EXIF."""
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down: the bright corner goes away
    assert sent(client, png(0.2, alarm=True, exif=turned)).json()[0]["accepted"]
    assert sent(client, png(0.2, alarm=True, mode="P")).status_code == 422, "a palette has colours"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "JPEG"])
def test_formats(colour, kind):
    """Where the model takes colour, grey is three equal planes."""
    assert [one["label"] for one in sent(colour, png(0.9, kind=kind), png(0.1, kind=kind)).json()] == [1, 0]


def animation(kind):
    stream = io.BytesIO()
    frames = [Image.new("L", (SIDE, SIDE), level) for level in (0, 255)]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def bomb():
    stream = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(stream, "PNG")
    return stream.getvalue()


BAD = {
    "empty": (b"", 415),
    "text": (b"GIVE ME A CLASS", 415),
    "truncated": (png()[:-30], 422),
    "half": (png(size=8, kind="JPEG")[:300], 422),
    "another type": (png(kind="TIFF"), 415),
    "another size": (png(size=9), 422),
    "colour": (png(mode="RGB"), 422),
    "transparent colour": (png(mode="RGBA"), 422),
    "animated GIF": (animation("GIF"), 422),
    "animated PNG": (animation("PNG"), 422),
    "animated WEBP": (animation("WEBP"), 422),
    "bomb": (bomb(), 422),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_in_one_line(client, name):
    data, status = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reply = sent(client, png(), data)
    assert reply.status_code == status, reply.text
    assert "image 1" in one_line(reply)


def test_a_wrong_size_is_told_the_right_one(client):
    assert "expected 8x8 pixels (1 channels), got 9x9" in one_line(sent(client, png(size=9)))


@pytest.mark.parametrize(
    ("status", "options"),
    [
        (400, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (400, {"content": b"[" * 90_000, "headers": {"content-type": "application/json"}}),
        (400, {"json": ["x"]}),
        (400, {"json": {"images": "x"}}),
        (400, {"json": {"images": []}}),
        (400, {"json": {"images": [7]}}),
        (400, {"json": {"images": ["%%%"]}}),
        (400, {"json": {"images": ["ä"]}}),
        (415, {"content": png(), "headers": {"content-type": "image/png"}}),
        (415, {"content": png()}),
        (400, {"content": b"nothing", "headers": {"content-type": "multipart/form-data; boundary=x"}}),
        (400, {"content": b"nothing", "headers": {"content-type": "multipart/form-data"}}),
        (400, {"data": {"images": "text"}, "files": {"images": png()}}),
        (400, {"files": [("images", png())] * 65}),
        (413, {"json": {"images": [""] * 65}}),
        (413, {"content": b"x" * 100_001, "headers": {"content-type": "application/json"}}),
    ],
)
def test_a_bad_request_is_refused_in_one_line(client, status, options):
    reply = client.post("/predict", **options)
    assert reply.status_code == status, reply.text
    one_line(reply)


def test_a_body_without_a_length_is_cut_off(client):
    chunks = (b"x" * 1000 for _ in range(200))
    reply = client.post("/predict", content=chunks, headers={"content-type": "application/json"})
    assert reply.status_code == 413 and "100000" in one_line(reply)


def test_what_is_not_there(client):
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404
    assert client.get("/predict").status_code == 405 and one_line(client.get("/predict"))


def test_every_reply_has_the_security_headers(client):
    for reply in (client.get("/health"), client.get("/nowhere"), sent(client, b"")):
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in reply.headers and "server" not in reply.headers


def test_health_and_metrics(client):
    assert client.get("/health").json() == {"status": "ok", "evidence": "ok"}
    sent(client, png(), png(alarm=True), headers={"user-agent": "marker"})
    text = client.get("/metrics").text
    assert 'robustcli_images_total{outcome="rejected"}' in text
    assert "robustcli_predict_seconds_count" in text and "marker" not in text


# ---- who may come in ---------------------------------------------------------------------------------------


def test_a_token_is_asked_for_everywhere_but_for_health(server):
    with running(server(rules=Rules("secret-of-16-bytes", (), 1000))) as client:
        assert client.get("/health").status_code == 200
        for path in ("/metrics", "/review", "/nowhere"):
            reply = client.get(path)
            assert reply.status_code == 401 and reply.headers["www-authenticate"].startswith("Basic")
        for wrong in ("", "Bearer", "Bearer secret-of-16-byteX", "Basic !", "Bearer \xe4", "Digest x"):
            headers = {"authorization": wrong.encode("latin-1")}
            assert client.get("/metrics", headers=headers).status_code == 401, wrong
        assert client.get("/metrics", headers={"authorization": "bearer secret-of-16-bytes"}).is_success
        assert client.get("/metrics", auth=("anybody", "secret-of-16-bytes")).is_success


def test_another_name_for_this_machine_is_refused(server):
    """A page whose name leads to 127.0.0.1 must not read the answers."""
    with running(server(rules=Rules("", ("localhost", "[::1]"), 1000))) as client:
        for host, status in (
            ("localhost:80", 200),
            ("LOCALHOST", 200),
            ("[::1]:80", 200),
            ("evil.example", 421),
        ):
            assert client.get("/health", headers={"host": host}).status_code == status, host


# ---- pressure ----------------------------------------------------------------------------------------------


def test_a_full_queue_says_429_and_every_other_request_is_answered(server):
    """One pass is held back. Of 20 requests, as many as there are places are answered, and no more."""
    go = threading.Event()
    app = server(Stub(wait=lambda: go.wait(20)), queue=8, batch=4)
    with running(app) as client:
        replies = []
        threads = [threading.Thread(target=lambda: replies.append(sent(client, png()))) for _ in range(20)]
        for thread in threads:
            thread.start()
        while len(replies) < 12:
            assert any(thread.is_alive() for thread in threads)
        go.set()
        for thread in threads:
            thread.join()
        statuses = [reply.status_code for reply in replies]
        assert sorted(statuses) == [200] * 8 + [429] * 12
        assert all(reply.headers["retry-after"] == "1" for reply in replies if reply.status_code == 429)
        assert sent(client, *[png()] * 9).status_code == 413, "more than may ever wait"
        assert sent(client, png()).status_code == 200


def test_requests_are_answered_together(server):
    passes = []
    go = threading.Event()

    def wait():
        go.wait(20)

    model = Stub(wait=wait)
    look = model.look
    model.look = lambda x: passes.append(len(x)) or look(x)
    with running(server(model, batch=8)) as client:
        threads = [threading.Thread(target=sent, args=(client, png(), png())) for _ in range(9)]
        for thread in threads:
            thread.start()
        while client.get("/metrics").text.count("robustcli_images_inside 18.0") == 0:
            pass
        go.set()
        for thread in threads:
            thread.join()
    assert sum(passes) == 18 and max(passes) == 8, passes


def test_a_draining_server_says_503(tmp_path):
    keeper = Keeper(EvidenceStore.open(tmp_path / "store.db", create=True), "0" * 64)
    service = Service(Stub(), keeper, Limits(), lambda text: None)
    with running(application(service, OPEN, b"")) as client:
        service.places.draining = True
        assert sent(client, png()).status_code == 503
        assert client.get("/health").status_code == 503


def test_a_body_that_does_not_come_is_not_waited_for():
    async def never():
        await asyncio.sleep(60)

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(Refused) as caught:
        asyncio.run(images_in(Request(scope, never), 4, 0.01))
    assert caught.value.status == 408


# ---- what goes wrong on this side --------------------------------------------------------------------------


class Broken(Keeper):
    def keep(self, x, found):
        raise OSError("no space left on /secret/store.db")


def test_an_answer_does_not_fail_because_its_evidence_does(server, tmp_path):
    said = []
    with running(
        server(evidence=Broken(EvidenceStore.open(tmp_path / "s.db", create=True), "0" * 64), say=said.append)
    ) as client:
        assert [sent(client, png(alarm=True)).json()[0]["quarantined"] for _ in range(2)] == [None, None]
        assert client.get("/health").json() == {"status": "ok", "evidence": "lost"}
        assert "robustcli_evidence_lost_total 2.0" in client.get("/metrics").text
    assert said == ["OSError: no space left on /secret/store.db"], "said once"


def test_a_broken_model_is_a_500_without_details_and_the_server_lives(server):
    said, wrong = [], [True]

    def fail():
        if wrong[0]:
            raise RuntimeError("a fault in /secret/place")

    with running(server(Stub(wait=fail), say=said.append)) as client:
        reply = sent(client, png())
        assert reply.status_code == 500 and reply.json() == {"error": "internal error"}
        wrong[0] = False
        assert sent(client, png()).is_success
    assert said == ["RuntimeError: a fault in /secret/place"]


# ---- answers -----------------------------------------------------------------------------------------------


def test_what_is_no_number_is_not_accepted():
    """NaN compares as false with everything, and would pass any threshold."""
    model = Stub()
    x = torch.full((3, 1, SIDE, SIDE), 0.2)
    x[1, 0, 3, 3], x[2, 0, 0, 0] = math.nan, -math.inf
    found = answers(model, x)
    assert [one.accepted for one in found] == [True, False, False]
    assert found[1].confidence == 0 and found[2].scores["corner"] > 1e38
    json.dumps([one.to_json() for one in found], allow_nan=False)


def test_an_answer_as_json_is_rounded():
    found = Answer(3, 0.123456, True, {"a": 0.000123456, "b": 123456.7}).to_json()
    assert found["confidence"] == 0.12 and found["scores"] == {"a": 0.0001235, "b": 123500.0}


# ---- mutated uploads ---------------------------------------------------------------------------------------


def mutants(count, seed):
    draw = random.Random(seed)
    from_kinds = [png(0.3, kind=kind) for kind in ("PNG", "JPEG", "GIF", "BMP")] + [
        animation("PNG"),
        png(mode="P"),
    ]
    for _ in range(count):
        data = bytearray(draw.choice(from_kinds))
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(data) or 1)
            how = draw.randrange(5)
            if how == 0:
                data[place : place + 1] = bytes([draw.randrange(256)])
            elif how == 1:
                del data[place:]
            elif how == 2:
                data[place:place] = draw.randbytes(draw.randint(1, 40))
            elif how == 3:
                del data[place : place + draw.randint(1, 12)]
            else:
                data[place : place + 4] = draw.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
        yield bytes(data)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_uploads_are_answered_or_refused(client, count):
    """Never a 500; neither descriptors nor memory are kept. Warnings of Pillow are hidden as in a server."""
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in mutants(60, 1):
            sent(client, data)
        before, used = descriptors(), memory()
        for data in mutants(count, 0):
            reply = sent(client, data)
            seen.append(reply.status_code)
            if not reply.is_success:
                one_line(reply)
    assert set(seen) <= {200, 415, 422} and seen.count(200) < 0.5 * count
    assert descriptors() <= before + 1
    assert memory() - used < 16 * 2**20
