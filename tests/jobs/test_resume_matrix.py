"""Bitwise resume over the combinations that a training may have.

40 cells hold every value, and every pair of values that is possible.
"""

from __future__ import annotations

import random
import signal
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs_support import IMAGES, Job, all_same, moments, pick, write_images

from robustcli.store.retention import resolve_checkpoint
from robustcli.store.snapshot import load_checkpoint
from robustcli.training.guards import CatastrophicOverfitting

pytestmark = pytest.mark.usefixtures("warm")

VALUES: dict[str, tuple[str, ...]] = {
    "precision": ("fp32", "bf16"),
    "around": ("plain", "ema", "awp", "swa", "awp+ema"),
    "method": ("madry", "trades", "mart", "nuat", "free", "gradalign"),
    "feed": ("memory", "stream", "workers"),
    "micro": ("-", "micro"),
    "ranks": ("1", "2"),
    "cutmix": ("-", "cutmix"),
    "extra": ("-", "extra"),
    "curriculum": ("-", "curriculum"),
    "balls": ("one", "max", "random"),
}
#: The suite runs the first SAMPLED, which have every value; all of them have every pair. The free step has no
#: micro-batches. It and gradalign know one ball. With workers and two ranks a kill takes seconds: the orphans
#: of the killed rank hold its sockets until they notice.
SAMPLED = 6
CELLS = """
fp32 swa     trades    memory  micro 2 cutmix extra curriculum random
bf16 plain   free      memory  -     1 -      -     -          one
fp32 ema     gradalign memory  -     2 -      -     -          one
fp32 awp+ema nuat      stream  -     2 -      extra curriculum random
fp32 awp     madry     memory  -     1 cutmix extra curriculum one
bf16 awp+ema mart      workers micro 1 cutmix extra -          max
bf16 ema     madry     stream  micro 1 cutmix -     curriculum random
fp32 awp     gradalign workers -     2 cutmix -     -          one
fp32 ema     mart      workers -     2 -      extra curriculum one
bf16 plain   gradalign stream  micro 2 -      extra curriculum one
bf16 swa     trades    stream  -     2 -      extra -          max
fp32 awp     nuat      memory  -     1 -      -     curriculum max
fp32 plain   madry     memory  micro 2 cutmix extra -          max
bf16 awp     nuat      stream  micro 1 cutmix extra -          random
fp32 plain   free      workers -     2 cutmix extra curriculum one
fp32 swa     mart      workers -     2 -      -     -          one
fp32 awp+ema trades    memory  -     1 cutmix -     curriculum one
fp32 awp+ema madry     workers -     1 -      extra curriculum random
fp32 swa     gradalign workers micro 1 -      -     curriculum one
bf16 plain   trades    workers micro 1 cutmix -     -          random
bf16 ema     nuat      workers -     1 cutmix extra curriculum max
bf16 swa     free      stream  -     2 cutmix -     curriculum one
bf16 awp     mart      stream  -     1 cutmix extra -          random
bf16 plain   mart      memory  -     1 -      extra -          max
bf16 swa     nuat      workers micro 2 -      -     -          one
fp32 swa     madry     workers micro 1 cutmix -     -          random
fp32 plain   nuat      memory  -     1 cutmix -     -          one
fp32 ema     free      workers -     2 cutmix extra curriculum one
fp32 ema     trades    memory  -     1 -      extra -          one
fp32 awp+ema gradalign workers -     1 cutmix extra -          one
fp32 awp+ema free      stream  -     1 cutmix extra -          one
bf16 awp     trades    memory  micro 1 -      extra curriculum one
fp32 awp     free      memory  -     1 cutmix extra -          one
fp32 awp+ema madry     stream  -     2 cutmix extra curriculum max
fp32 swa     mart      memory  micro 1 cutmix extra -          max
bf16 plain   free      workers -     1 cutmix -     -          one
fp32 swa     madry     stream  micro 1 cutmix -     curriculum one
bf16 awp+ema gradalign stream  -     1 -      extra -          one
bf16 swa     gradalign workers -     2 cutmix -     -          one
bf16 ema     trades    stream  micro 1 cutmix -     -          random
""".strip().splitlines()

BALLS = "ball=[{norm: linf, eps: 0.1}, {norm: l2, eps: 0.6}]"
WORDS: dict[str, tuple[str, ...]] = {
    "-": (), "plain": (), "1": (), "2": (), "one": (),
    "fp32": ("precision=fp32", "search.precision=fp32"),
    "bf16": ("precision=bf16", "search.precision=bf16"),
    "ema": ("train.hooks=[{name: ema, decay: 0.9, warmup: 0.2}]",),
    "awp": ("train.hooks=[{name: awp, gamma: 0.02, warmup: 0.2}]",),
    "swa": ("train.hooks=[{name: swa, start: 0.3, every: 2}]",),
    "awp+ema": ("train.hooks=[{name: ema, decay: 0.9, warmup: 0}, {name: awp, gamma: 0.02}]",),
    "madry": ("objective=madry", "adversary={name: pgd, steps: 2}"),
    "trades": ("objective=trades", "adversary={name: pgd, steps: 2, start: gaussian, start_scale: 0.001}"),
    "mart": ("objective=mart", "adversary={name: pgd, steps: 2}", "train.optimizer={name: adamw, lr: 0.01}"),
    "nuat": ("objective=nuat", "adversary={name: pgd, steps: 2, start: bernoulli, start_scale: 0.5}"),
    "free": ("train.step={name: free, replays: 2}",),
    "gradalign": ("regularizers=[{name: gradalign}]", "adversary={name: pgd, steps: 1, start: zero}"),
    "memory": ("data.storage=memory",),
    "stream": ("data.storage=stream", "data.workers=0"),
    "workers": ("data.storage=stream", "data.workers=2"),
    "micro": ("train.micro_batch=5",),
    "cutmix": ("data.cutmix={alpha: 1.0, probability: 0.7}",),
    "extra": ("data.extra=npz:extra.npz", "data.extra_ratio=0.34"),
    "curriculum": ("train.curriculum.eps_start=0.2", "train.curriculum.eps_until=0.5"),
    "max": (BALLS, "train.union=max"),
    "random": (BALLS, "train.union=random"),
}  # fmt: skip

KINDS = {"start", "feed", "descend", "record", "validate", "save"}  # of every training; most attack too


def pairs(cells: list[str]) -> set[tuple[tuple[str, str], ...]]:
    """All pairs (dimension, value) that stand in one cell."""
    return {pair for cell in cells for pair in combinations(zip(VALUES, cell.split(), strict=True), 2)}


def job(forked: Any, folder: Path, cell: str) -> Job:
    """The training of one cell, its data in `folder`."""
    write_images(folder)
    named = dict(zip(VALUES, cell.split(), strict=True))
    words = [word for value in named.values() for word in WORDS[value]]
    if named["curriculum"] != "-" and named["method"] != "free":  # which has no attack whose steps could grow
        words += ["train.curriculum.steps_start=1", "train.curriculum.steps_until=0.5"]
    images = IMAGES
    if named["balls"] != "one":  # whose list has radii of its own, and starts that are noise in each
        images = tuple(word for word in IMAGES if not word.startswith("ball."))
        words = [word.replace("start: bernoulli", "start: uniform") for word in words]
    return Job(forked, folder, (*images, *words), ranks=int(named["ranks"]))


def interrupted(work: Job, out: str, draw: random.Random) -> bool:
    """Kill a training at a random moment, and then what resumes it, one rank each time; finish.

    Gives whether the second kill hit too.
    """
    names = [moments(work.said("reference", rank)) for rank in range(work.ranks)]
    at = draw.randrange(work.ranks)
    first = pick(names[at], draw)
    assert work.run(out, hits={first: signal.SIGKILL}, at=at) == lost(work, at)
    rest, at = 1 - first / len(names[at]), draw.randrange(work.ranks)
    codes = work.run(
        out, "--resume", hits={draw.randrange(1 + int(rest * len(names[at]))): signal.SIGKILL}, at=at
    )
    assert codes in (lost(work, at), [0] * work.ranks), (codes, work.texts)
    work.finish(out)
    return codes[at] != 0


def lost(work: Job, at: int) -> list[int]:
    """Exit codes when rank `at` is killed: the other one has lost its peer."""
    return [-signal.SIGKILL if rank == at else 8 for rank in range(work.ranks)]


def test_the_table_has_every_value_and_every_possible_pair() -> None:
    assert len(CELLS) == len({tuple(cell.split()) for cell in CELLS}) == 40
    every = {((a, x), (b, y)) for a, b in combinations(VALUES, 2) for x in VALUES[a] for y in VALUES[b]}
    never = {(("method", "free"), ("micro", "micro"))}
    never |= {
        (("method", name), ("balls", balls)) for name in ("free", "gradalign") for balls in ("max", "random")
    }
    assert every - pairs(CELLS) == never and pairs(CELLS) <= every
    assert {item for pair in pairs(CELLS[:SAMPLED]) for item in pair} == {
        (name, value) for name, values in VALUES.items() for value in values
    }


@pytest.mark.parametrize("cell", CELLS[:SAMPLED], ids=lambda cell: "-".join(cell.replace("- ", "").split()))
def test_a_killed_run_ends_in_the_same_bits(forked: Any, tmp_path: Path, cell: str) -> None:
    work = job(forked, tmp_path, cell)
    expected = work.finish("reference")
    names = moments(work.said("reference"))
    assert {name.partition(" ")[0] for name in names} >= KINDS
    interrupted(work, "run", random.Random(cell))
    all_same(tmp_path / "run", expected)


def test_what_an_attack_keeps_ends_in_the_same_bits(forked: Any, tmp_path: Path) -> None:
    """The checkpoint of step 6 holds the signs of step 4, which step 7 uses and step 8 makes again."""
    write_images(tmp_path)
    words = (
        "objective={name: liet, weight: 20}",
        "adversary={name: class_start, renew: 4}",
        "train.micro_batch=5",
    )
    work = Job(forked, tmp_path, (*IMAGES, *words, "train.steps=10"))
    expected = work.finish("reference")
    kinds = [name.partition(" ")[0] for name in moments(work.said("reference"))]
    descents = [k for k, kind in enumerate(kinds) if kind == "descend"]
    seventh = descents[6 * len(descents) // 10]
    assert work.run("run", hits={seventh: signal.SIGKILL}) == [-signal.SIGKILL]
    kept = load_checkpoint(resolve_checkpoint(tmp_path / "run" / "checkpoints")).groups["step"]
    assert (int(kept["turn"]), int(kept["class_signs.made"])) == (6, 4)
    all_same(work.finish("run"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(cell.replace("- ", "").split()))
def test_all_cells_killed_at_more_moments(forked: Any, tmp_path: Path, cell: str) -> None:
    work = job(forked, tmp_path, cell)
    expected = work.finish("reference")
    draw, twice = random.Random(f"slow {cell}"), 0
    for k in range(3):
        twice += interrupted(work, f"run{k}", draw)
        all_same(tmp_path / f"run{k}", expected)
    assert twice >= 1


# ---- what the matrix has found -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_free_training_saves_the_perturbations_of_all_ranks(forked: Any, tmp_path: Path, norm: str) -> None:
    work = job(forked, tmp_path, "fp32 plain free memory - 2 - - - one")
    work.words += (f"ball.norm={norm}", "ball.eps=0.3")
    expected = work.finish("reference")
    delta = load_checkpoint(resolve_checkpoint(expected / "checkpoints")).groups["step"]["delta"]
    assert (
        len(delta) == 12
        and all(bool(half.any()) for half in delta.chunk(2))
        and not torch.equal(*delta.chunk(2))
    )
    names = moments(work.said("reference"))
    fifth = [k for k, name in enumerate(names) if name == "feed"][4]  # after the first checkpoint, at step 3
    assert work.run("run", hits={fifth: signal.SIGKILL}) == [-signal.SIGKILL, 8]
    all_same(work.finish("run"), expected)


def test_free_training_goes_on_in_another_number_of_processes(forked: Any, tmp_path: Path) -> None:
    work = job(forked, tmp_path, "fp32 plain free memory - 2 - - - one")
    before = load_checkpoint(resolve_checkpoint(work.finish("run") / "checkpoints"))
    work.ranks, work.words = 1, (*work.words, "train.steps=9")
    after = load_checkpoint(resolve_checkpoint(work.finish("run") / "checkpoints"))
    one, other = before.groups["step"]["delta"], after.groups["step"]["delta"]
    assert (
        (before.step, after.step) == (8, 9) and len(one) == len(other) == 12 and not torch.equal(one, other)
    )


def test_a_kill_between_the_last_checkpoint_and_its_pointers(forked: Any, tmp_path: Path) -> None:
    """There is no later save that could move them."""
    work = job(forked, tmp_path, "fp32 plain madry memory - 1 - - - one")
    work.words += ("train.steps=2",)
    expected = work.finish("reference")
    names = moments(work.said("reference"))
    places = [k for k, name in enumerate(names) if name in ("save after-replace", "save after-pointer")]
    assert len(places) == 3
    for place in places:
        assert work.run(f"run{place}", hits={place: signal.SIGKILL}) == [-signal.SIGKILL]
        all_same(work.finish(f"run{place}"), expected)


def test_a_kill_between_the_pointers_of_the_best_checkpoint(forked: Any, tmp_path: Path) -> None:
    work = job(forked, tmp_path, "fp32 plain madry memory - 1 - - - one")
    expected = work.finish("reference")
    names = moments(work.said("reference"))
    place = max(k for k in range(len(names)) if names[k : k + 2] == ["save after-pointer"] * 2)
    assert work.run("run", hits={place: signal.SIGKILL}) == [-signal.SIGKILL]
    all_same(work.finish("run"), expected)


def _collapse(rank: int) -> None:
    """In a rank's process: the guard takes two validations without a better model for a collapse."""
    CatastrophicOverfitting._collapsed = lambda self, fgsm, robust: (
        self.rollbacks < 2 and self.best_robust is not None and robust <= self.best_robust
    )


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_kill_around_a_roll_back(forked: Any, tmp_path: Path, ranks: int) -> None:
    work = job(forked, tmp_path, f"fp32 awp+ema gradalign memory - {ranks} - - - one")
    work.prepare = _collapse
    work.words += ("train.steps=12",)
    expected = work.finish("reference")
    said = load_checkpoint(resolve_checkpoint(expected / "checkpoints")).meta["progress"]["alarms"]
    assert any("rollback 1 of 3" in text for text in said)
    interrupted(work, "run", random.Random(ranks))
    all_same(tmp_path / "run", expected)
