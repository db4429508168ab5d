"""The page in a real browser, on a desk, on a telephone and on paper: nothing is cut, nothing overlaps."""

import pytest
from browser import browsing
from reported import ALARM, KINDS, certificate, evaluation, transfer

from robustcli.jobs.evidence.report import write_report

LONG = "<b>" + "w" * 200
#: What is wrong with a page, in words.
LOOK = """
const wide = document.documentElement.clientWidth, found = [];
const shown = e => getComputedStyle(e).display !== 'none' && !e.closest('details:not([open])');
const name = e => e.tagName + '.' + e.className + ' ' + e.textContent.trim().slice(0, 40);
const say = (what, e) => found.push(what + ': ' + name(e));
if (document.documentElement.scrollWidth > wide) found.push('the page is wider than the window');
for (const e of document.body.querySelectorAll('*')) {
  const box = e.getBoundingClientRect();
  if (!box.width || !box.height || !shown(e)) continue;
  if (box.left < -0.5 || box.right > wide + 0.5) say('outside', e);
  if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline') say('cut', e);
  if (e.tagName === 'IMG' && !e.naturalWidth) say('no picture', e);
  const apart = [...e.children].filter(c => shown(c) && getComputedStyle(c).display !== 'inline');
  for (let i = 1; i < apart.length; i++) {
    const [a, b] = [apart[i - 1].getBoundingClientRect(), apart[i].getBoundingClientRect()];
    if (a.right - b.left > 1 && b.right - a.left > 1 && a.bottom - b.top > 1 && b.bottom - a.top > 1)
      say('overlaps', apart[i]);
  }
}
return found;
"""
#: Text that is hard to read on what lies behind it: contrast below 4.5, as WCAG 2 counts it.
PALE = """
const number = text => text.match(/[\\d.]+/g).map(Number);
const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const behind = e => {
  for (; e; e = e.parentElement) {
    const colour = number(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const contrast = e => {
  const [a, b] = [light(number(getComputedStyle(e).color)), light(behind(e))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
};
const says = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
return [...document.body.querySelectorAll('*')].filter(e => says(e) && contrast(e) < 4.5)
  .map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 30));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> page: hostile names, many columns, and runs side by side."""
    folder = tmp_path_factory.mktemp("pages")
    evil = evaluation(
        folder / "evil", 40, classes=(LONG, "cat"), model=LONG, attack="w" * 100, alarms=[ALARM]
    )
    runs = {
        "evil": [evil],
        "matrix": [transfer(folder / "matrix", [f"model {i}" for i in range(8)])],
        "several": [evaluation(folder / "a", 60), certificate(folder / "b"), evil],
        "demo": [KINDS["demo"](folder / "demo")],
    }
    made = {}
    for name, some in runs.items():
        (folder / "out" / name).mkdir(parents=True)
        made[name] = write_report([run.path for run in some], folder / "out" / name, check=False).report
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evil", "matrix", "several", "demo"])
def test_nothing_is_cut_and_nothing_overlaps(browser, pages, name):
    browser.open(pages[name].as_uri())
    for width in (1280, 768, 390):
        browser.look(width, 900, "light")
        assert browser.run(LOOK) == [], (name, width)
    browser.paper()
    assert browser.run(LOOK) == [], name
    assert browser.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(browser, pages, scheme):
    browser.open(pages["several"].as_uri())
    browser.look(1280, 900, scheme)
    assert browser.run(PALE) == []
