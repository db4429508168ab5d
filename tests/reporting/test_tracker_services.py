"""The trackers mlflow and wandb store what the records say, a resume goes on there, and nobody is asked.

All tests of this file run where every way to a network leads to a listener that must not hear anything.
"""

from __future__ import annotations

import importlib.util
import json
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import cli
from jobs_support import TINY

from robustcli.config.spec import Spec
from robustcli.errors import ResourceError, UsageError
from robustcli.records.read import train_rows
from robustcli.records.train import TrainRow
from robustcli.reporting.pixels import panels_of, sheet
from robustcli.reporting.tracking import Trackers, open_trackers, scalars

__all__ = ["cli"]


def needs(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"needs {name}: pip install 'robustcli[{name}]'")


MLFLOW, WANDB = needs("mlflow"), needs("wandb")
EACH = [pytest.param("mlflow", marks=MLFLOW), pytest.param("wandb", marks=WANDB)]


@pytest.fixture(scope="module", autouse=True)
def nobody_is_asked() -> Iterator[None]:
    """Proxies and the server of W&B are a socket of ours, on which nobody may call."""
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listener:
        here = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "WANDB_BASE_URL"):
            patch.setenv(name, here)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
            patch.delenv(name, raising=False)
        for name in ("WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            patch.delenv(name, raising=False)  # what the trackers set is put to the test
        for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
            patch.delenv(name, raising=False)
        yield
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


def row(step: int, **changes: Any) -> TrainRow:
    common: dict[str, Any] = {"n": 100, "clean_acc": 0.75, "robust_acc": 0.5, "parts": {"ce": 1.0}}
    values = {**common, "images_per_second": 9.0, "peak_memory": 7, **changes}
    return TrainRow(step=step, epoch=step / 10, lr=0.1, loss=2.0 / step, norm="linf", eps=8 / 255, **values)


PIXELS = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8, 1), dtype=np.uint8)
PANELS = panels_of(PIXELS[0], PIXELS[1], 10.0)


def opened(name: str, folder: Path, **params: Any) -> Trackers:
    """A tracker opened as a run opens it; a warning is a failure."""
    return open_trackers([Spec.of(name, **params)], folder, lambda text: pytest.fail(text))


# ---- what a store says -------------------------------------------------------------------------------------

Points = dict[str, list[tuple[int, float]]]


def of_mlflow(folder: Path) -> tuple[str, Points]:
    """(run id, metric -> its points) of the only run in the store of a run directory."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlflow").absolute().as_uri())
    groups = [group.experiment_id for group in client.search_experiments()]
    (run,) = client.search_runs(groups)
    points = {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return run.info.run_id, points


def records_of_wandb(folder: Path) -> list[Any]:
    """The records of the only file of W&B there: blocks of 32 KiB, each record in one piece or several."""
    from wandb.proto import wandb_internal_pb2

    files = list(folder.glob("wandb/offline-run-*/*.wandb"))
    if not files:  # its process has not come to it yet
        return []
    (file,) = files
    data, at, piece, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(piece)
            found.append(record)
            piece = b""
    return found


def of_wandb(folder: Path) -> tuple[str, Points]:
    """The same of the only run of W&B in a run directory, once its process has written the end."""
    until = time.monotonic() + 20
    while not (found := records_of_wandb(folder)) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < until
        time.sleep(0.02)
    (run,) = {record.run.run_id for record in found if record.HasField("run")}
    points: Points = {}
    for record in found:
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        for name, value in items.items():
            if not name.startswith(("_", "examples")):
                points.setdefault(name, []).append((int(items["_step"]), json.loads(value)))
    return run, points


READ: dict[str, Callable[[Path], tuple[str, Points]]] = {"mlflow": of_mlflow, "wandb": of_wandb}


def points_of(rows: list[TrainRow]) -> Points:
    """What the records say."""
    points: Points = {}
    for each in rows:
        for name, value in scalars(each).items():
            points.setdefault(name, []).append((each.step, pytest.approx(value)))
    return points


# ---- both --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EACH)
def test_what_is_stored_is_what_the_records_say(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.resolved.yaml").write_text("ball: {norm: linf, eps: 8/255}\nattacks: [{name: pgd}]\n")
    rows = [row(5, fgsm_acc=0.6), row(10, fgsm_acc=0.7)]
    drawn = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    tracker = opened(name, tmp_path)
    assert tracker.examples == 8
    for each in rows:
        tracker.row(each)
        tracker.images(each.step, PANELS)
    tracker.close()
    _, points = READ[name](tmp_path)
    assert points == points_of(rows)
    same = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    assert same == drawn, "a tracked training draws what one without draws"


@pytest.mark.parametrize("name", EACH)
def test_a_resumed_run_goes_on_in_the_same_run(name: str, tmp_path: Path) -> None:
    """The first process ended after step 2, whose record counts; the second goes on from there."""
    first = opened(name, tmp_path)
    for step in (1, 2):
        first.row(row(step))
    first.close()
    run, _ = READ[name](tmp_path)
    second = opened(name, tmp_path)
    second.resume([row(1), row(2)])
    second.row(row(3))
    second.close()
    assert READ[name](tmp_path) == (run, points_of([row(1), row(2), row(3)]))


@pytest.mark.parametrize("name", EACH)
def test_one_that_joins_on_a_resume_gets_the_past(name: str, tmp_path: Path) -> None:
    tracker = opened(name, tmp_path, images=0)
    tracker.resume([row(1), row(2)])
    tracker.row(row(3))
    tracker.close()
    assert tracker.examples == 0 and READ[name](tmp_path)[1] == points_of([row(1), row(2), row(3)])


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_without_the_package_the_command_is_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name, *[known for known in sys.modules if known.startswith(f"{name}.")]]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ResourceError, match=f"the tracker {name} needs a package") as caught:
        opened(name, tmp_path)
    assert caught.value.code == "E-EXTRA" and caught.value.hint == f'pip install "robustcli[{name}]"'


@MLFLOW
@WANDB
def test_a_command_fills_both_and_its_resume_goes_on_there(cli: Any, tmp_path: Path) -> None:
    """One document on stdout, the records in both stores; a resume to more steps adds to the same runs."""
    words = ["train", *TINY, "--out", "run", "train.trackers=[{name: mlflow, images: 1}, wandb]"]
    answer = cli(*words, "train.steps=2", "--json")
    assert answer.code == 0 and "warning" not in answer.err and answer.document["ok"]
    runs = {name: read(tmp_path / "run")[0] for name, read in READ.items()}
    more = cli(*words, "train.steps=3", "--resume")
    assert more.code == 0 and "the tracker" not in more.err, more.err
    rows = train_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1].step == 3 and len(rows) > 1
    for name, read in READ.items():
        assert read(tmp_path / "run") == (runs[name], points_of(rows)), name


# ---- mlflow ------------------------------------------------------------------------------------------------


@pytest.fixture
def client() -> Callable[[str], Any]:
    """The client of a store."""
    from mlflow.tracking import MlflowClient

    return lambda uri: MlflowClient(tracking_uri=uri)


@MLFLOW
@pytest.mark.parametrize(
    "scheme",
    ["file", pytest.param("sqlite", marks=[pytest.mark.slow, needs("alembic")])],
)
def test_mlflow_has_the_configuration_the_pictures_and_the_end(
    scheme: str, tmp_path: Path, client: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a store beside the run, which `uri` names; a folder needs no scheme. Nothing goes where we work."""
    from PIL import Image

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.resolved.yaml").write_text("ball: {eps: 8/255}\nattacks: [{name: pgd}]\nseed: 0\n")
    place = f"sqlite:///{tmp_path}/store.db" if scheme == "sqlite" else str(tmp_path / "store")
    tracker = opened("mlflow", run_dir, uri=place, experiment="robust digits")
    store = client(place if scheme == "sqlite" else Path(place).as_uri())
    group = store.get_experiment_by_name("robust digits").experiment_id
    (run,) = store.search_runs([group])
    assert run.info.run_name == "run" and run.info.status == "RUNNING"
    assert run.data.params == {"ball.eps": "8/255", "attacks.0.name": "pgd", "seed": "0"}
    tracker.row(row(7))
    tracker.images(7, PANELS)
    tracker.close()
    (run,) = store.search_runs([group])
    assert run.info.status == "FINISHED" and run.data.metrics == pytest.approx(scalars(row(7)))
    picture = store.download_artifacts(run.info.run_id, "examples/step-0000007.png", str(tmp_path))
    assert np.array_equal(np.asarray(Image.open(picture)), sheet(PANELS))
    assert list(elsewhere.iterdir()) == []


@MLFLOW
def test_two_that_begin_at_once_share_the_experiment(
    tmp_path: Path, client: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question whether it is there and its making, another process makes it."""
    from mlflow.tracking import MlflowClient

    place = (tmp_path / "store").as_uri()
    ask, asked = MlflowClient.get_experiment_by_name, []

    def late(self: Any, name: str) -> Any:
        asked.append(name)
        if len(asked) == 1:
            MlflowClient.create_experiment(self, name)
            return None
        return ask(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    tracker = opened("mlflow", tmp_path, uri=place)
    tracker.row(row(1))
    (run,) = client(place).search_runs([ask(client(place), "robustcli").experiment_id])
    assert len(asked) == 2 and run.data.metrics["lr"] == 0.1


@MLFLOW
def test_mlflow_takes_up_only_what_the_store_still_has(tmp_path: Path, client: Callable[[str], Any]) -> None:
    """A run that somebody deleted is not written to; the new one gets all records."""
    opened("mlflow", tmp_path).row(row(1))
    run, _ = of_mlflow(tmp_path)
    store = client((tmp_path / "mlflow").as_uri())
    store.delete_run(run)
    tracker = opened("mlflow", tmp_path)
    tracker.resume([row(1)])
    again, points = of_mlflow(tmp_path)
    assert again != run and points == points_of([row(1)])
    (tmp_path / "mlflow.json").write_text(json.dumps({"store": "", "run": "0" * 32}))
    opened("mlflow", tmp_path).resume([row(1)])
    assert len(store.search_runs([store.get_run(again).info.experiment_id])) == 2


@MLFLOW
def test_a_store_that_goes_away_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tracker = open_trackers([Spec.of("mlflow")], tmp_path, said.append)
    tracker.row(row(1))
    (tmp_path / "mlflow").rename(tmp_path / "gone")
    for step in (2, 3):
        tracker.row(row(step))
    tracker.close()
    assert len(said) == 1 and said[0].startswith(
        "the tracker mlflow failed and gets nothing more from this run"
    )


@MLFLOW
def test_a_server_that_does_not_answer_ends_the_command_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(ResourceError, match="the tracker mlflow does not start"):
        opened("mlflow", tmp_path)
    assert not (tmp_path / "mlflow.json").exists() and not (tmp_path / "mlflow").exists()


@pytest.mark.parametrize("by", ["uri", "variable"])
def test_no_password_goes_into_a_run_directory(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "https://me:hidden@example.org"
    if by == "variable":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UsageError, match="holds a password") as caught:
        opened("mlflow", tmp_path, **({"uri": address} if by == "uri" else {}))
    assert "hidden" not in str(caught.value) and list(tmp_path.iterdir()) == []


# ---- wandb -------------------------------------------------------------------------------------------------


@WANDB
def test_wandb_has_the_configuration_and_the_pictures(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "config.resolved.yaml").write_text("ball: {eps: 8/255}\nseed: 0\n")
    tracker = opened("wandb", tmp_path, project="digits")
    tracker.row(row(7))
    tracker.images(7, PANELS)
    tracker.close()
    of_wandb(tmp_path)
    found = records_of_wandb(tmp_path)
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.project, run.display_name) == ("digits", tmp_path.name)
    settings = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert settings["ball"] == {"eps": "8/255"} and settings["seed"] == 0
    assert run.host == "-" and not run.git.remote_url, "nothing of the machine"
    (picture,) = (tmp_path / "wandb").rglob("*.png")
    assert np.array_equal(np.asarray(Image.open(picture))[..., :3], sheet(PANELS))


@WANDB
def test_wandb_forgets_what_did_not_count(tmp_path: Path) -> None:
    """A process was killed after step 4, and the checkpoint is of step 2."""
    killed = opened("wandb", tmp_path)
    for step in (1, 2, 3, 4):
        killed.row(row(step))
    killed.close()
    run, _ = of_wandb(tmp_path)
    tracker = opened("wandb", tmp_path)
    tracker.resume([row(1), row(2)])
    tracker.row(row(3, robust_acc=0.25))
    tracker.close()
    again, points = of_wandb(tmp_path)
    assert again == run and points["val/robust_acc"] == [(1, 0.5), (2, 0.5), (3, 0.25)]


class Fake:
    """In the place of `wandb.init`: keeps what it was asked for, and what was logged."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.steps: list[int] = []

    def __call__(self, **asked: Any) -> Fake:
        self.asked.append(asked)
        return self

    def log(self, values: Any, step: int) -> None:
        self.steps.append(step)

    def finish(self) -> None:
        raise TimeoutError("not all was sent")


@WANDB
@pytest.mark.parametrize(
    ("mode", "variable", "chosen"),
    [
        ("auto", None, "offline"),
        ("auto", "online", "online"),
        ("auto", "disabled", "disabled"),
        ("offline", "online", "offline"),
        ("online", None, "online"),
    ],
)
def test_the_network_is_for_those_who_ask_for_it(
    mode: str, variable: str | None, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online, a resume is left to the server: it has the steps before, and all are offered again."""
    import wandb

    fake, said = Fake(), list[str]()
    monkeypatch.setattr(wandb, "init", fake)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    for rows in ([], [row(1), row(2)]):
        tracker = open_trackers([Spec.of("wandb", mode=mode, entity="team")], tmp_path, said.append)
        if rows:
            tracker.resume(rows)
        tracker.row(row(3))
        tracker.close()
    assert [asked["mode"] for asked in fake.asked] == [chosen, chosen] and fake.steps == [3, 1, 2, 3]
    assert len({asked["id"] for asked in fake.asked}) == 1 and fake.asked[0]["entity"] == "team"
    resume = "allow" if chosen == "online" else None
    assert [asked["resume"] for asked in fake.asked] == [resume, resume]
    assert len(said) == 2 and all("not all was sent" in line for line in said), (
        "the training is over all the same"
    )
