"""Trackers get every record and the examples. Whatever they do, the run goes on and its files are whole."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from jobs_support import TINY, final_state, same

from robustcli import registry
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.setting import prepare
from robustcli.assembly.trainlog import Examples, Written
from robustcli.cli.main import run as command
from robustcli.config.dump import dump_config
from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.config.spec import Spec
from robustcli.core.geometry import Ball
from robustcli.errors import ConfigError, Interrupted, ResourceError, UsageError
from robustcli.facts import NoFacts
from robustcli.records.read import train_rows
from robustcli.records.train import TrainRow
from robustcli.registry import Entry
from robustcli.reporting.pictures import training
from robustcli.reporting.pixels import Panels, panels_of, sheet
from robustcli.reporting.tracking import Trackers, open_trackers, scalars
from robustcli.store.rundir import open_run
from robustcli.terminal.console import Console
from robustcli.training.resume import classify
from robustcli.training.trainplan import Progress

Warnings = list[str]


def draw() -> None:
    """Draw from every generator, as the library of a tracker may: MLflow does for one experiment in ten."""
    random.random()
    np.random.random()
    torch.rand(())


def drawn() -> tuple[Any, ...]:
    """What the process has drawn so far."""
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


class Recorder:
    """Keeps what it is given; raises in the method `broken`."""

    def __init__(self, examples: int = 2, broken: str = "") -> None:
        self.examples, self.broken = examples, broken
        self.calls: list[tuple[str, Any]] = []

    def _take(self, name: str, value: Any) -> None:
        draw()
        self.calls.append((name, value))
        if name == self.broken:
            raise OSError("no route to host\nand more")

    def resume(self, rows: Sequence[TrainRow]) -> None:
        self._take("resume", [row.step for row in rows])

    def row(self, row: TrainRow) -> None:
        self._take("row", row)

    def images(self, step: int, panels: Panels) -> None:
        self._take("images", (step, dict(panels)))

    def close(self) -> None:
        self._take("close", None)

    def of(self, name: str) -> list[Any]:
        return [value for called, value in self.calls if called == name]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Registers the trackers `recorder` and `unable`; the list holds every recorder that was opened."""
    opened: list[Recorder] = []

    def recorder(run_dir: Path, *, examples: int = 2, broken: str = "") -> Recorder:
        """Keeps all."""
        assert run_dir.is_dir()
        draw()
        opened.append(Recorder(examples, broken))
        return opened[-1]

    def unable(run_dir: Path) -> Recorder:
        """Never starts."""
        raise RuntimeError("log in first")

    for fn in (recorder, unable):
        fn.__annotations__ = {k: {"int": int, "str": str}.get(v, Any) for k, v in fn.__annotations__.items()}
        monkeypatch.setitem(registry.trackers._entries, fn.__name__, Entry(fn.__name__, fn, NoFacts()))
    return opened


def row(step: int, **changes: Any) -> TrainRow:
    values: dict[str, Any] = {
        "n": 100,
        "clean_acc": 0.75,
        "robust_acc": 0.5,
        "parts": {"ce": 1.0},
        "images_per_second": 9.0,
        "peak_memory": 7,
    } | changes
    return TrainRow(step=step, epoch=step / 10, lr=0.1, loss=2.0 / step, norm="linf", eps=8 / 255, **values)


# ---- numbers and pictures ----------------------------------------------------------------------------------


def test_only_what_was_measured_has_a_number() -> None:
    assert scalars(row(4, fgsm_acc=0.6)) == {
        "train/loss": 0.5, "train/ce": 1.0, "val/clean_acc": 0.75, "val/robust_acc": 0.5, "val/fgsm_acc": 0.6,
        "lr": 0.1, "images_per_second": 9.0, "waiting_share": 0.0, "peak_memory": 7.0,
    }  # fmt: skip
    assert not {
        name for name in scalars(row(4, n=0, clean_acc=None, robust_acc=None)) if name.startswith("val/")
    }


def pixels(channels: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (3, 4, 5, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_panels_and_their_sheet_show_the_pixels(channels: int) -> None:
    clean, adversarial = pixels(channels), pixels(channels, 1)
    panels = panels_of(clean, adversarial, 2.0)
    assert list(panels) == ["clean", "adversarial", "difference"] and {p.shape for p in panels.values()} == {
        (3, 4, 5, 3)
    }
    assert np.array_equal(
        panels["clean"][..., 1], clean[..., 1] if channels == 3 else np.rint(clean.mean(axis=3))
    )
    expected = np.clip(np.rint(127.5 + 2.0 * (adversarial[..., 0].astype(float) - clean[..., 0])), 0, 255)
    if channels != 2:
        assert np.array_equal(panels["difference"][..., 0], expected)
    picture = sheet(panels)
    side, gap = 19, 4  # an image of 4 x 5 pixels is enlarged 19 times: 5 * 19 <= 96
    high, wide = 4 * side, 5 * side
    assert picture.shape == (3 * high + 2 * gap, 3 * wide + 2 * gap, 3)
    assert (picture[high : high + gap] == 255).all() and (picture[:, wide : wide + gap] == 255).all()
    for i, panel in enumerate(panels.values()):
        for k in range(3):
            top, left = i * (high + gap), k * (wide + gap)
            tile = picture[top : top + high, left : left + wide]
            assert np.array_equal(tile, panel[k].repeat(side, 0).repeat(side, 1))


def test_other_pictures_are_refused() -> None:
    fine = pixels(3)
    for clean, adversarial, amplify in (
        (fine.astype(float), fine, 1.0),
        (fine, fine[:2], 1.0),
        (fine[0], fine[0], 1.0),
        (fine, fine, 0.0),
    ):
        with pytest.raises(ValueError, match="uint8|amplify"):
            panels_of(clean, adversarial, amplify)  # type: ignore[arg-type]
    empty: list[Mapping[str, Any]] = [{}, {"a": fine, "b": fine[:2]}, {"a": fine[:0]}]
    for panels in empty:
        with pytest.raises(ValueError, match="one shape"):
            sheet(panels)


def test_the_curves_show_fgsm_where_it_was_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    original = training.accuracy_axis
    monkeypatch.setattr(training, "accuracy_axis", lambda axes: (drawn.append(axes), original(axes))[1])
    training.training_curves(tmp_path / "with.png", [row(1, fgsm_acc=0.6), row(2), row(3, fgsm_acc=0.7)])
    training.training_curves(tmp_path / "without.png", [row(1), row(2)])
    lines = [{box.get_label().partition(":")[0]: box.lines[0] for box in axes.containers} for axes in drawn]
    assert [list(found) for found in lines] == [["clean", "robust", "fgsm"], ["clean", "robust"]]
    assert list(lines[0]["fgsm"].get_xdata()) == [0.1, 0.3] and list(lines[0]["fgsm"].get_ydata()) == [
        60.0,
        70.0,
    ]


# ---- a group of trackers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["resume", "row", "images", "close"])
def test_a_tracker_that_raises_is_dropped_with_one_line_and_the_others_go_on(broken: str) -> None:
    said: Warnings = []
    bad, good = Recorder(broken=broken), Recorder(examples=1)
    both = Trackers({"bad": bad, "good": good}, said.append)
    assert len(both) == 2 and both.examples == 2
    both.resume([])
    for step in (1, 2):
        both.row(row(step))
        both.images(step, {"clean": pixels(3)})
    both.close()
    assert said == ["the tracker bad failed and gets nothing more from this run: OSError: no route to host"]
    assert bad.calls[-1][0] == broken and len(bad.of(broken)) == 1
    assert [name for name, _ in good.calls] == ["resume", "row", "images", "row", "images", "close"]
    assert [len(panels["clean"]) for _, panels in good.of("images")] == [1, 1], (
        "each gets as many as it wants"
    )
    both.close()
    assert len(good.of("close")) == 1 and both.examples == 0


def test_a_tracked_training_draws_what_one_without_draws(made: list[Recorder], tmp_path: Path) -> None:
    before = drawn()
    group = open_trackers([Spec.of("recorder", broken="close")], tmp_path, lambda text: None)
    group.resume([row(1)])
    group.row(row(2))
    group.images(2, {"clean": pixels(3)})
    group.close()
    assert [name for name, _ in made[0].calls] == ["resume", "row", "images", "close"]
    assert drawn() == before


def test_who_wants_no_examples_gets_none() -> None:
    none = Recorder(examples=0)
    group = Trackers({"none": none}, lambda text: None)
    group.images(1, {"clean": pixels(3)})
    assert group.examples == 0 and none.calls == []


@pytest.mark.parametrize(
    ("specs", "kind", "words"),
    [
        ([Spec.of("recordr")], ConfigError, "did you mean 'recorder'"),
        ([Spec.of("recorder", exampels=1)], ConfigError, "did you mean 'examples'"),
        ([Spec.of("tensorboard", images=65)], ConfigError, "train.trackers.0.images"),
        ([Spec.of("tensorboard", flush=-1)], ConfigError, "train.trackers.0.flush"),
        ([Spec.of("recorder"), Spec.of("recorder")], UsageError, "twice"),
        (
            [Spec.of("recorder"), Spec.of("unable")],
            ResourceError,
            "RuntimeError: log in first; train.trackers.1",
        ),
    ],
)
def test_what_cannot_start_is_said_before_the_training(
    made: list[Recorder], specs: list[Spec], kind: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        open_trackers(specs, tmp_path, lambda text: None)
    assert words in "\n".join([str(caught.value), *getattr(caught.value, "problems", [])])


def test_the_documented_example_is_a_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "tracking.md").read_text(encoding="utf-8")
    monkeypatch.setattr(registry.trackers, "_entries", dict(registry.trackers._entries))
    exec(page.split("```python\n")[1].split("```")[0], {"__name__": "example"})
    group = open_trackers([Spec.of("printed")], tmp_path, lambda text: pytest.fail(text))
    group.resume([row(1)])
    group.row(row(2))
    group.images(2, {})
    group.close()
    assert capsys.readouterr().out.startswith("2 {'train/loss': 1.0, ")


# ---- configuration -----------------------------------------------------------------------------------------


def test_the_key_round_trips_and_may_change_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: {trackers: [tensorboard, {name: tensorboard, images: 0, flush: 1/2}]}\n")
    config = load_config(path, [], environ={}).config
    assert [(spec.name, spec.params) for spec in config.train.trackers] == [
        ("tensorboard", {}),
        ("tensorboard", {"images": 0, "flush": "1/2"}),
    ]
    path.write_text(dump_config(config))
    assert load_config(path, [], environ={}).config == config
    assert load_config(None, [], environ={}).config.train.trackers == []
    assert classify("train.trackers") == "harmless"


# ---- in a run ----------------------------------------------------------------------------------------------


class Papers:
    """A `Written` of a tiny run; its setting, model and the warnings it showed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *trackers: str) -> None:
        words = [*TINY, f"train.trackers=[{', '.join(trackers)}]", "attack.amplify=1"]
        config = load_config(
            None, [parse_assignment(word, "command line") for word in words], environ={}
        ).config
        console = Console(quiet=True)
        self.said: Warnings = []
        monkeypatch.setattr(console, "warn", self.said.append)
        self.setting = prepare(config, console)
        self.model = ModelSource(self.setting).to_train()
        self.run = open_run("train", "run", out=str(folder / "run"))
        self.log = Written(self.run, self.setting, {}, {}, "digest", console, {"attack": "pgd"})
        self.log.open()

    def examples(self, stop: Callable[[], None] | None = None) -> Examples:
        return Examples(self.setting, lambda: self.model, self.setting.data.val, torch.arange(3, 9), stop)

    def record(self, *steps: int) -> None:
        for step in steps:
            self.log.row(
                {
                    "step": step,
                    "epoch": step / 4,
                    "lr": 0.1,
                    "loss": 2.0,
                    "ce": 1.0,
                    "n": 4,
                    "clean_acc": 0.75,
                    "robust_acc": 0.5,
                }
            )

    def steps(self) -> list[int]:
        return [row.step for row in train_rows(self.run.path / "metrics.jsonl")]


Make = Callable[..., Papers]


@pytest.fixture
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Recorder]) -> Iterator[Make]:
    rng, threads = torch.get_rng_state(), torch.get_num_threads()
    opened: list[Papers] = []

    def make(*trackers: str) -> Papers:
        opened.append(Papers(tmp_path, monkeypatch, *trackers))
        return opened[-1]

    yield make
    for each in opened:
        each.run.close()
    torch.set_rng_state(rng)
    torch.set_num_threads(threads)


def test_written_hands_on_rows_and_images(papers: Make, made: list[Recorder]) -> None:
    run = papers("{name: recorder, examples: 4}")
    run.record(1)
    run.log.show(run.examples())
    run.record(2, 3)
    run.log.finish(Progress(step=3))
    (tracker,) = made
    assert [each.step for each in tracker.of("row")] == run.steps() == [1, 2, 3]
    assert tracker.of("row")[0] == train_rows(run.run.path / "metrics.jsonl")[0]
    assert [name for name, _ in tracker.calls] == ["row", "row", "images", "row", "images", "close"]
    (first, panels), (second, again) = tracker.of("images")
    assert (first, second) == (2, 3) and run.said == []
    x, _, ids = next(iter(run.setting.data.val.stream([torch.arange(3, 7)], run.setting.device)))
    assert np.array_equal(
        panels["clean"], (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    )
    moved = np.abs(panels["adversarial"].astype(int) - panels["clean"]).max(axis=(1, 2, 3))
    assert (moved > 0).all() and (moved <= run.setting.ball.eps * 255 + 1e-3).all() and len(ids) == 4
    assert all(np.array_equal(again[name], panels[name]) for name in panels), (
        "the same model, images and draws"
    )


def test_examples_leave_the_model_as_it_was(papers: Make) -> None:
    run = papers()
    run.model.train()
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    rng = torch.get_rng_state()
    panels = run.examples()(100)
    assert len(panels["clean"]) == 6, "no more than there are"
    assert all(module.training for module in run.model.modules()) and all(
        p.requires_grad and p.grad is None for p in run.model.parameters()
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize(
    "adversary",
    [
        "{name: deepfool, steps: 3}",
        "{name: noise, draws: 2}",
        "{name: corruption, type: gaussian_noise, severity: 5}",
    ],
)
def test_every_kind_of_attack_can_be_shown(papers: Make, adversary: str) -> None:
    run = papers()
    config = load_config(
        None, [parse_assignment(f"adversary={adversary}", "command line")], environ={}
    ).config
    run.setting = replace(run.setting, config=config, ball=Ball("linf", 0.25))
    panels = run.examples()(4)
    bounded = "corruption" not in adversary
    moved = np.abs(panels["adversarial"].astype(int) - panels["clean"]).max()
    assert moved > 0 and bounded == bool(moved <= run.setting.ball.eps * 255)


def test_a_stop_request_only_costs_the_picture_and_a_fault_ends_the_pictures_once(
    papers: Make, made: list[Recorder]
) -> None:
    run = papers("recorder")

    def stop() -> None:
        raise Interrupted("stopped", signum=15)

    run.log.show(run.examples(stop))
    run.record(1)
    assert run.said == [] and made[0].of("images") == []

    def full(count: int) -> Panels:
        raise torch.OutOfMemoryError("CUDA out of memory\nTried")

    run.log.show(full)
    run.record(2, 3)
    assert run.said == [
        "no adversarial examples for the trackers any more: OutOfMemoryError: CUDA out of memory"
    ]
    assert run.steps() == [each.step for each in made[0].of("row")] == [1, 2, 3]


def test_metrics_are_complete_when_a_tracker_fails(papers: Make, made: list[Recorder]) -> None:
    run = papers("{name: recorder, broken: row}")
    run.record(1, 2)
    run.log.finish(Progress(step=2))
    assert (
        len(run.said) == 1
        and "recorder" in run.said[0]
        and "recorder" in (run.run.path / "log.txt").read_text()
    )
    assert run.steps() == [1, 2] and (run.run.path / "results.csv").read_text().count("\n") == 3


def test_a_cut_tells_which_records_count(papers: Make, made: list[Recorder]) -> None:
    run = papers("recorder")
    run.record(1, 2)
    kept = run.log.lines.offset
    run.record(3, 4)
    run.log.cut(kept)
    run.log.cut(0)
    assert made[0].of("resume") == [[1, 2], []]


# ---- TensorBoard -------------------------------------------------------------------------------------------


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, str]]]:
    """(exit code, stderr) of a command run here, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    rng, threads = torch.get_rng_state(), torch.get_num_threads()

    def call(*argv: str) -> tuple[int, str]:
        err = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            return command(list(argv)), err.getvalue()

    yield call
    torch.set_rng_state(rng)
    torch.set_num_threads(threads)


def test_without_the_package_nothing_is_trained(
    cli: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    code, said = cli("train", *TINY, "--out", "run", "train.trackers=[tensorboard]")
    assert code == 6
    (line,) = [line for line in said.splitlines() if line.startswith("error")]
    assert (
        line.startswith("error[E-EXTRA]: ")
        and 'pip install "robustcli[tensorboard]"' in line
        and "training small_cnn" not in said
    )
    assert (
        not (tmp_path / "run" / "checkpoints").exists()
        and (tmp_path / "run" / "metrics.jsonl").read_bytes() == b""
    )


def shown(folder: Path) -> Any:
    """What TensorBoard reads there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def steps_of(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 6)) for event in shown(folder).Scalars(tag)]


def events(folder: Path, **params: Any) -> Any:
    """A tracker opened as a run opens it."""
    return open_trackers([Spec.of("tensorboard", **params)], folder, lambda text: pytest.fail(text))


@pytest.mark.parametrize("flush", [0, 30])
def test_tensorboard_shows_what_was_recorded(
    tmp_path: Path, flush: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `close`: a preempted process only ends."""
    pytest.importorskip("tensorboard")
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    flushed: list[Any] = []
    original = SummaryWriter.flush
    monkeypatch.setattr(SummaryWriter, "flush", lambda self: (flushed.append(self), original(self)))
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    panels = panels_of(pixels(1), pixels(1, 1), 10.0)
    tracker = events(tmp_path, flush=flush)
    assert tracker.examples == 8 and list((tmp_path / "tensorboard").iterdir()) == []
    for step in (5, 10):
        tracker.row(row(step))
        tracker.images(step, panels)
    assert (len(flushed), len(at_exit)) == ((0, 1) if flush else (4, 0)), (
        "after every record, or by the clock and at the end"
    )
    for close in at_exit:
        close()
    found = shown(tmp_path / "tensorboard")
    assert set(found.Tags()["scalars"]) == set(scalars(row(5)))
    assert steps_of(tmp_path / "tensorboard", "train/loss") == [(5, 0.4), (10, 0.2)]
    first, second = found.Images("examples/clean-adversarial-difference")
    assert (first.step, second.step) == (5, 10)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(first.encoded_image_string))), sheet(panels))
    tracker.close()


def test_records_after_the_checkpoint_disappear_on_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    killed = events(tmp_path)
    for step in (1, 2, 3, 4):
        killed.row(row(step))
    for kept, again in (([row(1), row(2)], 3), ([], 1)):
        tracker = events(tmp_path)
        tracker.resume(kept)
        tracker.row(row(again, robust_acc=0.25))
        tracker.close()
        expected = [(each.step, 0.5) for each in kept] + [(again, 0.25)]
        assert steps_of(tmp_path / "tensorboard", "val/robust_acc") == expected
    killed.close()


def test_a_tracker_that_joins_on_resume_gets_the_past(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = events(tmp_path)
    tracker.resume([row(1), row(2)])
    tracker.row(row(3))
    tracker.close()
    assert [step for step, _ in steps_of(tmp_path / "tensorboard", "lr")] == [1, 2, 3]


def test_a_tracked_training_has_the_same_bits(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for name, more in (("plain", ()), ("tracked", ("train.trackers=[{name: tensorboard, images: 2}]",))):
        code, said = cli("train", *TINY, "train.steps=9", "--out", name, *more)
        assert code == 0 and "warning" not in said, said
    same(final_state(tmp_path / "tracked"), final_state(tmp_path / "plain"))
    records = [json.loads(line) for line in (tmp_path / "tracked" / "metrics.jsonl").read_text().splitlines()]
    assert steps_of(tmp_path / "tracked" / "tensorboard", "val/robust_acc") == [
        (each["step"], pytest.approx(each["robust_acc"], abs=1e-6)) for each in records
    ]
