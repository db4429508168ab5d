"""Stored documents whose hash is right and whose content is not: a value or one explaining error, at once."""

import contextlib
import copy
import hashlib
import io
import itertools
import json
import shutil
import time

import pytest
from commands import run_in
from jobs_support import TINY

from robustcli.errors import RobustCliError
from robustcli.evaluation.header import _sha
from robustcli.evaluation.shardfile import _seal
from robustcli.models.source import load_model
from robustcli.store import manifest as manifests
from robustcli.store.sealed import _spell

QUICK = (*TINY, "train.steps=4", "train.validate_every=100", "train.save_every=4", "train.hooks=[ema]")
WRONG = (None, "x", -1, 10**12, 10**30, 0.5, True, [], {}, [[]], {"a": {}})


def places(document, path=()):
    """The paths of all fields of a document, at most two of a list."""
    items = document.items() if isinstance(document, dict) else enumerate(document[:2])
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def forgeries(document, wrong=WRONG):
    """(what was done, another document): a field left out, one more, or one of another type or size."""
    for path in places(document):
        for value in ("drop", "extra", *wrong):
            forged = copy.deepcopy(document)
            inner = forged
            for key in path[:-1]:
                inner = inner[key]
            if value == "drop":
                del inner[path[-1]]
            elif value == "extra" and isinstance(inner[path[-1]], dict):
                inner[path[-1]]["from a newer version"] = 1
            else:
                inner[path[-1]] = value
            yield f"{path}: {value!r}", forged


def outcome(what, call, allowed=RobustCliError):
    """Whether the call gave a value. Any end but an error of ours is a fault, and so is a slow one."""
    began = time.process_time()
    try:
        call()
        return True
    except allowed:
        return False
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        assert time.process_time() - began < 2, what


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a training, and an evaluation with an alarm."""
    words = ("--model", "run:run", "--attack", "pgd", "--steps", "2", "--n", "24", "eval.checks=0")
    return run_in(
        tmp_path_factory.mktemp("made"),
        ["train", *QUICK, "--out", "run"],
        ["eval", *words, "eval.shard_size=16", "--out", "measured"],
    )


@pytest.fixture
def place(made, cli, tmp_path):
    for name in ("run", "measured"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def sign(document):
    """The bytes of a manifest with its right hash."""
    document.pop("sha256", None)
    return _spell({**document, "sha256": hashlib.sha256(_spell(document)).hexdigest()})


def resumer(folder):
    """A function that resumes the training in `folder` up to its first step."""
    from robustcli.assembly.setting import prepare
    from robustcli.config.load import load_config
    from robustcli.config.overlay import parse_assignment
    from robustcli.jobs.trainrun import TrainRun
    from robustcli.jobs.verb_flags import TrainFlags
    from robustcli.runtime.distributed import solo
    from robustcli.store.rundir import open_run
    from robustcli.terminal.console import Console

    words = [parse_assignment(word, "x") for word in (*QUICK, "train.steps=5")]
    config = load_config(None, words, environ={}).config
    setting = prepare(
        config, Console(quiet=True, json=True), parts=("train", "val"), models=(f"run:{folder}",)
    )
    run = open_run("train", "run", out=str(folder), resume=True)
    training = TrainRun(setting, run, Console(quiet=True, json=True), TrainFlags(), lambda: None, solo())

    def resume():
        training._resume()
        training._fix_budget()

    return resume, run


SHARE = pytest.mark.parametrize("share", [149, pytest.param(1, marks=pytest.mark.slow)])


@SHARE
def test_checkpoints(place, share):
    file = place / "run" / "checkpoints" / "step-00000004" / manifests.NAME
    document = json.loads(file.read_bytes())
    resume, run = resumer(place / "run")
    with run, contextlib.redirect_stderr(io.StringIO()):
        resume()
        values = 0
        for what, forged in itertools.islice(forgeries(document["meta"]), 0, None, share):
            file.write_bytes(sign({**document, "meta": forged}))
            values += outcome(what, resume)
            if "progress" not in what:
                values += outcome(what, lambda: load_model("run:run"))
        assert values > 400 / share, "most fields of the configuration are only compared"
        newer = copy.deepcopy(document)
        newer["meta"]["progress"]["momentum_schedule"] = {"from": "a newer version"}
        file.write_bytes(sign(newer))
        assert outcome("a newer version", resume)
        others = forgeries({name: document[name] for name in document if name != "meta"})
        for what, forged in itertools.islice(others, 0, None, -(-share // 10)):
            file.write_bytes(sign({**forged, "meta": document["meta"]}))
            outcome(what, lambda: load_model("run:run"))


def merger(cli):
    def merge():
        shutil.rmtree("merged", ignore_errors=True)
        answer = cli("eval", "--merge", "measured", "--out", "merged", "-q", "--json")
        if answer.code:
            error = answer.document["error"]
            raise RobustCliError("x", code=error["code"]) if answer.code != 70 else AssertionError(answer.err)

    return merge


@SHARE
def test_headers_of_shards(place, cli, monkeypatch, share):
    """Without the pictures and tables of a merger, which cost more than all the rest."""
    monkeypatch.setattr("robustcli.jobs.merge.report", lambda *args, **options: {})
    file, merge = place / "measured" / "shards" / "header.json", merger(cli)
    document = json.loads(file.read_text())
    del document["sha256"]
    values = 0
    immense = {**document, "n": 10**12}
    file.write_text(json.dumps({**immense, "sha256": _sha(immense)}))
    outcome("n = 10**12", merge)
    for what, forged in itertools.islice(forgeries(document), 0, None, -(-share // 5)):
        file.write_text(json.dumps({**forged, "sha256": _sha(forged)}))
        values += outcome(what, merge)
    assert values > 0


def test_shards(place):
    from robustcli.evaluation.header import Header
    from robustcli.evaluation.shards import merge

    folder, said = place / "measured" / "shards", []
    file, header = folder / "0000.jsonl", Header.read(folder)
    head, first, *rest, _ = [json.loads(line) for line in file.read_text().splitlines()]
    for what, forged in forgeries({"head": head, "first": first}):
        lines = [forged.get("head"), forged.get("first"), *rest]
        body = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file.write_bytes(body + _seal(body))
        outcome(what, lambda: merge([folder], said.append))
    assert len(said) > 50 and header.shards == 2


def test_audits(place):
    from robustcli.evaluation.header import Header
    from robustcli.evaluation.shardfile import write_sealed
    from robustcli.evaluation.shards import AUDIT, audits

    folder = place / "measured" / "shards"
    header = Header.read(folder)
    document = {"header": header.digest, "looked": [1, 2], "fallen": [2], "answers": [3]}
    for what, forged in forgeries(document):
        write_sealed(folder / AUDIT, forged)
        outcome(what, lambda: audits([folder], header))
    write_sealed(folder / AUDIT, document)
    assert [part.tolist() for part in audits([folder], header)] == [[1, 2], [2], [3]]
