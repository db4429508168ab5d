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


@contextlib.contextmanager
def running(app):
    """A client of the application, which runs in a thread behind a real socket."""
    config = uvicorn.Config(app, log_config=None, server_header=False, lifespan="on")
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
