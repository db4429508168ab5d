"""--overwrite and --resume from the shell: nothing of the user's is destroyed."""

import os
import shutil
import signal

import pytest
from commands import run_in
from jobs_support import TINY

from robustcli.store.inventory import holds_nothing_else
from robustcli.store.status import read_status

QUICK = (*TINY, "train.steps=4", "train.validate_every=100", "train.save_every=2")
BARE = tuple(word for word in QUICK if not word.startswith("model."))
FEW = ("--n", "8", "eval.checks=0")
BERNOULLI = ("adversary.start=bernoulli", "ball.norm=l2", "ball.eps=0.5")  # refused at the first step


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with two trainings and an evaluation."""
    folder = run_in(
        tmp_path_factory.mktemp("trained"),
        ["train", *QUICK, "--out", "old"],
        ["eval", "--model", "run:old", *FEW, "--out", "measured"],
    )
    (folder / "old" / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def place(template, cli, tmp_path):
    """A copy of the template, which is the working directory; `base` is a copy of `old`."""
    for name in ("old", "measured"):
        shutil.copytree(template / name, tmp_path / name)
    (tmp_path / "base").symlink_to(template / "old")
    (tmp_path / "link").symlink_to("old")
    return tmp_path


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


REFUSED = {
    "data": (("train", *QUICK, "data.name=npz:/typo.npz"), 3),
    "model": (("train", *BARE, "--model", "run:typo"), 4),
    "weights": (("train", *QUICK, "--weights", "typo.safetensors"), 4),
    "device": (("train", *QUICK, "--device", "cuda:77"), 6),
    "key": (("train", *QUICK, "train.nonsense=1"), 2),
    "engine": (("train", *QUICK, "train.sync_bn=true"), 2),
    "first step": (("train", *QUICK, *BERNOULLI), 2),
    "both": (("train", *QUICK, "--resume"), 2),
    "eval": (("eval", "--model", "run:typo"), 4),
    "attack": (("attack", "--model", "run:base", "--data", "npz:/typo.npz"), 3),
    "itself": (("train", *BARE, "--model", "run:old"), 2),
    "itself by a link": (("eval", "--model", "run:link", *FEW), 2),
    "its checkpoint": (("attack", *BARE, "--model", "run:old/checkpoints", *FEW), 2),
    "its weights": (
        ("eval", *QUICK, "--weights", "old/checkpoints/step-00000004/model.safetensors", *FEW),
        2,
    ),
    "one of many": (("transfer", "--models", "run:base,run:old", *FEW), 2),
    "a surrogate": (("eval", "--model", "run:base", "--surrogate", "run:old", *FEW), 2),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_command_leaves_the_old_run_as_it_was(place, cli, what):
    argv, code = REFUSED[what]
    before = content(place / "old")
    answer = cli(*argv, "--out", "old", "--overwrite")
    assert answer.code == code and answer.err.count("error[") == 1, answer.err
    assert content(place / "old") == before


def test_an_overwrite_replaces_the_run_and_nothing_else(place, cli):
    assert cli("eval", "--model", "run:base", *FEW, "--out", "old", "--overwrite").code == 0
    assert (place / "old" / "notes.txt").read_text() == "mine" and not (
        place / "old" / "checkpoints"
    ).exists()
    (place / "old" / "notes.txt").unlink()
    assert holds_nothing_else(place / "old", "eval")


@pytest.mark.parametrize(
    "argv", [("eval", "--sweep", "eps=0..4/255"), ("eval", "--sweep", "distance"), ("attack",)]
)
def test_all_files_of_a_run_are_in_the_inventory(place, cli, argv):
    """What is not there would survive an --overwrite, and could be mistaken for a file of the new run."""
    wide = ("--attack", "deepfool") if argv[-1] == "distance" else ()
    answer = cli(*argv, *wide, "--model", "run:base", *FEW, "--out", "new")
    assert answer.code == 0 and holds_nothing_else(place / "new", argv[0]), answer.err


def test_a_merger_does_not_replace_its_parts(place, cli):
    before = content(place / "measured")
    answer = cli("eval", "--merge", "measured", "--out", "measured", "--overwrite")
    assert answer.code == 2 and "which this command reads" in answer.err
    assert content(place / "measured") == before


@pytest.mark.parametrize(("verb", "out"), [("eval", "old"), ("train", "measured")])
def test_a_resume_goes_on_with_its_own_verb_alone(place, cli, verb, out):
    before = content(place / out)
    argv = (verb, *QUICK) if verb == "train" else (verb, "--model", "run:base", *FEW)
    answer = cli(*argv, "--out", out, "--resume")
    assert answer.code == 2 and "E-RESUME" in answer.err and content(place / out) == before
    answer = cli(*argv, "--out", out)
    assert answer.code == 2 and "--resume" not in answer.err and content(place / out) == before


def test_a_refused_resume_leaves_the_run_as_it_was(place, cli):
    before = content(place / "old")
    assert cli("train", *QUICK, "seed=3", "--out", "old", "--resume").code == 2
    assert cli("train", *QUICK, "train.steps=3", "--out", "old", "--resume").code == 2
    assert content(place / "old") == before


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_a_resume_that_finds_nothing_says_so(place, cli, verb):
    argv = (verb, *QUICK) if verb == "train" else (verb, "--model", "run:old", *FEW)
    answer = cli(*argv, "--resume", "--name", "typo")
    assert answer.code == 0 and "--resume found no run to go on with" in answer.err
    assert f"runs/{verb}/typo-1" in answer.err
    assert "found no run" not in cli(*argv, "--resume", "--name", "typo").err


def test_a_restart_by_the_launcher_does_not_go_on_with_the_old_run(place, cli, tmp_path, monkeypatch):
    """Lost before it began, or before its first checkpoint: the new run replaces the old one all the same."""
    monkeypatch.setenv("ROBUSTCLI_RUN_FILE", str(tmp_path / "note"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    other = (*QUICK, "seed=3", "--out", "old", "--overwrite")
    (tmp_path / "note").touch()
    answer = cli("train", *other)
    assert answer.code == 0 and "resuming" not in answer.err
    os.mkdir(place / "old" / ".replaced")
    for name in ("status.json", "run.json", "checkpoints"):
        os.rename(place / "old" / name, place / "old" / ".replaced" / name)
    for path in list((place / "old").iterdir()):
        if path.is_file() and path.name not in (".lock", "notes.txt"):
            path.unlink()
    shutil.rmtree(place / "old" / "plots")
    answer = cli("train", *QUICK, "seed=4", "--out", "old", "--overwrite")
    assert answer.code == 0 and "resuming" not in answer.err and read_status(place / "old")["step"] == 4


def test_what_a_live_training_writes_goes_away(place, cli, monkeypatch):
    """The records are written back, the last step is saved, and --resume ends in the same numbers."""
    from robustcli.assembly.trainlog import Written

    save = Written.save

    def save_and_lose(self, progress, groups, tags):
        save(self, progress, groups, tags)
        if progress.step == 2:
            (self.run.path / "metrics.jsonl").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(Written, "save", save_and_lose)
        answer = cli("train", *QUICK, "--out", "new")
    assert answer.code == 6 and "E-GONE" in answer.err
    status = read_status(place / "new")
    assert (status["state"], status["code"], status["resumable"]) == ("failed", 6, True)
    assert cli("train", *QUICK, "--out", "new", "--resume").code == 0
    last = "checkpoints/step-00000004/model.safetensors"
    assert (place / "new" / last).read_bytes() == (place / "old" / last).read_bytes()


def test_the_last_checkpoint_has_the_record_of_its_own_weights(place, cli, monkeypatch):
    """Stopped in the last validation: the resume validates these weights, and saves what it measured."""
    from robustcli.errors import Interrupted
    from robustcli.store.snapshot import load_checkpoint
    from robustcli.training.validation import Validation

    def stopped(self, model):
        raise Interrupted("stopped by SIGTERM", signum=15)

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "__call__", stopped)
        assert cli("train", *QUICK, "--out", "new").code == 143
    assert cli("train", *QUICK, "--out", "new", "--resume").code == 0
    stored = load_checkpoint(place / "new" / "checkpoints" / "step-00000004").meta["progress"]
    whole = load_checkpoint(place / "old" / "checkpoints" / "step-00000004").meta["progress"]
    assert (stored["validated"], stored["last"]["step"]) == (4, 4)
    assert {**stored, "log_offset": 0} == {**whole, "log_offset": 0}
    assert stored["log_offset"] == (place / "new" / "metrics.jsonl").stat().st_size


def test_a_demo_that_is_stopped_between_two_phases_says_so(cli, tmp_path, monkeypatch):
    def stopped(run, base, console):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    monkeypatch.setattr("robustcli.jobs.demo._train", stopped)
    assert cli("demo", "--smoke", "--out", "demo").code == 143
    assert read_status(tmp_path / "demo")["state"] == "preempted"


def test_a_live_training_whose_directory_goes_away(place, cli, monkeypatch):
    from robustcli.assembly.trainlog import Written

    save = Written.save

    def save_and_lose(self, progress, groups, tags):
        save(self, progress, groups, tags)
        shutil.rmtree(self.run.path)

    monkeypatch.setattr(Written, "save", save_and_lose)
    answer = cli("train", *QUICK, "--out", "new")
    assert answer.code == 6 and "E-GONE" in answer.err and not (place / "new").exists()
