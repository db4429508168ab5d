"""A guarded model without training: small, and its alarms are known beforehand."""

import contextlib
import io
import threading

import httpx
import numpy as np
import torch
import uvicorn
from PIL import Image
from torch import nn

from robustcli.guard.server.process import listen
from robustcli.models.build import build_model
from robustcli.models.defended import make_defence
from robustcli.models.guard_file import Calibrated, GuardFacts, save_guard
from robustcli.models.guarded import GuardedModel
from robustcli.models.info import ModelInfo

SIDE = 8


class Look:
    def __init__(self, logits, scores):
        self.logits, self.scores = logits, scores


class Stub(nn.Module):
    """Class 0 for dark images, class 1 for bright ones; an alarm where the corner pixel is above one half."""

    def __init__(self, channels=1, size=SIDE, wait=lambda: None):
        super().__init__()
        self.info, self.reject, self.wait = (
            ModelInfo(2, channels, size, (0.0,) * channels, (1.0,) * channels),
            2,
            wait,
        )
        self.detectors, self.thresholds, self.classes = ["corner"], torch.tensor([0.5]), ("dark", "bright")
        self.sha256 = "0" * 64

    def look(self, x):
        self.wait()
        bright = x.flatten(1).mean(1) - 0.5
        return Look(torch.stack([-bright, bright], 1) * 8, {"corner": x[:, 0, 0, 0]})

    def rejection(self, logits, scores):
        return logits.amax(1) + scores["corner"] - 0.5


def pixels(level=0.2, alarm=False, size=SIDE):
    """uint8 [size, size]."""
    made = np.full((size, size), round(255 * level), np.uint8)
    made[0, 0] = 255 * alarm
    return made


def png(level=0.2, alarm=False, size=SIDE, mode="L", kind="PNG", **options):
    """The bytes of one image of equal pixels."""
    stream = io.BytesIO()
    Image.fromarray(pixels(level, alarm, size)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def write_guard(folder, threshold=0.0):
    """A real guard for images as those of `png`: a network without training, watched by its energy."""
    info = ModelInfo(3, 1, SIDE, (0.2,), (0.5,))
    network = build_model("small_cnn", {"widths": (4,), "strides": (2,)}, info, seed=0)
    guard = GuardedModel([network], [make_defence("energy", "energy", {}, info.shape, 3)], 3)
    guard.thresholds, guard.spreads = torch.tensor([threshold]), torch.ones(1)
    found = {"n": 99, "spread_n": 99, "rank": 95, "alarms": 4, "interval": [0.01, 0.1]}
    calibrated = Calibrated(**found, source="images", digest="d")
    clean = {"energy": torch.linspace(-2, 0.1, 101).tolist()}
    provenance = {"config": {}, "data": {"name": "x", "digest": "y"}}
    return save_guard(folder, guard, GuardFacts(("a", "b", "c"), 0.05, calibrated, clean, provenance))


@contextlib.contextmanager
def running(app):
    """A client of the application, which runs in a thread behind a real socket."""
    config = uvicorn.Config(app, log_config=None, server_header=False, lifespan="on")
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:  # verify: no certificates of the machine are read
            with httpx.Client(base_url=url, timeout=30, verify=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
