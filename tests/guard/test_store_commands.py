"""`guard status`, `review`, `forget` and `log`, as a user runs them."""

import io
import json
import os
import re
import signal
import sqlite3
import stat
import sys
import time

import numpy as np
import pytest
from commands import run_in
from evidence import MODEL, pixels, seen

pytest.importorskip("sqlalchemy", reason="the extra guard is not installed")

from robustcli.guard.reference import reference_of  # noqa: E402
from robustcli.guard.rules import Reference  # noqa: E402
from robustcli.guard.store import EvidenceStore  # noqa: E402

HASH = re.compile(r"\b[0-9a-f]{16}\b")


@pytest.fixture
def store(tmp_path):
    """Five alarms among 100 answers, of a guard that expects that."""
    rng = np.random.default_rng(0)
    scores, began = rng.standard_normal(100), time.time() - 100
    with EvidenceStore.open(tmp_path / "evidence.db", create=True) as opened:
        answers = [
            seen(
                pixels(k) if k < 5 else None,
                scores={"energy": float(score)},
                time=began + k,
                label=k % 10,
            )
            for k, score in enumerate(scores)
        ]
        opened.record(MODEL, answers)
        names = ("ant", "bee", "cat", "dog", "owl", "5", "6", "7", "8", "9")
        fitted = Reference(199, 190, 9, {"energy": rng.standard_normal(199).tolist()}, names)
        opened.remember(MODEL, fitted.to_json())
        yield opened


def hashes(store):
    """Hashes of the images, in the order in which they came."""
    return [each.hash for each in reversed(store.evidence())]


# ---- status ------------------------------------------------------------------------------------------------


def test_status_is_ok_and_says_why(cli, store):
    answer = cli("guard", "status", store.where, "--fail-on", "act")
    assert answer.code == 0 and answer.out.startswith("ok: nothing differs from the clean images of the fit")
    assert "100 answers" in answer.out and "5 alarms (5.0%" in answer.out
    assert "5 images, 5 without a label" in answer.err


def attacked(store):
    store.record(MODEL, [seen(pixels((k, "bad")), scores={"energy": 6.0}) for k in range(40)])


def test_status_fails_only_where_it_is_asked_to(cli, store):
    attacked(store)
    answer = cli("guard", "status", store.where, "--json")
    assert answer.code == 0 and answer.document["state"] == "act" and answer.document["gate"] == []
    assert answer.document["alarms"] == 45 and answer.document["model"] == MODEL
    gated = cli("guard", "status", store.where, "--json", "--fail-on", "act")
    assert gated.code == 1 and gated.err.splitlines()[-1] == "gate not met: state is act"
    assert gated.document["ok"] and gated.document["gate"][0]["passed"] is False
    assert cli("guard", "status", store.where, "--fail-on", "watch").code == 1


@pytest.mark.parametrize(("window", "answers"), [("40", 40), ("30m", 140), ("1000000", 140)])
def test_windows_count_answers_or_look_back(window, answers, cli, store):
    attacked(store)
    answer = cli("guard", "status", store.where, "--window", window, "--json")
    assert answer.code == 0 and answer.document["observations"] == answers


def test_status_of_a_store_without_answers_is_to_be_watched(cli, tmp_path):
    EvidenceStore.open("new.db", create=True).close()
    answer = cli("guard", "status", "new.db", "--fail-on", "act")
    assert answer.code == 0 and answer.out == "watch: nothing was observed\n"


def test_status_looks_at_the_newest_model_alone(cli, store):
    store.record("b" * 64, [seen(scores={"energy": 0.0})] * 3)
    answer = cli("guard", "status", store.where)
    assert answer.code == 2 and "does not know what this guard was fitted on" in answer.err
    assert "--guard DIR" in answer.err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A guard of one detector around a small network, and one that only purifies; nothing is trained."""
    folder = tmp_path_factory.mktemp("fitted")
    fit = ["guard", "fit", "--model", "mlp", "data.name=digits", "-q"]
    run_in(folder, [*fit, "defences=[energy]", "--out", "g"], [*fit, "defences=[bit_depth]", "--out", "pure"])
    return folder


def test_what_was_fitted_is_what_clean_images_look_like(made):
    """The scores read off the quantiles are those of the calibration images."""
    manifest = json.loads((made / "g" / "guard.json").read_text())
    found = reference_of(made / "g")
    assert (found.n, found.rank) == (manifest["calibration"]["n"], manifest["calibration"]["rank"])
    assert list(found.classes) == manifest["classes"] and len(found.scores["energy"]) == found.n
    assert 0.03 < found.rate <= 0.05
    scores = np.asarray(found.scores["energy"])
    below = [float((scores <= quantile).mean()) for quantile in manifest["clean"]["energy"]]
    assert below == pytest.approx(np.linspace(0, 1, 101), abs=0.01 + 1 / found.n)
    above = scores > manifest["thresholds"][0]
    assert abs(above.sum() - manifest["calibration"]["alarms"]) <= 1


def test_a_run_tells_the_store_what_its_guard_was_fitted_on(cli, made, tmp_path):
    """From the fit to the judgement: clean images, then bright noise."""
    from PIL import Image
    from sklearn.datasets import load_digits

    for k, image in enumerate(load_digits().images[:80]):
        Image.fromarray((image / 16 * 255).astype(np.uint8)).save(tmp_path / f"{k}.png")
    assert cli("guard", "run", made / "g", tmp_path, "--store", "kept/s.db").code == 0
    judged = cli("guard", "status", "kept/s.db", "--json")
    assert judged.code == 0 and judged.document["state"] == "ok" and judged.document["observations"] == 80
    again = cli("guard", "status", "kept/s.db", "--guard", made / "g", "--json").document
    assert again["tests"] == judged.document["tests"]
    assert cli("guard", "status", "kept/s.db", "--guard", made / "pure").code == 2
    assert cli("guard", "status", "kept/s.db", "--guard", tmp_path).code == 4
    noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    for k, image in enumerate(noise):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    cli("guard", "run", made / "g", tmp_path, "--store", "kept/s.db")
    moved = cli("guard", "status", "kept/s.db", "--window", "60", "--fail-on", "act")
    assert moved.code == 1 and "scores of energy are" in moved.out
    assert cli("guard", "run", made / "pure", tmp_path / "0.png", "--store", "kept/s.db").code == 0


def test_a_run_keeps_within_the_room_and_the_days_that_it_is_given(cli, store, made, tmp_path):
    """Of a store that others have filled."""
    store.record(MODEL, [seen(pixels("large", 120_000))])
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "0.png")
    run = ["guard", "run", made / "g", tmp_path / "0.png", "--store", store.where]
    assert cli(*run, "--store-mb", "0.2").code == 0 and store.counts()["dropped_for_room"] == 0
    assert cli(*run, "--store-mb", "0.1").code == 0
    counts = cli("guard", "status", store.where, "--guard", made / "g", "--json").document["store"]
    assert counts["dropped_for_room"] == 6 and counts["image_bytes"] < 100_000
    store.record(MODEL, [seen(pixels("yesterday"), time=time.time() - 90_000)])
    assert cli(*run, "--store-days", "1").code == 0 and store.counts()["dropped_for_age"] == 1
    for wrong in (
        ["--store-days", "0"],
        ["--store-days", "nan"],
        ["--store-mb", "inf"],
        ["--store-mb", "nan"],
    ):
        assert cli(*run, *wrong).code == 2


@pytest.mark.parametrize("window", ["0", "3w", "", "1.5h"])
def test_other_windows_are_refused(window, cli, store):
    answer = cli("guard", "status", store.where, f"--window={window}")
    assert answer.code == 2 and "is no window" in answer.err


# ---- review ------------------------------------------------------------------------------------------------


def test_labels_come_from_the_command_line(cli, store):
    names = hashes(store)
    labels = [f"--label={names[0][:10]}=7", f"--label={names[1]}=clean:2", f"--label={names[2]}=unusable"]
    answer = cli("guard", "review", store.where, *labels, "--by", "ann", "--json")
    assert answer.code == 0 and answer.document["without_label"] == 2
    assert answer.document["labels"] == dict(zip(names, ["7", "clean:2", "unusable"], strict=False))
    assert [entry.body["by"] for entry in store.entries() if entry.kind == "review"] == ["ann"] * 3
    listed = cli("guard", "review", store.where, "--list")
    assert set(HASH.findall(listed.out)) == {name[:16] for name in names[3:]}
    everything = cli("guard", "review", store.where, "--list", "--all", "--json")
    assert [each["review"] for each in everything.document["images"]][-3:] == ["unusable", "clean:2", "7"]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("{}", "is not HASH=LABEL"),
        ("{}=cat", "is no label"),
        ("{}=10", "there is no class 10"),
        ("ffff=3", "no image"),
        ("=3", "several images"),
    ],
)
def test_one_wrong_label_stores_none(label, words, cli, store):
    name = hashes(store)[0]
    answer = cli("guard", "review", store.where, f"--label={name}=7", "--label", label.format(name))
    assert answer.code == 2 and words in answer.err
    assert store.evidence(reviewed=True) == []


def test_without_a_terminal_it_asks_for_a_list(cli, store, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("3\n"))
    answer = cli("guard", "review", store.where)
    assert answer.code == 2 and "--label HASH=LABEL" in answer.err and store.evidence(reviewed=True) == []


class Person(io.StringIO):
    """Somebody at a terminal, who looks at the picture of an image before answering."""

    def __init__(self, answers, screen):
        super().__init__("\n".join(answers) + "\n")
        self.screen, self.looked = screen, []

    def isatty(self):
        return True

    def readline(self, *size):
        path = re.findall(r"/\S+\.png", self.screen.getvalue())[-1]
        with open(path, "rb") as file:
            folder = stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode)
            self.looked.append((file.read(), folder, path))
        return super().readline(*size)


def test_a_person_labels_at_the_terminal(store, monkeypatch):
    """One image after another; a wrong word is asked for again, and the rest waits after `q`."""
    from robustcli.cli.main import run

    screen = io.StringIO()
    person = Person(["7", "nonsense", "12", "c", "s", "c:4", "q"], screen)
    monkeypatch.setattr(sys, "stdin", person)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    newest_first = hashes(store)[::-1]
    assert run(["guard", "review", store.where]) == 0
    reviews = {each.hash: str(each.review) for each in store.evidence(reviewed=True)}
    said = {0: "7", 1: "clean", 3: "clean:4"}
    assert reviews == {newest_first[k]: text for k, text in said.items()}
    assert [content for content, _, _ in person.looked] == [
        store.image(newest_first[k]) for k in (0, 1, 1, 1, 2, 3, 4)
    ]
    assert {mode for _, mode, _ in person.looked} == {0o700}
    assert not any(os.path.exists(os.path.dirname(path)) for _, _, path in person.looked)
    assert sys.stdout.getvalue() == "3 labelled, 2 without a label\n"
    said = screen.getvalue()
    assert "'nonsense' is no label" in said and "there is no class 12" in said and "[1/5]" in said
    assert "class 4 owl (75%); energy" in said  # of a guard that knows the names


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_leaves_in_the_middle_leaves_no_image_behind(number, code, store, monkeypatch):
    from robustcli.cli.main import run

    class Leaving(Person):
        def readline(self, *size):
            line = super().readline(*size)
            if line == "leave\n":
                os.kill(os.getpid(), number)
                time.sleep(5)
            return line

    screen = io.StringIO()
    person = Leaving(["7", "leave"], screen)
    monkeypatch.setattr(sys, "stdin", person)
    monkeypatch.setattr(sys, "stderr", screen)
    before = signal.getsignal(number)
    assert run(["guard", "review", store.where]) == code
    assert signal.getsignal(number) is before
    assert f"stopped by {number.name}" in screen.getvalue()
    assert not any(os.path.exists(os.path.dirname(path)) for _, _, path in person.looked)
    assert [str(each.review) for each in store.evidence(reviewed=True)] == ["7"]


# ---- forget, log -------------------------------------------------------------------------------------------


def test_forgotten_images_are_gone(cli, store):
    names = hashes(store)
    answer = cli("guard", "forget", store.where, names[0], names[1][:12], "--json")
    assert answer.code == 0 and answer.document["forgotten"] == 2 and answer.document["missing"] == 0
    assert hashes(store) == names[2:]
    with open(store.where, "rb") as file:
        content = file.read()
    assert pixels(0)[:50] not in content and pixels(4)[:50] in content
    again = cli("guard", "forget", store.where, names[0])
    assert again.code == 0 and again.out == "0 forgotten, 1 not in the store\n"
    assert cli("guard", "forget", store.where, names[0][:12]).code == 2
    assert "forget: hashes" in cli("guard", "log", store.where).out


def test_the_log_is_verified(cli, store):
    for name in hashes(store)[:3]:
        cli("guard", "review", store.where, "--label", f"{name}=1")
    answer = cli("guard", "log", store.where, "--verify", "--json", "--last", "2")
    document = answer.document
    assert answer.code == 0 and document["verified"] and document["in_all"] == 4
    assert [each["seq"] for each in document["entries"]] == [3, 4]
    head = document["entries"][-1]["hash"]
    assert document["head"] == head and head in cli("guard", "log", store.where, "--verify").err
    with sqlite3.connect(store.where) as raw:
        raw.execute("UPDATE guard_log SET body = replace(body, '\"1\"', '\"7\"') WHERE seq = 3")
    broken = cli("guard", "log", store.where, "--verify", "--json")
    assert broken.code == 3 and broken.document["error"]["code"] == "E-LOG"
    assert "broken at entry 3: its content was changed" in broken.err
    assert cli("guard", "log", store.where).code == 0
    with sqlite3.connect(store.where) as raw:
        raw.execute("DELETE FROM guard_log WHERE seq >= 3")
    assert cli("guard", "log", store.where, "--verify").code == 0
    assert "cut off" in cli("guard", "log", store.where, "--known", head[:8]).err
    assert cli("guard", "log", store.where, "--known", "not a hash").code == 2


@pytest.mark.parametrize("sub", [["status"], ["review"], ["log"], ["forget", "x"]], ids=lambda sub: sub[0])
def test_where_no_store_is_none_is_made(sub, cli, tmp_path):
    answer = cli("guard", sub[0], "nowhere.db", *sub[1:], "--json")
    assert answer.code == 3 and answer.document["error"]["code"] == "E-STORE"
    assert list(tmp_path.iterdir()) == []
