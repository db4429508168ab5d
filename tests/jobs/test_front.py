"""A denoiser trained in front of a network that was never trained on noise, as a user does it."""

import json
import os
import signal
import time

import pytest
import torch
from jobs_support import TINY, final_state, same

from robustcli.models.source import load_model

BASE = (*TINY, "objective=natural", "train.steps=3")
DENOISE = (
    *(text for text in TINY if not text.startswith("model.")),
    *("objective={name: denoise, sigma: 0.3}", "train.optimizer={name: adamw, lr: 0.01}"),
    "train.front={name: denoiser, depth: 3, width: 4}",
    *("train.steps=9", "train.validate_every=3"),
)


def test_it_trains_opens_and_leaves_the_classifier_as_it_is(cli, tmp_path):
    assert cli("train", *BASE, "--out", "base").code == 0
    assert cli("train", *DENOISE, "--model", "run:base", "--out", "denoised").code == 0
    base, opened = load_model("run:base"), load_model("run:denoised")
    kept = opened.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in base.state_dict().items())
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(opened.bare(x), base(x)) and not torch.equal(opened(x), base(x))
    done = cli("eval", "--model", "run:denoised", *TINY[:2], "--n", "8", "--attack", "fgsm", "--json")
    assert done.code == 0 and json.loads(done.out)["n"] == 8
    again = cli("train", *DENOISE, "--model", "run:denoised", "objective.mse=1", "--out", "further")
    assert again.code == 0 and "denoise" in again.err


def test_it_resumes_to_the_same_bits(cli, forked, tmp_path):
    assert cli("train", *BASE, "--out", "base").code == 0
    more = (*DENOISE, "--model", "run:base")
    wait, _ = forked("train", *more, "--out", "reference")
    assert wait() == 0
    wait, pid = forked("train", *more, "--out", "run", err="run.txt")
    said, end = tmp_path / "run.txt", time.monotonic() + 60
    while not (said.exists() and "training " in said.read_text()) and time.monotonic() < end:
        time.sleep(0.001)
    os.kill(pid, signal.SIGTERM)
    wait()
    wait, _ = forked("train", *more, "--out", "run", "--resume")
    assert wait() == 0
    same(final_state(tmp_path / "run"), final_state(tmp_path / "reference"))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (("objective=denoise",), "denoise trains what stands in front of the model, and nothing does"),
        (("train.front=denoiser",), "train.front stands in front of a trained model"),
        (("train.front=jpeg",), "train.front"),
        (("train.front=denoiser", "train.front.depth=1"), "train.front.depth"),
        (("objective=gaussian", "train.hooks=[swa]"), "swa estimates BatchNorm on clean images"),
        (("objective={name: smoothadv, sigma: -1}",), "objective.sigma"),
        (("objective={name: consistency, copies: 0}",), "objective.copies"),
    ],
)
def test_what_does_not_go_together_is_one_line(cli, given, what):
    done = cli("train", *TINY, *given, "--dry-run")
    assert done.code == 2 and what in done.err and "Traceback" not in done.err
