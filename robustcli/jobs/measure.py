"""Runs the configured attacks on a model, with a progress bar: the work that `eval` and `attack` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from robustcli.assembly.attacks import eval_plan, probe_size
from robustcli.assembly.length import evaluation_length
from robustcli.assembly.rows import rows_of
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting
from robustcli.errors import UsageError
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.pulse import Beat
from robustcli.evaluation.result import BatchOutcome, Evaluation
from robustcli.evaluation.robust import OpenStore, RobustEvaluation
from robustcli.evaluation.shards import ShardStore, part
from robustcli.evaluation.sizing import shard_size
from robustcli.jobs.evidence.examples import Keeper
from robustcli.jobs.sharded import header_of
from robustcli.models.blackbox import check_served
from robustcli.records.alarm import Alarm
from robustcli.records.eval import EvalRow
from robustcli.runtime.team import Team
from robustcli.terminal.console import Console
from robustcli.terminal.progress import Bar

_BATCH = 256  # images: shards that the user wants smaller are measured one at a time, and saved


@dataclass(frozen=True)
class Shards:
    """Where the verdicts of an evaluation are kept, and which of them this run measures.

    Args:
        folder: gives that of the shards, once the run has begun. A shard that is whole there is not measured
            again.
        share: (i, n): this run measures part i of n; None = all.
        accepted: called once the folder is known to hold this evaluation.
        entered: whether other processes of the team may be writing there before this one opens it.
    """

    folder: Callable[[], Path]
    share: tuple[int, int] | None
    accepted: Callable[[], None]
    entered: bool = False


def measure(
    setting: Setting,
    model: nn.Module,
    console: Console,
    stop: Callable[[], None],
    *,
    extra: Sequence[AttackCall] = (),
    shards: Shards | None = None,
    audit: bool = True,
    done: Callable[[BatchOutcome], None] = lambda outcome: None,
    team: Team | None = None,
) -> tuple[Evaluation, list[EvalRow]]:
    """Run the configured attacks over the chosen samples.

    Args:
        setting: device, data, ball and configuration.
        model: what is attacked.
        console: shows the progress bar.
        stop: raises to interrupt.
        extra: attacks behind the configured ones.
        shards: where verdicts are kept; None = nowhere.
        audit: whether a short list of attacks is audited.
        done: called with each batch before its verdicts are kept.
        team: the processes that measure together.

    Returns the evaluation and its records: clean, each attack, worst case.
    """
    team, (split, positions) = team or Team(), samples(setting)
    plan = _plan(setting, extra, len(positions), audit)
    attacks = ", ".join(call.label for call in plan.attacks) or "no attack"
    name = f"{setting.config.eval.split} images"
    numbers = _numbers(setting, len(positions), shards)
    n = _samples_in(numbers, len(positions), _size(setting, len(positions)))
    console.info(f"{n} {name} under {attacks}")
    with console.progress(n, name) as bar:
        tally, keeper = _Tally(bar, n, team), Keeper(setting, team.rank, console.warn)
        evaluation = RobustEvaluation(model, plan, stop=stop, say=console.warn, beat=tally.beat, team=team)

        def batch_done(outcome: BatchOutcome) -> None:
            tally.add(outcome)
            keeper.add(outcome)
            done(outcome)

        result = evaluation.run(
            split,
            positions,
            setting.device,
            on_batch=batch_done,
            on_proven=tally.known,
            open_store=_opener(setting, model, shards, console, team, keeper.open),
            shards=numbers,
        )
    return result, rows_of(setting, model, result)


def check_attacks(
    setting: Setting,
    extra: Sequence[AttackCall] = (),
    model: nn.Module | None = None,
    *,
    files: bool = True,
) -> None:
    """Raises UsageError for two attacks with one label, or a target that is no class of the data.

    Also for attacks that need more than a black box answers, and DataError for files of an attack that do not
    go with the images. It is called before the run directory is made. files: whether they are there by now.
    """
    config, classes = setting.config, setting.classes
    calls = [*eval_plan(setting, config.attacks).attacks, *extra]
    for call in calls if files else ():
        call.check_fits(setting.data.shape)
    if model is not None:
        check_served(model, calls, setting.ball.norm, target=config.eval.target)
    labels = [call.label for call in calls]
    if len(set(labels)) < len(labels):
        raise UsageError(
            f"two attacks have one name: {', '.join(labels)}", hint="rename the plugin's function"
        )
    target = config.eval.target
    if isinstance(target, int) and target >= classes:
        raise UsageError(
            f"target {target} is no class of {setting.data.name}",
            where="eval.target",
            hint=f"0 to {classes - 1}",
        )


def check_share(setting: Setting, share: tuple[int, int] | None, *, needs_all: bool) -> None:
    """Raises UsageError when part i of n has no shard, or with `needs_all` when n > 1.

    needs_all: the user asked for something that needs the whole evaluation.
    """
    if share is None:
        return
    i, n = share
    if needs_all and n > 1:
        raise UsageError(
            "--sweep and --cross-check need the whole evaluation", hint="run them without --shard"
        )
    count = _count(setting, len(samples(setting)[1]))
    if not part(count, i, n):
        raise UsageError(
            f"--shard {i}/{n}: there are only {count} shards",
            hint="lower eval.shard_size, or use fewer parts",
        )


def _plan(setting: Setting, extra: Sequence[AttackCall], n: int, audit: bool) -> EvalPlan:
    """The plan of the configured evaluation of n samples."""
    config = setting.config.eval
    plan = eval_plan(setting, setting.config.attacks, target=config.target)
    attacks, size = [*plan.attacks, *extra], plan.batch_size
    if not size and config.shard_size is not None and config.shard_size < _BATCH:
        size = config.shard_size
    if plan.audit is not None and not audit:
        plan = replace(plan, audit=replace(plan.audit, samples=0))
    checks = probe_size(attacks, n, config.checks, setting.classes, setting.ball.norm)
    search = plan.search
    if search.graph and setting.config.search.compile == "auto":
        length = evaluation_length(attacks, n, setting.classes, setting.ball.norm)
        search = replace(search, length=length)
    return replace(
        plan, attacks=attacks, batch_size=size, checks=checks, escalate=config.escalate, search=search
    )


def _size(setting: Setting, n: int) -> int:
    """Samples per shard."""
    return setting.config.eval.shard_size or shard_size(n)


def _count(setting: Setting, n: int) -> int:
    """Number of shards that n samples make."""
    return -(-n // _size(setting, n))


def _numbers(setting: Setting, n: int, shards: Shards | None) -> list[int] | None:
    """The numbers of the shards to measure; None = all."""
    if shards is None or shards.share is None:
        return None
    return part(_count(setting, n), *shards.share)


def _samples_in(numbers: Sequence[int] | None, n: int, size: int) -> int:
    """How many of n samples lie in the shards `numbers` of `size` samples; None = all."""
    if numbers is None:
        return n
    return sum(min(size, n - number * size) for number in numbers)


def _opener(
    setting: Setting,
    model: nn.Module,
    shards: Shards | None,
    console: Console,
    team: Team,
    opened: Callable[[Path, str], None] = lambda folder, seal: None,
) -> OpenStore | None:
    """A function that opens the shard store once the plan is final; None = verdicts are kept nowhere.

    opened: called with the folder and the digest of the evaluation.
    """
    if shards is None:
        return None

    def open_store(plan: EvalPlan, alarms: list[Alarm], ids: Tensor, name: str) -> ShardStore:
        header = header_of(setting, model, plan, ids, alarms)
        # Only the first store waits for rank 0: another rank may be writing in a named one already.
        shared = not team.main or team.again or (team.many and (bool(name) or shards.entered))
        store = ShardStore(shards.folder() / name, header, console.warn, shared=shared)
        if not name:
            opened(store.folder, header.digest)
        shards.accepted()
        return store

    return open_store


class _Tally:
    """Clean and robust accuracy so far, shown beside the progress bar, inside a batch too."""

    def __init__(self, bar: Bar, total: int, team: Team) -> None:
        self._bar, self._total, self._team = bar, total, team
        self._n = self._right = self._standing = 0
        self._measured, self._seconds = 0, 0.0  # samples of this process, and what their batches took
        self._before: int | None = None  # samples of earlier runs
        self._began = time.monotonic()

    def known(self, n: int, right: Tensor, standing: Tensor) -> None:
        """Add n samples of an earlier run or another process: bool [n], right on the clean image, and under
        every attack."""
        if self._before is None:
            self._before, self._began = n, time.monotonic()
        self._add(n, right, standing)

    def _add(self, n: int, right: Tensor, standing: Tensor) -> None:
        if not n:
            return
        self._n += n
        self._right += int(right.sum())
        self._standing += int(standing.sum())
        self._bar.advance(n, clean=f"{self._right / self._n:.1%}", robust=f"{self._standing / self._n:.1%}")

    def add(self, outcome: BatchOutcome) -> None:
        """Add a batch that is done."""
        self._measured += len(outcome.y)
        self._seconds += sum(outcome.seconds)
        self._team.tell(0.0)
        self._add(len(outcome.y), outcome.correct, outcome.survivors)

    def beat(self, beat: Beat) -> None:
        """Show where the work is."""
        inside = beat.share * beat.rows
        self._team.tell(inside)
        if self._team.many:
            inside += self._team.told()
            self._bar.within(inside, self._left_of_team(inside), at=beat.words)
            return
        if not beat.rows:
            self._bar.within(0.0, None, at=beat.label)
            return
        standing = (self._standing + beat.standing) / (self._n + beat.rows)
        self._bar.within(inside, self._left(beat), at=beat.words, standing=f"{standing:.1%}")

    def _left(self, beat: Beat) -> float | None:
        """Seconds to the end: of this batch, and of the samples after it at the speed so far."""
        if not beat.share:
            return None
        batch = beat.seconds / beat.share
        seconds, samples = self._seconds + batch, self._measured + beat.rows
        after = max(0, self._total - self._n - beat.rows)
        return batch - beat.seconds + after * seconds / samples

    def _left_of_team(self, inside: float) -> float | None:
        """Seconds to the end at the speed so far of all processes; inside: samples' worth of work in hand."""
        done = self._n - (self._before or 0) + inside
        if not done:
            return None
        return max(0.0, self._total - self._n - inside) * (time.monotonic() - self._began) / done
