"""A training job of half a second, how it is hit at a chosen moment, how two finished ones are compared."""

import hashlib
import json
import os
import socket
import time

import numpy as np
import torch
from PIL import Image

from robustcli.store.retention import resolve_checkpoint
from robustcli.store.snapshot import load_checkpoint

TINY = (
    "data.name=fake", "data.size=8", "model.name=small_cnn", "model.widths=[4]", "model.strides=[2]",
    "adversary.steps=2", "train.batch_size=16", "train.steps=24", "train.save_every=3",
    "train.validate_every=0.15", "train.val_n=16", "train.val_attack.steps=2", "train.optimizer.lr=0.05",
    "threads=1",
)  # fmt: skip
TIMING = {"images_per_second", "waiting_share", "seconds", "peak_memory"}


def final_state(path):
    """All tensors of the last checkpoint, the best step and the step."""
    snapshot = load_checkpoint(resolve_checkpoint(path / "checkpoints"))
    return {
        **snapshot.groups,
        "progress": {k: v for k, v in snapshot.meta["progress"].items() if k != "log_offset"},
    }


def same(got, expected):
    """Bitwise equal, momentum and progress included."""
    assert got["progress"] == expected["progress"]
    for group in ("model", "optimizer"):
        assert got[group].keys() == expected[group].keys()
        differing = [
            name for name in expected[group] if not torch.equal(got[group][name], expected[group][name])
        ]
        assert not differing, differing[:5]


# ---- a run that is hit at a chosen moment ------------------------------------------------------------------


def instrument(said, hits=None):
    """Give the moments of a training names: each is one line of the file `said`.

    hits: {number of the moment: signal to this process}.

    Kinds: start, feed, attack, descend, average, record, validate (with the attack inside), save (with its
    fail points).

    Call it in a process of its own: the classes stay changed.
    """
    from robustcli.assembly.trainlog import Written
    from robustcli.core.oracle import Oracle
    from robustcli.jobs.trainrun import TrainRun
    from robustcli.reporting.pictures import training
    from robustcli.store import checkpoint
    from robustcli.training.descent import Descent
    from robustcli.training.hooks.average import WeightCopy
    from robustcli.training.runner import StepRunner
    from robustcli.training.validation import Validation

    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    state = {"number": 0, "inside": ""}

    def tick(name):
        os.write(out, f"{state['inside'] or name}\n".encode())
        signum = (hits or {}).get(state["number"])
        state["number"] += 1
        if signum is not None:
            os.write(out, f"hit {time.monotonic()}\n".encode())
            send(signum)

    def before(cls, method, name, *, around=False):
        original = getattr(cls, method)

        def wrapped(self, *args, **kwargs):
            tick(name)
            outer, state["inside"] = state["inside"], name if around else state["inside"]
            try:
                return original(self, *args, **kwargs)
            finally:
                state["inside"] = outer

        setattr(cls, method, wrapped)

    before(TrainRun, "__init__", "start")
    before(StepRunner, "__call__", "feed")
    before(Oracle, "gradient", "attack")
    before(Oracle, "step", "attack")
    before(Oracle, "logits", "attack")
    for method in ("_backward", "_average", "_check_gradient"):
        before(Descent, method, "descend")
    before(WeightCopy, "move", "average")
    before(Written, "row", "record")
    before(Validation, "__call__", "validate", around=True)
    before(Written, "save", "save")
    training.training_curves = lambda *args, **kwargs: None  # the picture takes longer than the training
    checkpoint.fail_point = lambda name: tick(f"save {name}")


def send(signum):
    """`signum` to this process; a negative one to its parent, the launcher, which has it on return."""
    os.kill(os.getpid() if signum > 0 else os.getppid(), abs(signum))
    if signum < 0:
        time.sleep(0.05)


def moments(path):
    """The names of all moments of a run, without the hits; the first word is the kind."""
    return [line for line in path.read_text().splitlines() if not line.startswith("hit ")]


def hit_at(path):
    """When the signal was sent, on the monotonic clock of the machine; None when the run ended before."""
    return next((float(line[4:]) for line in path.read_text().splitlines() if line.startswith("hit ")), None)


def pick(names, draw, kind=None):
    """A random moment, each kind equally likely however often it comes; or one of the given kind."""
    kinds = [name.partition(" ")[0] for name in names]
    kind = kind or draw.choice(sorted(set(kinds)))
    return draw.choice([k for k, name in enumerate(kinds) if name == kind])


def all_same(got, expected):
    """Two run directories end in the same bits.

    Compared: every group of the last and the best checkpoint, their progress, the records.
    """
    for tag in ("last", "best"):
        one, other = (
            load_checkpoint(resolve_checkpoint(path / "checkpoints", tag)) for path in (got, expected)
        )
        assert one.step == other.step, (tag, one.step, other.step)
        progress = [
            {k: v for k, v in found.meta["progress"].items() if k != "log_offset"} for found in (one, other)
        ]
        assert progress[0] == progress[1], tag
        assert one.groups.keys() == other.groups.keys()
        for group, tensors in other.groups.items():
            assert one.groups[group].keys() == tensors.keys()
            unlike = [
                k
                for k, t in tensors.items()
                if t.dtype != one.groups[group][k].dtype or not torch.equal(t, one.groups[group][k])
            ]
            assert not unlike, (tag, group, unlike[:5])
    rows = [
        [
            {k: v for k, v in json.loads(line).items() if k not in TIMING}
            for line in (path / "metrics.jsonl").open()
        ]
        for path in (got, expected)
    ]
    assert rows[0] == rows[1] and rows[0]


def environment(rank, port, attempt=0):
    """What a launcher tells the worker `rank` of two; none for a process alone."""
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    names |= {"TORCHELASTIC_RESTART_COUNT": attempt, "ROBUSTCLI_PG_TIMEOUT": 20, "GLOO_SOCKET_IFNAME": "lo"}
    return {name: str(value) for name, value in names.items()}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


IMAGES = (
    "data.name=folder:images", "data.augment={crop: 1, flip: true}", "ball.eps=8/255", "model.name=small_cnn",
    "model.widths=[4]", "model.strides=[2]", "train.batch_size=12", "train.steps=8", "train.save_every=3",
    "train.validate_every=0.5", "train.val_n=6", "train.val_attack.steps=2", "train.optimizer.lr=0.05",
    "threads=1",
)  # fmt: skip


def write_images(folder):
    """folder/images/{a,b,c}: 72 PNGs of 8x8, their classes differ in colour; folder/extra.npz: 30 more."""
    draw = np.random.default_rng(0)
    labels = np.arange(102) % 3
    pixels = draw.integers(0, 192, (102, 8, 8, 3), dtype=np.uint8)
    pixels[np.arange(102), :, :, labels] += 63
    for k, name in enumerate("abc"):
        (folder / "images" / name).mkdir(parents=True)
        for number in np.flatnonzero(labels[:72] == k):
            Image.fromarray(pixels[number]).save(folder / "images" / name / f"{number:03d}.png")
    np.savez(
        folder / "extra.npz",
        x=pixels[72:].transpose(0, 3, 1, 2),
        y=labels[72:],
        classes=np.array(list("abc")),
    )


class Job:
    """Trainings of one configuration in forked processes, one or two ranks.

    forked: the fixture. folder: where they run. words: of the command line.
    """

    def __init__(self, forked, folder, words, ranks=1):
        self.forked, self.folder, self.words, self.ranks = forked, folder, words, ranks
        self.texts = []
        self.prepare = lambda rank: None  # called in the process of each rank

    def said(self, out, rank=0):
        """The file with the moments of the last training in `out`."""
        return self.folder / f"{out}-{rank}.moments"

    def start(self, out, *flags, hits=None, at=0):
        """[(wait, pid)] of all ranks; `hits` are those of rank `at`."""
        port = free_port() if self.ranks > 1 else 0

        def prepare(rank):
            self.said(out, rank).unlink(missing_ok=True)
            if self.ranks > 1:
                os.environ.update(environment(rank, port))
            instrument(self.said(out, rank), hits if rank == at else None)
            self.prepare(rank)

        return [
            self.forked(
                "train",
                *self.words,
                "--out",
                out,
                *flags,
                err=f"{out}-{rank}.err",
                out=f"{out}-{rank}.out",
                prepare=lambda rank=rank: prepare(rank),
            )
            for rank in range(self.ranks)
        ]

    def run(self, out, *flags, hits=None, at=0):
        """The exit codes of all ranks."""
        codes = [wait() for wait, _ in self.start(out, *flags, hits=hits, at=at)]
        self.texts = [(self.folder / f"{out}-{rank}.err").read_text() for rank in range(self.ranks)]
        assert not any("Traceback" in text for text in self.texts), self.texts
        return codes

    def finish(self, out, *flags):
        """Run to the end, from the last checkpoint when there is a run."""
        resumed = ("--resume",) if (self.folder / out / ".lock").exists() else ()
        codes = self.run(out, *resumed, *flags)
        assert codes == [0] * self.ranks, (codes, self.texts)
        return self.folder / out


def leave_digest(path):
    """When the training of this process ends, `path` gets a hash of its weights, buffers, optimiser, hooks.

    For a process of its own.
    """
    from robustcli.training.loop import Trainer

    original = Trainer.run

    def run(self):
        result = original(self)
        groups = {
            name: group for name, group in self.groups().items() if name != "step"
        }  # each rank has places of its own in that one
        digest = hashlib.sha256()
        for name, key in sorted((name, key) for name, group in groups.items() for key in group):
            digest.update(
                f"{name} {key} {groups[name][key].dtype}".encode()
                + groups[name][key].detach().contiguous().numpy().tobytes()
            )
        path.write_text(digest.hexdigest())
        return result

    Trainer.run = run


#: What a launcher of the tests starts instead of `python -m robustcli`: the real training, hit at a moment of
#: the first attempt.
WORKER = f"""
import json, os, sys
from pathlib import Path
sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
from jobs_support import instrument
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
hit = json.loads(os.environ["HIT"])
moments = Path(f"worker-{{rank}}-{{attempt}}.moments")
instrument(moments, {{hit["moment"]: hit["signum"]}} if (rank, attempt) == (hit["rank"], 0) else None)
from robustcli.cli.main import main
main()
"""
