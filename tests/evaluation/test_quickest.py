"""The race at the start of a long run: what it tries, what it keeps, and when there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from commands import cli
from recorded import on_cpu
from torch import nn

from robustcli.assembly.attacks import make_search
from robustcli.config.schema import Config
from robustcli.evaluation import quickest as module
from robustcli.evaluation.plan import Search
from robustcli.evaluation.quickest import Length

__all__ = ["cli"]
X = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DAY = Length(seconds=86400.0)
CUDA = torch.device("cuda", 0)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def clock(monkeypatch):
    """clock(*ms): what the forms take, in the order of the race; the work is done once."""
    compiled = []

    def compile_(network, **options):
        compiled.append(network)
        return lambda x: nn.Module.__call__(network, x)

    def set_(*milliseconds):
        left = [ms / 1e3 for ms in milliseconds]

        def seconds_of(work, device):
            work()
            return left.pop(0)

        monkeypatch.setattr(module, "seconds_of", seconds_of)
        set_.left, set_.compiled = left, compiled
        return set_

    monkeypatch.setattr(torch, "compile", compile_)
    return set_


def race(length=DAY, **changes):
    twin, note = Search(graph=True, length=length, **changes).faithful(net(), X)
    assert note == "" and torch.allclose(twin(X), net()(X), atol=1e-5)
    return twin


# as it is, wide, graph, compiled, graph of compiled code
@pytest.mark.parametrize(
    ("milliseconds", "won", "said"),
    [
        (
            (9, 9, 3, 5, 2),
            "graph of compiled code",
            "runs CUDA graphs of compiled code: 2 ms a step of 8 images",
        ),
        ((9, 5, 4, 9, 9), "wide graph", "CUDA graphs: 4 ms"),
        (
            (9, 9, 9, 9, 9),
            "as it is",
            "runs as it is: 9 ms a step of 8 images (first convolution on 8 channels 9",
        ),
        ((9, 9, 8.9, 7, 8), "compiled", "compiled: 7 ms"),
    ],
)
def test_the_fastest_form_is_kept_and_named(milliseconds, won, said, clock, monkeypatch):
    on_cpu(monkeypatch)
    clock(*milliseconds)
    twin = race()
    assert said in twin.way and not clock.left
    assert (twin.graphs is not None) == ("graph" in won)
    assert (twin._compiled, "wide" in won) == (
        "compiled" in won,
        twin.copied.get_submodule("0").weight.shape[1] == 8,
    )
    if twin.graphs is not None:
        assert twin.graphs.recorded == 0, "what the race recorded is given back"


def test_a_form_that_fails_is_left_out(clock, monkeypatch):
    """Without a recorder and without a compiler the twin stays as it is."""

    def refused(network, **options):
        raise RuntimeError("no compiler")

    clock(9, 9, 9)
    monkeypatch.setattr(torch, "compile", refused)
    twin = race()
    assert (
        twin.graphs is None
        and "nothing records here" in twin.way
        and "compiled fails (RuntimeError)" in twin.way
    )


@pytest.mark.parametrize("length", [Length(seconds=500.0), Length(seconds=1000.0, sizes=6)])
def test_a_run_of_some_minutes_compiles_nothing(length, clock, monkeypatch):
    on_cpu(monkeypatch)
    clock(9, 9, 3)
    twin = race(length)
    assert twin.graphs is not None and not clock.compiled and "compiled" not in twin.way


@pytest.mark.parametrize("length", [None, Length(), Length(gradients=8 * 1000.0), Length(seconds=5.0)])
def test_a_short_run_makes_no_race(length, clock):
    """At most one form is timed, where seconds are given: it records what is asked again and again."""
    clock(9.0)
    twin = race(length)
    assert twin.graphs is not None and twin.way == ""
    assert len(clock.left) == (0 if length and length.seconds else 1)


def test_a_deterministic_run_makes_no_race(clock, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    clock()
    assert race().way == ""


@pytest.mark.parametrize(
    ("value", "device", "wanted"),
    [
        ("auto", CUDA, (False, True, DAY)),
        ("graph", CUDA, (False, True, None)),
        ("on", CUDA, (True, False, None)),
        ("off", CUDA, (False, False, None)),
        ("auto", torch.device("cpu"), (False, False, None)),
        ("graph", torch.device("cpu"), (False, False, None)),
        ("on", torch.device("cpu"), (True, False, None)),
    ],
)
def test_what_the_setting_means(value, device, wanted):
    config = Config.model_validate({"search": {"compile": value, "precision": "fp32"}})
    search = make_search(config, device, length=DAY)
    assert (search.compile, search.graph, search.length) == wanted
    assert search.exact().plain and not replace(search.exact(), graph=True).plain


def test_graphs_that_are_asked_for_without_cuda_are_refused_in_one_line(cli):
    answer = cli("eval", "--model", "small_cnn", "--data", "digits", "--dry-run", "search.compile=graph")
    said = "search.compile: graph needs CUDA; on cpu the search runs as it is"
    assert answer.code == 0 and answer.err.count(said) == 1
