"""The page for reviewing alarms: over HTTP, and in a real browser where there is one."""

import re

import numpy as np
import pytest
from browser import browsing
from guarded import Stub, png, running

from robustcli.guard import store as store_package
from robustcli.guard.evidence import Keeper
from robustcli.guard.server import drift
from robustcli.guard.server.app import application
from robustcli.guard.server.door import Rules
from robustcli.guard.server.service import Limits, Service
from robustcli.guard.store import EvidenceStore, Seen
from robustcli.guard.store.rows import Observation

MODEL = "0" * 64
HOUR = 3600.0


class Named(Stub):
    """Ten classes; one has a name that would be HTML."""

    def __init__(self, classes=10):
        super().__init__()
        self.reject, self.classes = classes, ("<b>bold</b>", *map(str, range(1, classes)))


def seen(alarms):
    """200 observations whose scores rise, the last `alarms` of them with an image."""
    draw = np.random.default_rng(0)
    for k in range(200):
        place = k - (200 - alarms)
        score = 0.2 + 0.001 * k + 0.05 * draw.random()
        image = png(place / 255, alarm=True) if place >= 0 else None
        yield Seen(image is None, k % 2, 0.9, {"corner": 0.9 if image else score}, image, 1e9 + k * HOUR)


@pytest.fixture
def store(tmp_path):
    limits = store_package.Limits(days=100_000)
    with EvidenceStore.open(tmp_path / "store.db", create=True, limits=limits) as opened:
        opened.record(MODEL, list(seen(3)))
        yield opened


@pytest.fixture
def serve(store):
    def make(model=None):
        service = Service(model or Named(), Keeper(store, MODEL), Limits(), lambda text: None)
        return running(application(service, Rules("", (), 100_000), b"secret"))

    return make


def mark_in(text):
    return re.search(r'name="mark" value="([0-9a-f]{64})"', text)[1]


def test_the_page_shows_alarms_and_loads_nothing_from_elsewhere(serve, store):
    with serve() as client:
        text = client.get("/review").text
        hashes = [one.hash for one in store.evidence()]
        assert [text.index(name) for name in hashes] == sorted(text.index(name) for name in hashes)
        assert "To review <b>3</b>" in text and "alarm above 0.5" in text
        assert "&lt;b&gt;bold&lt;/b&gt;" in text and "<b>bold" not in text
        assert not re.search(r"""(?:src|href|action)=["'](?!/review)""", text), "everything is ours"
        for path in re.findall(r'(?:src|href)="(/review[^"]*)"', text):
            assert client.get(path.replace("&amp;", "&")).is_success, path
        assert client.get(f"/review/image/{hashes[0]}.png").content == store.image(hashes[0])


def test_a_label_is_stored_and_logged(serve, store):
    name = store.evidence()[0].hash
    with serve() as client:
        mark = mark_in(client.get("/review").text)
        reply = client.post("/review", data={"mark": mark, "hash": name, "kind": "7"})
        assert reply.status_code == 303 and reply.headers["location"] == "/review"
        assert str(store.evidence(reviewed=True)[0].review) == "7"
        assert store.entries()[-1].body["by"] == "page"
        assert name not in client.get("/review").text and name in client.get("/review?reviewed=1").text


@pytest.mark.parametrize(
    ("status", "changed", "headers"),
    [
        (403, {"mark": ""}, {}),
        (403, {"mark": "ä" * 64}, {}),
        (403, {}, {"sec-fetch-site": "cross-site"}),
        (400, {"kind": "10"}, {}),
        (400, {"kind": "nonsense"}, {}),
        (400, {"hash": "0" * 64}, {}),
        (400, {"hash": "../../etc/passwd"}, {}),
    ],
)
def test_a_form_that_is_not_ours_changes_nothing(serve, store, status, changed, headers):
    with serve() as client:
        form = {"mark": mark_in(client.get("/review").text), "hash": store.evidence()[0].hash, "kind": "1"}
        reply = client.post("/review", data=form | changed, headers=headers)
        assert reply.status_code == status and set(reply.json()) == {"error"}
        assert str(store.where) not in reply.text
        assert client.post("/review", content=b"{", headers={"content-type": "text/plain"}).status_code == 403
        assert store.counts()["reviewed"] == 0


def test_what_is_not_there(serve):
    with serve() as client:
        for path in ("/review/image/00.png", "/review/review.html", "/review/..%2fapp.py"):
            assert client.get(path).status_code == 404, path
        for start in ("-5", "none", "1" * 30):
            reply = client.get(f"/review?start={start}")
            assert reply.status_code == 400 and reply.json()["error"].startswith("start: "), start


def test_many_alarms_have_pages(serve, store):
    store.record(MODEL, [Seen(False, 0, 0.5, {}, png(k / 255), 2e9) for k in range(1, 40)])
    with serve() as client:
        first = client.get("/review").text
        assert first.count('class="alarm"') == 24 and "start=24" in first and "Newer" not in first
        second = client.get("/review?start=24").text
        assert second.count('class="alarm"') == 18 and "Older" not in second and "Newer" in second


# ---- the picture of the scores -----------------------------------------------------------------------------


def test_the_chart_has_the_quantiles_of_each_span():
    scores = np.arange(240.0)
    watched = [
        Observation(float(k), k < 230, {"a": score, "b": None}, MODEL) for k, score in enumerate(scores)
    ]
    (chart,) = drift.charts(watched, {"a": 300.0})
    assert len(chart.spans) == 24 and chart.spans[2].middle == pytest.approx(24.5)
    assert chart.spans[0].low == pytest.approx(np.quantile(scores[:10], 0.05))
    heights = [float(point.split(",")[1]) for point in chart.line.split()]
    assert heights == sorted(heights, reverse=True) and 0 < chart.limit < heights[-1]
    assert drift.alarm_shares(watched) == [0.0] * 23 + [1.0]


def test_no_chart_of_nothing():
    assert drift.charts([], {}) == [] and drift.alarm_shares([]) == []
    flat = [Observation(float(k), True, {"a": 1.0}, MODEL) for k in range(3)]
    assert "nan" not in drift.charts(flat, {})[0].line


# ---- in a browser ------------------------------------------------------------------------------------------

#: The smallest contrast of all texts with the nearest background behind them (WCAG asks for 4.5).
CONTRAST = """
const light = (text) => {
  const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
};
const own = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
return Math.min(...[...document.body.querySelectorAll("*")].filter(own).map((node) => {
  const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}));
"""
WIDE = """
const inside = document.documentElement.scrollWidth <= innerWidth;
return inside && [...document.querySelectorAll("button, select, table, svg, img")]
  .every((one) => one.getBoundingClientRect().right <= innerWidth);
"""
IMAGES = "return [...document.images].every((image) => image.complete && image.naturalWidth === 8)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.parametrize("classes", [10, 40])
def test_it_looks_right_on_any_screen(browser, serve, classes, tmp_path):
    """Nothing sticks out, everything can be read, in light and dark; the style sheet is not blocked."""
    with serve(Named(classes)) as client:
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                browser.look(width, 900, scheme)
                browser.open(f"{client.base_url}/review")
                assert browser.run(WIDE), (width, scheme)
                assert browser.run(CONTRAST) >= 4.5, (width, scheme)
                paper = browser.run("return getComputedStyle(document.body).backgroundColor")
                assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (scheme == "dark")
        assert browser.run("return document.querySelectorAll('svg').length") == 2
        browser.run("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager' })")
        assert browser.run(IMAGES)
        assert browser.complaints() == []


def test_keys_and_clicks_label_one_alarm_each(browser, serve, store):
    """A digit is an attack on that class; j goes to the next alarm; a click on a button is its answer."""
    newest, second, third = (one.hash for one in store.evidence())
    found = lambda: {one.hash: str(one.review) for one in store.evidence(reviewed=True)}  # noqa: E731
    with serve() as client:
        browser.look(1280, 900, "light")
        browser.open(f"{client.base_url}/review")
        browser.press("7")
        _wait_for(browser, 2)
        assert found() == {newest: "7"}
        browser.press("j")
        browser.press("f")
        _wait_for(browser, 1)
        assert found() == {newest: "7", third: "clean:1"}
        browser.click("button[value=unusable]")
        _wait_for(browser, 0)
        assert found() == {newest: "7", third: "clean:1", second: "unusable"}
        assert "No alarm waits" in browser.run("return document.body.innerText")
        assert browser.complaints() == []


def test_a_class_of_many_is_chosen_from_a_list(browser, serve, store):
    with serve(Named(40)) as client:
        browser.open(f"{client.base_url}/review")
        browser.press("7")  # no key means a class here
        browser.run("document.querySelector('select').value = 23")
        browser.click(".choice button")
        _wait_for(browser, 2)
    assert [str(one.review) for one in store.evidence(reviewed=True)] == ["23"]


def _wait_for(browser, alarms):
    """Until the page shows so many alarms."""
    for _ in range(500):
        ready = "return document.readyState === 'complete' && !document.body.classList.contains('sent')"
        if browser.run(ready) and browser.run("return document.querySelectorAll('.alarm').length") == alarms:
            return
    raise AssertionError(browser.run("return document.body.innerText"))
