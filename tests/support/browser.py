"""A real browser without a window: Chromium through its driver, spoken to as the WebDriver standard says."""

import base64
import contextlib
import shutil
import subprocess
import time

import httpx
import pytest

from robustcli.guard.server.process import listen

_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
_KEYS = "element-6066-11e4-a52e-4f735466cecf"  # what the standard calls a reference


def needed():
    """(driver, browser), or a skip that says what is missing."""
    driver = shutil.which("chromedriver")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not browser:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    return driver, browser


class Browser:
    """One window."""

    def __init__(self, client, session):
        self._client, self._path = client, f"/session/{session}"

    def send(self, path, **body):
        """One command; its value."""
        reply = self._client.post(f"{self._path}/{path}", json=body).json()
        assert not (isinstance(reply["value"], dict) and "error" in reply["value"]), reply["value"]
        return reply["value"]

    def open(self, url):
        self.send("url", url=url)

    def run(self, script):
        """What a script returns."""
        return self.send("execute/sync", script=script, args=[])

    def click(self, selector):
        found = self.send("element", using="css selector", value=selector)
        self.send(f"element/{found[_KEYS]}/click")

    def press(self, key):
        kinds = ("keyDown", "keyUp")
        keys = {"type": "key", "id": "keys", "actions": [{"type": kind, "value": key} for kind in kinds]}
        self.send("actions", actions=[keys])

    def look(self, width, height, scheme):
        """The size of the window, and whether the user wants light or dark."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self._cdp("Emulation.setEmulatedMedia", media="", features=wanted)

    def paper(self, width=688):
        """As it is printed on A4, whose text is 182 mm wide."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False
        )
        self._cdp("Emulation.setEmulatedMedia", media="print", features=[])

    def picture(self, path):
        """The whole page as a PNG."""
        shot = self._cdp("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self):
        """What the console of the browser says."""
        return [entry["message"] for entry in self.send("se/log", type="browser")]

    def _cdp(self, command, **params):
        return self.send("goog/cdp/execute", cmd=command, params=params)


@contextlib.contextmanager
def browsing(folder):
    """A browser whose profile lies in `folder`."""
    driver, browser = needed()
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with open(folder / "driver.txt", "wb") as log:
        process = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log)
    options = {"binary": browser, "args": [*_FLAGS, f"--user-data-dir={folder / 'profile'}"]}
    wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, verify=False) as client:
            _wait_for(client)
            made = client.post("/session", json={"capabilities": wanted}).json()["value"]
            assert "sessionId" in made, made
            yield Browser(client, made["sessionId"])
            client.delete(f"/session/{made['sessionId']}")
    finally:
        process.terminate()
        process.wait()


def _wait_for(client):
    until = time.monotonic() + 30
    while True:
        try:
            client.get("/status")
            return
        except httpx.TransportError:
            assert time.monotonic() < until
            time.sleep(0.02)
