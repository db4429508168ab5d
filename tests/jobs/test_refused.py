"""A command that is refused leaves nothing behind.

There is no directory, no `latest` without weights, nothing for --resume to stumble over.
"""

import os

import pytest
from commands import run_in
from jobs_support import TINY, environment, free_port

from robustcli.errors import DataError, NumericsError, PeerError
from robustcli.store import leftovers
from robustcli.store.status import read_status

QUICK = (*TINY, "train.steps=4", "train.validate_every=100", "train.save_every=2")
LATEST = ("--model", "run:runs/train/latest")
BERNOULLI = (
    "adversary.start=bernoulli",
    "ball.norm=l2",
    "ball.eps=0.5",
)  # refused by the attack, at the first step
CORNERS = (
    "--attack",
    "noise",
    "attacks.0.kind=corners",
    "--norm",
    "l2",
    "--eps",
    "0.5",
    "--n",
    "40",
    "eval.checks=0",
)

REFUSED = {
    "a value": (("train", *QUICK, *BERNOULLI), 2, "bernoulli"),
    "no data": (("train", *QUICK, "data.name=folder:nowhere"), 3, "nowhere"),
    "no weights": (("train", *QUICK, "model.weights=nowhere.npz"), 4, "nowhere.npz"),
    "other images": (("train", *LATEST, "data.name=digits", "threads=1", "train.steps=2"), 3, "1x8x8"),
    "parts that do not fit": (("train", *QUICK, "train.hooks=[ema, swa]"), 2, "both publish"),
    "no CUDA": (("train", *QUICK, "train.sync_bn=true"), 2, "needs CUDA"),
    "a value of eval": (("eval", *LATEST, *CORNERS), 2, "corners"),
    "a value of attack": (("attack", *LATEST, *CORNERS), 2, "corners"),
    "a value of transfer": (
        ("transfer", "--models", "run:runs/train/latest,run:runs/train/good-1", *CORNERS), 2, "corners",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with one finished training in it."""
    return run_in(tmp_path_factory.mktemp("trained"), ["train", *QUICK, "name=good"])


@pytest.fixture
def good(template, cli, tmp_path):
    import shutil

    shutil.copytree(template / "runs", tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


def left(folder):
    """Everything below a folder but empty parents of runs."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or path.is_file()
    )


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_command_leaves_nothing(good, cli, what):
    argv, code, words = REFUSED[what]
    before = left(good)
    answer = cli(*argv)
    assert answer.code == code and words in answer.err and answer.err.count("error[") == 1, answer.err
    assert left(good) == before and os.readlink(good / "train" / "latest") == "good-1"
    assert not any(
        path.is_dir()
        for verb in good.iterdir()
        for path in verb.iterdir()
        if path.name not in ("good-1", "latest")
    )


def test_the_next_resume_goes_on_with_the_run_before(good, cli):
    assert cli("train", *QUICK, "name=good", *BERNOULLI).code == 2
    answer = cli("train", *QUICK, "name=good", "train.steps=6", "--resume")
    assert (
        answer.code == 0
        and "resuming at step 4" in answer.err
        and answer.out.splitlines()[-1] == "runs/train/good-1"
    )
    assert cli("eval", *LATEST, "--n", "8", "eval.checks=0").code == 0


def test_what_may_work_the_next_time_keeps_its_directory(good, cli, monkeypatch):
    """Else --resume would go on with the run before, which had ended well."""
    with monkeypatch.context() as patch:
        patch.setattr("robustcli.store.disk.free_bytes", lambda path: 10)
        assert cli("train", *QUICK, "name=good", "train.steps=6").code == 6
    for error in (
        PeerError("rank 0 of 2 lost a peer"),
        DataError("a data worker died", code="E-WORKER"),
        NumericsError("the loss is not finite"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("robustcli.jobs.train.prepare", raising(error))
            assert cli("train", *QUICK, "name=good", "train.steps=6", "--resume").code == error.exit_code
        status = read_status(good / "train" / "good-2")
        assert (status["state"], status["code"], status["resumable"]) == ("failed", error.exit_code, False)
    answer = cli("train", *QUICK, "name=good", "train.steps=6", "--resume")
    assert (
        answer.code == 0
        and "resuming" not in answer.err
        and answer.out.splitlines()[-1] == "runs/train/good-2"
    )
    assert read_status(good / "train" / "good-1")["step"] == 4


def raising(error):
    def prepare(*args, **needs):
        raise error

    return prepare


def test_torchrun_finds_a_refused_run_by_its_name(good, cli, monkeypatch):
    """Its second attempt must not go on with an older run."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert cli("train", *QUICK, "name=good", *BERNOULLI).code == 2
    assert (good / "train" / "good-2").is_dir() and os.readlink(good / "train" / "latest") == "good-1"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert cli("train", *QUICK, "name=good", *BERNOULLI).code == 2
    assert (
        read_status(good / "train" / "good-1")["state"] == "done"
        and read_status(good / "train" / "good-2")["state"] == "failed"
    )


def test_what_comes_during_the_removal_stays(tmp_path, monkeypatch):
    """Another rank's batch that gave NaN, say."""
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", "status.json", "log.txt"):
        (run / name).touch()
    looked = leftovers.holds_no_result

    def slow(place, verb):
        found = looked(place, verb)
        (run / "nan_batch.rank1.safetensors").write_bytes(b"pixels")
        return found

    monkeypatch.setattr(leftovers, "holds_no_result", slow)
    leftovers.remove_without_result(run, "train")
    assert [path.name for path in run.iterdir()] == ["nan_batch.rank1.safetensors"]


def test_a_directory_of_the_user_stays_and_takes_the_corrected_command(good, cli, tmp_path):
    (tmp_path / "mine").mkdir()
    assert cli("train", *QUICK, *BERNOULLI, "--out", "mine").code == 2
    status = read_status(tmp_path / "mine")
    assert (status["state"], status["code"], status["resumable"]) == ("failed", 2, False), (
        "for launchers that answer 1 whatever happened"
    )
    assert cli("train", *QUICK, "--out", "mine").code == 0
    assert os.readlink(good / "train" / "latest") == "good-1"
    again = cli("train", *QUICK, "--out", "mine", "seed=3", "--resume")
    assert again.code == 2 and (tmp_path / "mine" / "summary.json").exists()


def test_a_crash_keeps_its_record_and_latest_its_run(good, cli, monkeypatch):
    monkeypatch.setattr("robustcli.jobs.train.prepare", lambda *a, **k: 1 / 0)
    assert cli("train", *QUICK, "name=good").code == 70
    assert "ZeroDivisionError" in (good / "train" / "good-2" / "crash.log").read_text()
    assert os.readlink(good / "train" / "latest") == "good-1"


def test_latest_moves_with_the_first_checkpoint(good, cli, monkeypatch):
    """Not at the start, and not only at the end: a killed run with a checkpoint can be evaluated."""
    from robustcli.assembly.trainlog import Written

    seen, save = [], Written.save

    def watched(self, progress, groups, tags):
        seen.append(os.readlink(good / "train" / "latest"))
        save(self, progress, groups, tags)
        seen.append(os.readlink(good / "train" / "latest"))

    monkeypatch.setattr(Written, "save", watched)
    assert cli("train", *QUICK, "name=next").code == 0
    assert seen[:3] == ["good-1", "next-1", "next-1"]


@pytest.mark.parametrize(
    ("words", "code", "says"), [(("train.batch_size=15",), 3, "15"), (BERNOULLI, 2, "bernoulli")]
)
def test_two_ranks_that_refuse_leave_nothing(good, forked, tmp_path, words, code, says):
    """One of them may hear of the other's end before it comes to refuse by itself.

    Then it has lost a peer, and keeps the directory.
    """
    before, port = left(good), free_port()
    waits = [
        forked(
            "train", *QUICK, *words, err=f"{rank}.err", out=f"{rank}.out",
            prepare=lambda rank=rank: os.environ.update(environment(rank, port)),
        )[0]
        for rank in range(2)
    ]  # fmt: skip
    codes = [wait() for wait in waits]
    assert (
        code in codes
        and set(codes) <= {code, 8}
        and any(says in (tmp_path / f"{rank}.err").read_text() for rank in range(2))
    )
    assert left(good) == before or (codes[0] == 8 and os.readlink(good / "train" / "latest") == "good-1")


def test_a_run_that_its_launcher_starts_again_moves_latest_too(good, cli, tmp_path, monkeypatch):
    """Lost before its first checkpoint, its directory was taken back: it goes on under the same name."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("ROBUSTCLI_RUN_FILE", str(tmp_path / "note"))
    (tmp_path / "note").write_text(str(good / "train" / "again-1"))
    assert cli("train", *QUICK, "name=again").code == 0
    assert (
        os.readlink(good / "train" / "latest") == "again-1"
        and read_status(good / "train" / "again-1")["state"] == "done"
    )
