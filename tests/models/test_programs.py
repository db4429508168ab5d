"""Programs and functions as models: labels, counts, and one line for each way to answer wrongly."""

import os
import signal
import time

import pytest
import torch

from robustcli.api import attack, evaluate, load_model
from robustcli.errors import UsageError
from robustcli.models.blackbox import LabelFunction, labels_only
from robustcli.models.programs import Program

X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
#: A label that depends on the file: the length of the PNG, modulo 3.
LENGTH = """sh -c 'while read p; do echo $(( $(wc -c < "$p") % 3 )); done'"""
ONCE = """sh -c 'all=$(cat); for p in $all; do echo $(( $(wc -c < "$p") % 3 )); done'"""
NEVER = []


def program(command, timeout=20.0, say=NEVER.append):
    return Program(f"command:{command}", 3, timeout, say)


def test_it_answers_is_counted_and_stays_alive():
    model = program(LENGTH)
    first = model(X)
    pid = model._conversation._process.pid
    assert torch.equal(model(X), first) and first.sum() == 5 and first.max() == 1
    assert (model.queries, model._conversation._process.pid) == (10, pid)
    model._conversation.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert NEVER == []


def test_one_that_reads_all_of_its_input_is_started_for_each_batch():
    said = []
    model = program(ONCE, timeout=0.7, say=said.append)
    assert torch.equal(model(X), program(LENGTH)(X)) and torch.equal(model(X[:2]), program(LENGTH)(X[:2]))
    assert len(said) == 1 and "started for each batch" in said[0]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("nowhere-to-be-found", "cannot run nowhere-to-be-found: No such file"),
        ("sh -c 'echo no licence >&2; exit 3'", "ended with 3 after 0 of 5 answers: no licence"),
        ("sh -c 'read p; echo 1'", "ended with 0 after 1 of 5 answers"),
        ("sh -c 'while read p; do echo cat; done'", "answered 'cat', which is no class number"),
        ("sh -c 'while read p; do echo; done'", "answered '', which is no class number"),
        ("sh -c 'while read p; do echo 1.5; done'", "answered '1.5', which is no class number"),
        ("sh -c 'while read p; do echo 3; done'", "answered class 3, and the data have 0 to 2"),
        ("sh -c 'while read p; do echo -1; done'", "answered class -1"),
        ("sh -c 'echo 0; while read p; do echo 0; done'", "a line more than it was asked"),
        ("sleep 60", "gave no answer for 0.4 s, after 0 of 5"),
        ("sh -c 'read p; echo 0; sleep 60'", "gave no answer for 0.4 s, after 1 of 5"),
    ],
)
def test_each_wrong_way_to_answer_is_one_line(command, told):
    timeout = 0.4 if "60" in command else 20.0
    model = program(command, timeout)
    with pytest.raises(UsageError) as caught:
        model(X)
        time.sleep(0.05)
        model(X)
    assert told in caught.value.what and caught.value.code == "E-COMMAND" and "\n" not in caught.value.line()
    assert model._conversation._process is None, "the program is gone"


def test_a_program_that_dies_between_batches_is_one_line_too():
    model = program(LENGTH)
    model(X)
    os.killpg(model._conversation._process.pid, signal.SIGKILL)
    with pytest.raises(UsageError, match="ended with -9 after 0 of 5"):
        model(X)


def test_images_are_rounded_as_the_file_holds_them():
    model = program(LENGTH)
    assert torch.equal(model(X), model((X * 255).round() / 255))
    assert model.grain == 1 / 255


def test_the_words_are_the_identity_of_the_model():
    assert program(LENGTH).get_extra_state() != program(ONCE).get_extra_state()
    with pytest.raises(UsageError, match="names no program"):
        program(" ")
    with pytest.raises(UsageError, match="no command"):
        program("'open")
    with pytest.raises(UsageError, match="num_classes"):
        load_model("command:sh")


def half(x):
    return (x[:, :, :, :4].mean((1, 2, 3)) > x[:, :, :, 4:].mean((1, 2, 3))).long()


def test_a_function_is_a_model_of_labels():
    y = half(X)
    verdict = evaluate(half, X, y, eps=2.0, norm="l2", attack="surfree", queries=60)
    assert verdict.clean_acc == 1 and verdict.robust_acc == 0 and verdict.reliability == "ok", verdict
    points = attack(half, X, y, name="hopskipjump", eps=2.0, norm="l2", queries=60)
    assert (half(points) != y).all()
    with pytest.raises(UsageError, match="does not serve pgd"):
        evaluate(half, X, y, eps=0.1, attack="pgd")
    assert torch.equal(labels_only(half, 2)(X).argmax(1), y)
    with pytest.raises(UsageError, match="num_classes"):
        labels_only(half)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ([0, 1], "not one class number each"),
        (["a"] * 5, "not with class numbers"),
        ([0, 1, 2, 0, 7], "class 7"),
    ],
)
def test_a_function_that_answers_otherwise_is_one_line(answer, told):
    with pytest.raises(UsageError, match=told):
        LabelFunction(lambda x: answer, 3)(X)
