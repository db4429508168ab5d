"""`robustcli guard review`: a person says what the quarantined images are."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from robustcli.errors import Interrupted, UsageError
from robustcli.guard.store import Evidence, EvidenceStore, Review
from robustcli.jobs.guard.cells import moment, scores_in_words
from robustcli.records.document import Document
from robustcli.reporting.cells import Cell
from robustcli.reporting.tables import Table
from robustcli.store.atomic import write_new
from robustcli.terminal.console import Console

_ASKED = "true class (an attack), c[:CLASS] clean (a false alarm), u unusable, s skip, q quit: "
_SKIP, _QUIT = "skip", "quit"
_WORDS = {"c": "clean", "u": "unusable", "s": _SKIP, "": _SKIP, "q": _QUIT}
_COLUMNS = ["hash", "first", "last", "times", "answer", "scores", "label"]


def guard_review(
    where: str, console: Console, *, labels: Sequence[str], everything: bool, listed: bool, by: str
) -> dict[str, Any]:
    """Label quarantined images, from a list or at a terminal.

    Args:
        labels: HASH=LABEL, where a hash may be cut as long as it names one image.
        everything: take images with a label, too.
        listed: only show them.
        by: who labels, for the log.

    Raises UsageError for a wrong label, before any is stored, and where there is neither list nor terminal.
    """
    document = Document("guard review")
    with EvidenceStore.open(where) as store:
        if labels:
            given = _label(store, labels, by)
        else:
            waiting = store.evidence(reviewed=None if everything else False)
            if listed:
                rows = [_row(each, store.classes(each.model)) for each in waiting]
                console.table(Table(f"quarantine of {store.where}", _COLUMNS, rows))
                return document.finish(None, {"images": [each.to_json() for each in waiting]})
            given = _ask(store, waiting, console, by)
        left = store.counts()
    unlabelled = left["images"] - left["reviewed"]
    console.result(f"{len(given)} labelled, {unlabelled} without a label")
    return document.finish(None, {"labels": given, "without_label": unlabelled})


def _label(store: EvidenceStore, labels: Sequence[str], by: str) -> dict[str, str]:
    """Store labels; none where one of them is wrong. Returns hash -> label."""
    reviews = {}
    for text in labels:
        start, equals, label = text.partition("=")
        if not equals:
            raise UsageError(f"--label {text!r} is not HASH=LABEL", hint="for example --label 3fa94c=7")
        reviews[store.named(start)] = Review.parse(label)
    store.review_all(reviews, by)
    return {name: str(review) for name, review in reviews.items()}


def _ask(store: EvidenceStore, waiting: Sequence[Evidence], console: Console, by: str) -> dict[str, str]:
    """Show one image after another and ask; each answer is stored at once. Returns hash -> label."""
    if not sys.stdin.isatty():
        hint = "give --label HASH=LABEL; --list shows the hashes"
        raise UsageError("there is no terminal to ask at", hint=hint)
    given: dict[str, str] = {}
    with _raising_signals(), tempfile.TemporaryDirectory(prefix="robustcli-review-") as folder:  # mode 0700
        for k, each in enumerate(waiting, 1):
            path = Path(folder) / f"{each.hash[:16]}.png"
            write_new(path, store.image(each.hash))
            console.info(f"[{k}/{len(waiting)}] {_described(each, store.classes(each.model))}\n  {path}")
            label = _labelled(store, each, console, by)
            path.unlink()
            if label == _QUIT:
                break
            if label != _SKIP:
                given[each.hash] = label
    return given


@contextmanager
def _raising_signals() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal end the wait for an answer: no image is left behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        code = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        raise Interrupted(f"stopped by {signal.Signals(number).name}", signum=code)

    numbers = [signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)])]
    before = [(number, signal.signal(number, stop)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _labelled(store: EvidenceStore, each: Evidence, console: Console, by: str) -> str:
    """Ask until the answer is a label, which is stored, or one of the words `skip` and `quit`; returns it."""
    while True:
        word = _answer()
        if word in (_SKIP, _QUIT):
            return word
        try:
            review = Review.parse(word)
            store.review(each.hash, review, by)
        except UsageError as error:
            console.info(f"{error}")
        else:
            return str(review)


def _answer() -> str:
    """What the person wrote, without abbreviations. The end of the input is `quit`."""
    sys.stderr.write(_ASKED)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        return _QUIT
    head, colon, rest = line.strip().partition(":")
    return _WORDS.get(head, head) + colon + rest


def _described(each: Evidence, classes: Sequence[str]) -> str:
    times = f", {each.seen} times" if each.seen > 1 else ""
    label = "" if each.review is None else f"; labelled {each.review}"
    found = f"class {_class(each, classes)}; {scores_in_words(each.scores)}"
    return f"{each.hash[:16]}: {moment(each.last)}{times}: {found}{label}"


def _row(each: Evidence, classes: Sequence[str]) -> list[Cell]:
    label = "" if each.review is None else str(each.review)
    times: list[Cell] = [each.hash[:16], moment(each.time), moment(each.last), each.seen]
    return [*times, _class(each, classes), scores_in_words(each.scores), label]


def _class(each: Evidence, classes: Sequence[str]) -> str:
    """`3 (98%)`, or `3 cat (98%)` where the class has a name of its own."""
    name = ""
    if each.label < len(classes) and classes[each.label] != str(each.label):
        name = f" {classes[each.label]}"
    return f"{each.label}{name} ({each.confidence:.0%})"
