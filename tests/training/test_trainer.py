"""The loop: what is published, out of memory, roll-back, early end, extra data; on tiny models in fp32."""

import copy
import itertools
import json
import math
import time
from dataclasses import asdict, replace

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.twin import SearchTwin
from robustcli.core.types import LossTerms
from robustcli.data.mixture import MixedSplit
from robustcli.data.split import MemorySplit
from robustcli.errors import DataError, Interrupted, ResourceError
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.training.guarding import Guards
from robustcli.training.hooks.ema import ema
from robustcli.training.hooks.swa import swa
from robustcli.training.loop import Trainer
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings
from robustcli.training.trainplan import Progress, TrainPlan

G = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (40, 1, 4, 4), generator=G).to(torch.uint8)
LABELS = (PIXELS.float().mean((1, 2, 3)) > 127).long() + (PIXELS[:, 0, 0, 0] > 127).long()
CLASSES = ("a", "b", "c")
BALL = Ball("linf", 0.05)


def network(batch_norm=False):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3, padding=1),
        *([nn.BatchNorm2d(4)] if batch_norm else []),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ]
    return nn.Sequential(*layers)


def split(first=0, last=40):
    return MemorySplit(PIXELS[first:last], LABELS[first:last], CLASSES)


class Journal:
    """What a trainer saves and logs, in memory."""

    def __init__(self):
        self.saves, self.rows, self.said = [], [], []

    def save(self, progress, groups, tags):
        self.saves.append((progress.step, copy.deepcopy(groups), tuple(tags), copy.deepcopy(progress)))

    def best(self):
        return copy.deepcopy([groups for _, groups, tags, _ in self.saves if "best" in tags][-1])


def trainer(
    net=None,
    *,
    journal=None,
    hooks=(),
    train=None,
    guards=None,
    objective="madry",
    step=None,
    clock=time.perf_counter,
    **plan,
):
    journal = journal or Journal()
    net = net or network()
    entry = registry.objectives.get(objective)
    made = (step or MinMax)(StepSettings(
        net, entry.fn, entry.facts.inner, lambda oracle, x, ball: pgd(oracle, x, ball, steps=2), BALL,
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), hooks=[hook(net) for hook in hooks],
    ))  # fmt: skip
    validation = EvalPlan(
        BALL,
        [AttackCall("fgsm", "pgd", pgd, {"steps": 1}), AttackCall("pgd", "pgd", pgd, {"steps": 2})],
        0,
        None,
        None,
        Search(),
    )
    settings = {
        "seed": 0, "batch_size": 8, "factor": lambda t: 1.0, "augment": None, "budget": ("steps", 12),
        "save_every": 5, "validate_every": 4, "validations": [validation], "val_positions": torch.arange(10),
    } | plan  # fmt: skip
    made_guards = guards or Guards(10, 3)
    found = Trainer(
        made, train or split(0, 30), split(30, 40), TrainPlan(**settings), torch.device("cpu"),
        guards=made_guards, save=journal.save, log=journal.rows.append, recall=journal.best,
        say=journal.said.append, clock=clock,
    )  # fmt: skip
    found.journal = journal
    return found


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys(), name
        for key in a[name]:
            assert torch.equal(a[name][key], b[name][key]), (name, key)


def test_records_checkpoints_and_the_best_come_when_due():
    t = trainer()
    t.run()
    assert [row["step"] for row in t.journal.rows] == [4, 8, 12] and {
        "fgsm_acc",
        "robust_acc",
        "clean_acc",
        "peak_memory",
    } <= set(t.journal.rows[0])
    steps = [step for step, *_ in t.journal.saves]
    assert {5, 10, 12} <= set(steps) and sorted(set(steps)) == steps
    best = max(t.journal.rows, key=lambda row: (row["robust_acc"], row["clean_acc"]))
    assert t.progress.best["robust_acc"] == best["robust_acc"] and all(
        0 <= row["robust_acc"] <= row["fgsm_acc"] <= row["clean_acc"] for row in t.journal.rows
    )


@pytest.mark.parametrize("hooks", [(), (ema,), (swa,), (lambda net: swa(net, start=0.3),)])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("stop_at", [5, 10])
def test_a_resumed_run_ends_in_the_same_bits(hooks, batch_norm, stop_at):
    whole = trainer(network(batch_norm), hooks=hooks)
    whole.run()
    step, groups, _, progress = next(save for save in whole.journal.saves if save[0] == stop_at)
    again = trainer(network(batch_norm), hooks=hooks)
    again.restore(copy.deepcopy(groups), copy.deepcopy(progress))
    again.run()
    same(again.groups(), whole.groups())
    assert again.progress.best == whole.progress.best and step == stop_at


def test_the_averaged_model_is_validated_and_published():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 3).index_fill(1, torch.tensor([0]), 1.0) + 0 * x.flatten(1).sum(
                1, keepdim=True
            )

    from robustcli.training.hook import Hook

    class Always(Hook):
        def averaged(self):
            return Constant().eval()

    t = trainer(hooks=(lambda net: Always(),))
    t.run()
    expected = float((LABELS[30:40] == 0).float().mean())
    assert [row["clean_acc"] for row in t.journal.rows] == pytest.approx([expected] * 3)
    groups = t.groups()
    assert not groups["model"] and set(groups["live"]) == set(network().state_dict())


#: The three ways in which memory runs out.
NO_ROOM = (
    torch.OutOfMemoryError("no room"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError(),
)


class Cramped(MinMax):
    """Room for three images in a pass."""

    error = NO_ROOM[0]

    def found(self, x, *more):
        if min(self.micro_batch or len(x), len(x)) > 3:
            raise self.error
        return super().found(x, *more)


@pytest.mark.parametrize("error", NO_ROOM)
def test_out_of_memory_halves_the_micro_batch_and_changes_no_result(error, monkeypatch):
    monkeypatch.setattr(Cramped, "error", error)
    t, free = trainer(step=Cramped), trainer()
    t.run()
    free.run()
    assert (
        t.step.micro_batch == 2
        and t.progress.micro_batch == 2
        and sum(line.startswith("out of memory:") for line in t.journal.said) == 2
    )
    for a, b in zip(t.step.settings.model.parameters(), free.step.settings.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    again = trainer(step=Cramped)
    again.restore(t.groups(), replace(t.progress))
    assert again.step.micro_batch == 2


def test_the_twin_is_compared_on_no_more_images_than_a_pass_has(monkeypatch):
    asked, parity = [], SearchTwin.parity
    monkeypatch.setattr(SearchTwin, "parity", lambda self, x: (asked.append(len(x)), parity(self, x))[1])
    t = trainer(step=lambda settings: MinMax(replace(settings, micro_batch=2)))
    t.run()
    assert asked[0] == 2, "then come the validations"


@pytest.mark.parametrize(
    ("batch_norm", "oom", "halves"),
    [(True, "auto", False), (True, "halve", True), (False, "fail", False), (False, "auto", True)],
)
def test_batchnorm_is_not_given_smaller_batches_unasked(batch_norm, oom, halves):
    t = trainer(network(batch_norm), step=Cramped, oom=oom)
    if halves:
        t.run()
        assert t.step.micro_batch == 2
    else:
        with pytest.raises(ResourceError, match="do not fit into memory") as error:
            t.run()
        assert error.value.code == "E-OOM" and ("BatchNorm" in error.value.hint) == batch_norm


class Full(MinMax):
    def found(self, x, *more):
        raise torch.OutOfMemoryError("no room")


def test_one_image_that_does_not_fit_ends_the_run():
    with pytest.raises(ResourceError, match="one image at a time"):
        trainer(step=Full).run()


class Collapsing(Guards):
    """Reports a collapse at the second validation."""

    def judge(self, row, improved, t, *, whole=True):
        from robustcli.training.guarding import Verdict

        self.seen = getattr(self, "seen", 0) + 1
        return Verdict(("collapsed",), "", True) if self.seen == 2 else Verdict()


def test_a_rollback_takes_the_best_state_and_goes_on_from_the_same_step():
    t = trainer(guards=Collapsing(10, 3), save_every=100)
    t.progress.best = {}
    t.run()
    best = t.journal.best()
    at8 = [(step, groups) for step, groups, _, _ in t.journal.saves if step == 8]
    improved_at_8 = bool(at8)
    assert t.progress.step == 12 and t.progress.alarms == ["collapsed"] and t.journal.said == ["collapsed"]
    if (
        not improved_at_8
    ):  # the weights after step 8 are those of the best checkpoint, so the end differs from an untouched run
        plain = trainer(save_every=100)
        plain.run()
        assert (
            any(
                not torch.equal(a, b)
                for a, b in zip(
                    plain.step.settings.model.parameters(), t.step.settings.model.parameters(), strict=True
                )
            )
            and best
        )


def test_patience_ends_the_run_early():
    t = trainer(guards=Guards(10, 3, patience=1), budget=("steps", 400), factor=lambda t: 1e-9)
    progress = t.run()
    assert (
        progress.ended == "no better model in 1 validations"
        and progress.step == 8
        and t.journal.saves[-1][0] == 8
    )


def test_extra_data_is_mixed_into_every_batch():
    seen = []

    class Watching(MinMax):
        def __call__(self, x, y, ids, **more):
            seen.append(ids.clone())
            return super().__call__(x, y, ids, **more)

    original, extra = split(0, 20), split(20, 30)
    t = trainer(train=MixedSplit(original, extra, 0.25), step=Watching)
    t.run()
    assert t.steps_per_epoch == 2 and all(len(ids) == 8 and int((ids >= 20).sum()) == 2 for ids in seen)


def test_cutmix_reaches_attack_and_objective():
    from robustcli.core.random import RowRandom
    from robustcli.data.cutmix import cutmix

    seen = []

    def mix(x, y, ids, epoch):
        return cutmix(x, y, RowRandom(0, "cutmix", ids, epoch=epoch), 3)

    t = trainer(cutmix=mix)
    inner = t.step.descent.objective
    t.step.descent.objective = lambda model, batch: seen.append(batch.y_soft) or inner(model, batch)
    t.run()
    assert (
        all(s is not None and torch.allclose(s.sum(1), torch.ones(len(s))) for s in seen) and len(seen) == 12
    )


def test_a_batch_that_ranks_cannot_share_is_refused():
    from robustcli.runtime.distributed import Ranks

    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    made = MinMax(
        StepSettings(net, lambda m, b: None, None, lambda o, x, b: x, BALL, optimizer, ranks=Ranks(0, 3))
    )
    plan = TrainPlan(0, 8, lambda t: 1.0, None, ("steps", 1), 1, 1, None, torch.zeros(0))
    with pytest.raises(DataError, match="shared by 3 processes"):
        Trainer(
            made,
            split(),
            None,
            plan,
            torch.device("cpu"),
            guards=Guards(0, 3),
            save=None,
            log=None,
            recall=None,
        )


def test_progress_is_plain_json():
    t = trainer()
    t.run()
    assert TypeAdapter(Progress).validate_python(json.loads(json.dumps(asdict(t.progress)))) == t.progress


# ---- found by a second reader ------------------------------------------------------------------------------


def test_a_validation_that_was_interrupted_still_makes_its_best_checkpoint():
    """The interrupted step is saved as `last`; after the resume the same step turns out to be the best."""
    journal = Journal()
    first = trainer(journal=journal)
    real = first.validation.__call__

    class Interrupting:
        def __call__(self, model):
            raise Interrupted("now", signum=15)

    first.validation = Interrupting()
    with pytest.raises(Interrupted):
        first.run()
    step, groups, tags, progress = journal.saves[-1]
    assert step == 4 and "best" not in tags[1:] and progress.validated == -1 and real
    again = trainer(journal=(second := Journal()))
    again.restore(copy.deepcopy(groups), copy.deepcopy(progress))
    again.run()
    assert second.saves[0][0] == 4 and "best" in second.saves[0][2]
    whole = trainer()
    whole.run()
    same(again.groups(), whole.groups())
    assert again.progress.best == whole.progress.best


def test_the_probe_of_minutes_times_whole_steps_along_the_run_and_leaves_no_trace():
    seen = []

    class Watching(MinMax):
        def __call__(self, x, y, ids, *, progress, **more):
            seen.append(progress)
            return super().__call__(x, y, ids, progress=progress, **more)

    t = trainer(step=Watching, batch_size=30, budget=("minutes", 1), hooks=(ema,))
    before = copy.deepcopy(t.groups())
    t.progress.best, t.progress.alarms = {"robust_acc": 0.5, "clean_acc": 0.5, "step": 0}, ["kept"]
    steps = t.fix_budget()
    same(t.groups(), before)
    assert seen == [1.0] * 3 + [0.125, 0.375, 0.625, 0.875] * 2 and steps >= 1 and t.steps_per_epoch == 1
    assert t.progress.step == 0 and t.progress.alarms == ["kept"] and t.progress.best["robust_acc"] == 0.5


# ---- minutes, by a clock of their own ----------------------------------------------------------------------


read = TypeAdapter(Progress).validate_json


class Clock:
    """Seconds that pass as the test says: `step(t, n)` for the n-th step, `validation(n)` likewise."""

    def __init__(self, step, validation):
        self.now, self.step, self.validation, self.steps, self.validations = 0.0, step, validation, 0, 0

    def __call__(self):
        return self.now


def by_the_clock(clock, minutes=0.4, **more):
    """(trainer, [t of each step]): each step is a step of the learning rate alone."""
    factors = []

    class Idle(MinMax):
        def __call__(self, x, y, ids, *, progress, **kwargs):
            clock.steps += 1
            clock.now += clock.step(progress, clock.steps)
            factors.append(progress)
            return LossTerms(torch.zeros(()))

    t = trainer(step=Idle, clock=clock, **{"budget": ("minutes", minutes), "save_every": 10**6, **more})

    def validate(model):
        clock.validations += 1
        clock.now += clock.validation(clock.validations)
        return {"clean_acc": 0.5, "robust_acc": 0.4, "n": 10}

    def estimate(model, clock):
        clock.now += 2 * clock.validation(1)
        return 2 * clock.validation(1)  # a network that has just begun is no measure

    t.validation.seconds, t.validation.__class__ = (
        estimate,
        type("Told", (), {"__call__": lambda _, m: validate(m)}),
    )
    return t, factors


PACES = {
    "even": (lambda t, n: 0.1, lambda n: 0.3),
    "slower later": (lambda t, n: 0.1 if n < 70 else 0.2, lambda n: 0.3),
    "faster later": (lambda t, n: 0.2 if n < 40 else 0.08, lambda n: 0.3),
    "a curriculum": (lambda t, n: 0.02 + 0.12 * t, lambda n: 0.3),
    "a stall": (lambda t, n: 5.0 if n == 70 else 0.1, lambda n: 0.3),
    "dear validations": (lambda t, n: 0.08, lambda n: 1.0 + n / 8),
    "noise": (lambda t, n: 0.1 + 0.09 * math.sin(n * n), lambda n: 0.3 + 0.2 * math.cos(n)),
}


@pytest.mark.parametrize(("step", "validation"), PACES.values(), ids=PACES)
def test_minutes_are_used_and_not_overdrawn_and_the_share_is_smooth(step, validation):
    clock = Clock(step, validation)
    t, shares = by_the_clock(clock, validate_every=25)
    t.fix_budget()
    probed = clock.steps
    shares.clear()
    progress = t.run()
    dearest, last = max(step(s, n + probed + 1) for n, s in enumerate(shares[-30:])), validation(8)
    assert 0.93 * 24 < clock.now <= 24 + dearest + last
    assert len(shares) == progress.step == progress.max_steps and progress.validated == progress.step
    moves = [b - a for a, b in itertools.pairwise(shares)]
    assert min(moves) > 0 and max(moves) < 6 / len(shares) and shares[0] < 0.08 and shares[-1] > 0.95
    assert progress.pace.spent == pytest.approx(clock.now) and progress.done == 1.0


def test_an_even_pace_gives_the_schedule_of_as_many_steps():
    t, shares = by_the_clock(Clock(lambda t, n: 0.0625, lambda n: 0.0), validate_every=50)
    t.fix_budget()
    shares.clear()
    progress = t.run()
    assert progress.step == 24 / 0.0625 - 3
    assert shares == pytest.approx([(k + 0.5) / progress.step for k in range(progress.step)])


def test_a_resumed_run_keeps_its_minutes():
    """The clock of another process starts anywhere; what the checkpoint has spent counts."""
    t, shares = by_the_clock(Clock(lambda t, n: 0.1, lambda n: 0.3), validate_every=25, save_every=40)
    t.run()
    groups, progress = next(
        (groups, progress) for step, groups, _, progress in t.journal.saves if step == 120
    )
    later = Clock(lambda t, n: 0.15, lambda n: 0.3)
    later.now = 7e5
    again, rest = by_the_clock(later, validate_every=25)
    spent, before = progress.pace.spent, progress.pace.last
    again.restore(copy.deepcopy(groups), read(json.dumps(asdict(progress))))
    again.run()
    assert spent + later.now - 7e5 == pytest.approx(24, abs=0.5)
    assert 0 < rest[0] - before < 3 / 200 and rest[-1] > 0.98
    ended = again.progress.step
    third, more = by_the_clock(Clock(lambda t, n: 0.1, lambda n: 0.3), validate_every=25)
    third.restore(copy.deepcopy(again.groups()), copy.deepcopy(again.progress))
    assert third.run().step == ended and not more, "a run that has ended makes no step"


def test_less_than_a_step_is_one_step_with_its_validation():
    clock = Clock(lambda t, n: 20.0, lambda n: 30.0)
    t, _ = by_the_clock(clock, minutes=0.1)
    assert t.run().step == 1 and clock.validations == 1


def test_other_budgets_have_no_clock():
    t, shares = by_the_clock(Clock(lambda t, n: 9.0, lambda n: 9.0), budget=("steps", 12))
    assert t.run().pace is None and shares == [(k + 0.5) / 12 for k in range(12)]


@pytest.mark.parametrize("error", NO_ROOM)
def test_out_of_memory_in_the_optimizer_is_final(error):
    t = trainer(oom="halve")

    def broken(*args, **kwargs):
        raise error

    t.step.settings.optimizer.step = broken
    with pytest.raises(ResourceError, match="no memory for the optimiser's step"):
        t.run()


@pytest.mark.parametrize("error", NO_ROOM)
def test_out_of_memory_in_the_loss_halves_too(error):
    """In the descent, not in the attack: what was added up of the step before it counts no more."""
    t, free = trainer(), trainer()
    plain, calls = t.step.descent.objective, []

    def cramped(model, batch):
        calls.append(len(batch.y))
        if len(batch.y) > 3:
            raise error
        return plain(model, batch)

    t.step.descent.objective = cramped
    t.run()
    free.run()
    assert t.step.micro_batch == 2 and max(calls) > 3
    for a, b in zip(t.step.settings.model.parameters(), free.step.settings.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_another_runtime_error_is_nobodys_business():
    t = trainer()

    def broken(model, batch):
        raise RuntimeError("shapes do not fit")

    t.step.descent.objective = broken
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        t.run()


def test_a_rollback_is_saved_at_once():
    """A kill right after it must not bring the collapsed weights back."""
    t = trainer(guards=Collapsing(10, 3), save_every=100)
    t.run()
    after = next(groups for step, groups, _, _ in t.journal.saves if step == 8)
    best = t.journal.best()
    same({"model": after["model"]}, {"model": best["model"]})


def test_a_refused_twin_is_told_once():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x) + torch.rand(1)

    t = trainer(Odd())
    t.run()
    assert len([line for line in t.journal.said if "searches on the model itself" in line]) == 1


@pytest.mark.parametrize("fold_bn", [True, False])
def test_the_twin_folds_only_when_asked(fold_bn):
    net = network(batch_norm=True)
    t = trainer(
        net,
        step=lambda settings: MinMax(replace(settings, search=Search(torch.bfloat16, fold_bn=fold_bn))),
    )
    t.run()
    assert t.step.ascent._twin is not None and len(t.step.ascent._twin.folded) == int(fold_bn)
