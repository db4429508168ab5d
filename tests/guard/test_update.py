"""`robustcli guard update` as a user runs it: what passes is deployed, what does not is refused."""

import json
import os
import shutil

import pytest
import torch
from commands import run_in
from evidence import child, seen

import robustcli
from robustcli.config.sections import DataConfig
from robustcli.data.datasets import load_data
from robustcli.errors import CheckpointError
from robustcli.guard.evidence import png_of
from robustcli.guard.promotion import Deployment
from robustcli.guard.store import EvidenceStore, Review
from robustcli.guard.update import Decision, Lesson, Paired, divide
from robustcli.store import current

__all__ = ["child"]
QUICK = ("eval.n=40", "eval.checks=0", "attacks=[{name: pgd, steps: 2}]", "train.val_n=16")
LEARN = ("train.steps=4", "train.optimizer.lr=0.0001", "adversary.steps=1", "train.batch_size=32")
SPOIL = ("train.steps=12", "train.optimizer.lr=3", "objective=natural", "train.schedule=constant")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A guard, and a store with forty reviewed images: g, evidence.db."""
    folder = tmp_path_factory.mktemp("update")
    run_in(
        folder,
        [
            "train",
            "train/digits_natural",
            "--name",
            "t",
            "train.steps=40",
            "train.val_n=16",
            "model.widths=[8, 16]",
            "-q",
        ],
        ["guard", "fit", "--model", "run:runs/train/t-1", "defences=[energy]", "--out", "guards/g", "-q"],
    )
    split = load_data(DataConfig()).test
    x, y, _ = next(split.stream([torch.arange(40)], torch.device("cpu")))
    with EvidenceStore.open(folder / "evidence.db", create=True) as store:
        noise = 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
        names = store.record("a" * 64, [seen(png_of(image)) for image in (x + noise).clamp(0, 1)])
        for name, label in zip(names, y.tolist(), strict=True):
            store.review(name, Review("adversarial", label))
    return folder


@pytest.fixture
def made(base, tmp_path):
    """A copy of it in the working directory."""
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    return tmp_path


def kinds(folder):
    with EvidenceStore.open(folder / "evidence.db") as store:
        assert store.verify().ok
        return [entry.kind for entry in store.entries() if entry.kind != "review"]


def test_a_guard_that_passes_is_deployed_and_can_be_taken_back(cli, made):
    planned = cli("guard", "update", "evidence.db", "guards/g", "--dry-run", "--json")
    plan = planned.document["plan"]
    assert plan["trained_on"] + plan["decide"] == 40 and not (made / "runs" / "update").exists()
    answer = cli("guard", "update", "evidence.db", "guards/g", *QUICK, *LEARN, "--json")
    assert answer.code == 0, answer.err
    document = answer.document
    assert document["promoted"] and document["run"] == "runs/update/t-1"
    assert [row["name"].partition(",")[0] for row in document["comparisons"]][::2] == ["clean", "quarantined"]
    assert robustcli.load_model("guard:guards/current").sha256 == document["deployed"]["sha256"]
    assert (made / "guards" / "g" / "guard.json").is_file()
    ran = cli("eval", "--model", "guard:guards/current", *QUICK, "--json")
    assert ran.code == 0, ran.err
    assert "guards/current" not in (made / ran.document["run"] / "config.resolved.yaml").read_text()
    with EvidenceStore.open(made / "evidence.db") as store:
        body = next(entry.body for entry in store.entries() if entry.kind == "update")
    assert not set(body["trained"]) & set(body["decide"]) and len(body["trained"]) == plan["trained_on"]
    other = cli("guard", "update", "evidence.db", "guards/g", "--dry-run")
    assert other.code == 2 and "is not the guard that is deployed" in other.err
    back = cli("guard", "update", "evidence.db", "guards/current", "--rollback", "--json")
    assert back.code == 0 and back.document["deployed"]["path"] == "g", back.err
    assert robustcli.load_model("guard:guards/current").sha256 == document["before"]["sha256"]
    assert cli("guard", "update", "evidence.db", "guards/current", "--rollback").code == 2
    assert kinds(made) == ["create", "update", "gate", "promote", "promoted", "rollback", "rolled back"]


def test_a_guard_that_is_worse_is_refused(cli, made):
    answer = cli("guard", "update", "evidence.db", "guards/g", *QUICK, *SPOIL, "--json")
    assert answer.code == 1 and "gate not met: clean" in answer.err, answer.err
    assert not answer.document["promoted"] and not os.path.lexists(made / "guards" / "current")
    summary = json.loads((made / "runs" / "update" / "t-1" / "summary.json").read_text())
    assert summary["comparisons"][0]["lost"] > summary["comparisons"][0]["gained"]
    assert kinds(made) == ["create", "update", "gate"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("evidence.db", "guards/g", "--share", "1"), 2, "--share"),
        (("evidence.db", "guards/nowhere"), 4, "guards/nowhere"),
        (("nothing.db", "guards/g"), 3, "nothing.db"),
        (("evidence.db", "guards/g", "--rollback"), 2, "no version before"),
        (("evidence.db", "guards/g", "--held-out", "1e-9"), 2, "too few"),
        (("evidence.db", "guards/current", "--rollback"), 2, "nothing was promoted yet"),
        (("evidence.db", "guards/current"), 2, "nothing was promoted yet"),
    ],
)
def test_what_cannot_be_is_one_line(cli, made, words, code, said):
    answer = cli("guard", "update", *words)
    assert answer.code == code and said in answer.err, answer.err
    assert kinds(made) == ["create"]


def test_a_changed_version_is_not_deployed_again(cli, made):
    again = cli("guard", "fit", "guards/g/config.resolved.yaml", "--out", "guards/h", "guard.fpr=0.1", "-q")
    assert again.code == 0, again.err
    with EvidenceStore.open("evidence.db") as store:
        Deployment(store, made / "guards" / "g").promote(made / "guards" / "h")
        shutil.copy("guards/h/guard.json", "guards/g/guard.json")
        with pytest.raises(CheckpointError, match="not the one that was deployed"):
            Deployment(store, made / "guards" / "current").roll_back()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_kill_leaves_the_old_or_the_new_guard_whole(made, child, monkeypatch, links, after):
    """Killed right before or right after the switch; the next command finishes the log."""
    shutil.copytree(made / "guards" / "g", made / "guards" / "h")
    replace, link = os.replace, made / "guards" / "current"
    if not links:
        monkeypatch.setattr(os, "symlink", no_links)

    def killed(source, target):
        if after:
            replace(source, target)
        os._exit(0)

    def work(pipe):
        os.replace = killed
        with EvidenceStore.open(made / "evidence.db") as store:
            Deployment(store, made / "guards" / "g").promote(made / "guards" / "h")

    pid, _ = child(work)
    assert child.wait(pid) == 0
    named = "h" if after else None
    found = current.target_of(link)
    assert (found and found.name) == named
    with EvidenceStore.open(made / "evidence.db") as store:
        assert Deployment(store, link if after else made / "guards" / "g").version.path == (named or "g")
    if after:
        robustcli.load_model("guard:" + str(link))


def no_links(*args, **options):
    raise OSError("no links here")


def test_images_stay_on_their_side():
    """What was trained on never decides, and what decides is the same for the same share."""
    found = [Lesson(f"{k:02x}" + "0" * 62, 1) for k in range(256)]
    learn, decide = divide(found, 0.25, frozenset())
    assert len(decide) == 64 and set(learn) | set(decide) == set(found)
    again = divide(found, 0.5, frozenset(one.hash for one in learn))
    assert again[1] == decide


@pytest.mark.parametrize(
    ("lost", "gained", "rule", "passed"),
    [
        (4, 0, "not worse", True),  # p = 1/16
        (5, 0, "not worse", False),  # p = 1/32
        (5, 4, "not worse", True),
        (1, 0, "no fewer", False),
        (3, 3, "no fewer", True),
    ],
)
def test_the_gate_is_mcnemars_test(lost, gained, rule, passed):
    old = torch.tensor([True] * lost + [False] * gained + [True] * 7)
    new = torch.tensor([False] * lost + [True] * gained + [True] * 7)
    row = Paired("x", old, new, rule)
    assert (row.lost, row.gained, row.passed(0.05)) == (lost, gained, passed)
    assert Decision((row,), 0.05).passed is passed
    assert not Decision((row,), 0.05, believed=False).passed
