"""Runs the command line in forked children: torch is imported once, a kill costs milliseconds."""

import contextlib
import io
import json
import os
import signal
import sys
import time

import documents
import pytest
import torch
from jobs_support import TINY

from robustcli.cli.main import run


class Answer:
    """Exit code, stdout and stderr of one command."""

    def __init__(self, code, out="", err=""):
        self.code, self.out, self.err = code, out, err

    @property
    def document(self):
        document = json.loads(self.out)
        documents.check(document)
        return document


def run_in(folder, *commands):
    """Run commands, lists of words, in this folder and this process, silently; each must end with 0."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for words in commands:
                assert run(words) == 0, words
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Run in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

    def call(*argv):
        out, err = io.StringIO(), io.StringIO()
        rng, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([str(a) for a in argv])
        torch.set_rng_state(rng)
        torch.use_deterministic_algorithms(deterministic)
        assert "Traceback" not in err.getvalue(), err.getvalue()
        return Answer(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def forked(tmp_path, monkeypatch):
    """Start a command in a child; returns (wait, pid).

    `wait()` gives its exit code, negative for a signal. `prepare` is called there before.
    """
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    children = []

    def start(*argv, err="err.txt", out="out.txt", prepare=None):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                for number, name in ((1, out), (2, err)):
                    os.dup2(os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
                sys.stdout, sys.stderr = (
                    open(1, "w", buffering=1, closefd=False),
                    open(2, "w", buffering=1, closefd=False),
                )
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                if prepare is not None:
                    prepare()
                code = run([str(a) for a in argv])
            finally:
                os._exit(code)
        children.append(pid)

        def wait(seconds=300.0):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    children.remove(pid)
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.002)
            raise AssertionError(f"{argv} still runs after {seconds} s")

        return wait, pid

    yield start
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """One training in this process, so that no child imports what it needs again."""
    folder, rng = tmp_path_factory.mktemp("warm"), torch.get_rng_state()
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert run(["train", *TINY, "train.steps=1", "--out", str(folder / "run")]) == 0
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)
