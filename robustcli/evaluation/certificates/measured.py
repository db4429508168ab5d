"""What is proven of many samples, and what attacks do to the same samples, shard by shard."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcli.certificates.answer import ABSTAIN, Answer
from robustcli.data.split import Split
from robustcli.evaluation.answers import NONE
from robustcli.evaluation.certificates.attacked import Attacked, Blows
from robustcli.evaluation.certificates.certifier import Certifier
from robustcli.evaluation.certificates.shards import CertificateStore, CertifiedShard
from robustcli.evaluation.collect import split_counts
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.shards import shards_of
from robustcli.evaluation.sizing import in_batches
from robustcli.records.alarm import Alarm
from robustcli.records.certify import CertificateRow
from robustcli.runtime.signals import heed
from robustcli.runtime.team import Team

#: (final plan of the attacks, alarms so far, ids int64 [n]) -> where shards are kept.
OpenStore = Callable[[EvalPlan, list[Alarm], Tensor], CertificateStore]
#: (the answer, pixels [C, H, W], sample id): told of each answer before its image is forgotten.
Told = Callable[[Answer, Tensor, int], None]


@dataclass(frozen=True)
class Certified:
    """What was found.

    Args:
        rows: one per sample, in the order of ids.
        alarms: of the first look at the model.
        tallies: counts for the alarms that need all samples.
        total: samples of the whole measurement, of which this may be a part.
        shards: (how many are there, of how many).
    """

    rows: Sequence[CertificateRow]
    alarms: Sequence[Alarm]
    tallies: Counter[str]
    total: int
    shards: tuple[int, int]


class _Kept:
    """The shards of one run, those of this process and those that it finds in the store."""

    def __init__(
        self, ids: Tensor, size: int, store: CertificateStore | None, done: Callable[..., None]
    ) -> None:
        self.groups = shards_of(ids, size)
        self.shards: dict[int, CertifiedShard] = {}
        self.tallies: Counter[str] = Counter()
        self._ids, self._store, self._done = ids, store, done

    def arrived(self, number: int) -> bool:
        """Whether a shard is there, whoever has measured it."""
        if number not in self.shards and self._store is not None and self._store.has(number):
            shard = self._store.read(number, self._ids[self.groups[number]])
            if shard is not None:
                self._keep(number, shard, True)
        return number in self.shards

    def save(self, number: int, shard: CertifiedShard) -> None:
        """Keep a shard that this process has measured."""
        if self._store is not None:
            self._store.write(number, shard)
        self._keep(number, shard, False)

    def _keep(self, number: int, shard: CertifiedShard, known: bool) -> None:
        self.shards[number] = shard
        self.tallies.update(shard.tallies)
        self._done(shard.rows, known)

    @property
    def rows(self) -> list[CertificateRow]:
        """Those of all shards, in the order of ids."""
        return [row for number in sorted(self.shards) for row in self.shards[number].rows]


@dataclass
class Certification:
    """Certifies and attacks samples.

    Samples are certified first and attacked then, and their shards are saved when both are done. No row
    depends on the cut into shards, but for the attacks on a classifier that is sampled: its noise begins anew
    in each group of samples that are worked on together, so let these be single shards.

    Args:
        certifier: the method of proof.
        attacked: the attacks.
        eps: radius of the threat.
        size: samples per shard.
        together: samples that are certified and attacked at once, a shard at least.
        batch_size: images of one call of the certifier; None = chosen by the device.
        say: shows one line to the user.
        at: told what is done now: "ibp", "attack".
        told: of each answer that this process computes.
    """

    certifier: Certifier
    attacked: Attacked
    eps: float
    size: int
    together: int = 0
    batch_size: int | None = None
    say: Callable[[str], None] = lambda text: None
    at: Callable[[str], None] = lambda text: None
    told: Told = lambda answer, x, sample: None

    def run(
        self,
        split: Split,
        positions: Tensor,
        device: torch.device,
        *,
        open_store: OpenStore | None = None,
        numbers: Sequence[int] | None = None,
        team: Team | None = None,
        done: Callable[[Sequence[CertificateRow], bool], None] = lambda rows, known: None,
    ) -> Certified:
        """Measure all positions, int64 [n].

        Args:
            split: the samples.
            positions: places in it.
            device: where they are measured.
            open_store: makes the store of shards; a shard that it holds is not measured again.
            numbers: of the shards to measure; None = all.
            team: the processes that measure together; they need a store.
            done: told the rows of each shard, and whether this process has not measured them.
        """
        positions = positions[split.ids[positions].argsort()]
        ids = split.ids[positions]
        plan = self.attacked.prepare(split, positions, device)
        store = None if open_store is None else open_store(plan, self.attacked.alarms, ids)
        kept = _Kept(ids, self.size, store, done)
        every = range(len(kept.groups))
        missing = [number for number in every if not kept.arrived(number)]
        if numbers is not None:
            missing = [number for number in missing if number in numbers]

        def idle() -> None:
            heed()
            self.at("waiting for the other processes")

        for turn in (team or Team()).shares(missing, kept.arrived, idle):
            for several in self._together(turn):
                places = [kept.groups[number] for number in several]
                found = self._measured(split, positions, places, device)
                for number, shard in zip(several, found, strict=True):
                    kept.save(number, shard)
        alarms, there = self.attacked.alarms, (len(kept.shards), len(every))
        return Certified(kept.rows, alarms, kept.tallies, len(ids), there)

    def _together(self, numbers: Sequence[int]) -> list[list[int]]:
        """The shards in groups that are worked on together."""
        most = max(1, self.together // self.size)
        return [list(numbers[k : k + most]) for k in range(0, len(numbers), most)]

    def _measured(
        self, split: Split, positions: Tensor, groups: Sequence[Tensor], device: torch.device
    ) -> list[CertifiedShard]:
        """Certify and attack the samples of some shards.

        positions: int64 [n], by id, of all samples. groups: int64, places in it, of each shard.
        """
        positions = positions[torch.cat(list(groups))]
        self.at(self.certifier.name)
        answers: list[Answer] = []

        def work(x: Tensor, y: Tensor, ids: Tensor) -> list[Answer]:
            found = list(self.certifier(x, y, ids))
            for answer, image, sample in zip(found, x, ids.tolist(), strict=True):
                self.told(answer, image, sample)
            return found

        for found in in_batches(split, positions, device, self.batch_size, work, self.say):
            answers += found
        self.at("attack")
        blows = self.attacked(split, positions, device)
        rows, sizes = self._rows(split, positions, answers, blows), [len(group) for group in groups]
        shards, start = [], 0
        for size, tallies in zip(sizes, split_counts(blows.tallies, sizes), strict=True):
            shards.append(CertifiedShard(rows[start : start + size], tallies))
            start += size
        return shards

    def _rows(
        self, split: Split, positions: Tensor, answers: Sequence[Answer], blows: Blows
    ) -> tuple[CertificateRow, ...]:
        names, files = split.classes, split.files(positions)
        ids, labels = split.ids[positions].tolist(), split.labels[positions].tolist()

        def name(answer: int) -> str | None:
            return None if answer in (ABSTAIN, NONE) else names[answer]

        rows = []
        for k, answer in enumerate(answers):
            broken_at, found, by = self._blow(answer, blows, k)
            status, stage = self._status(answer, broken_at, by)
            row = CertificateRow(
                id=ids[k],
                file=files[k],
                label=names[labels[k]],
                predicted=name(answer.label),
                clean=name(int(blows.clean[k])),
                radius=answer.radius,
                status=status,
                stage=stage,
                seconds=answer.seconds,
                broken_at=broken_at,
                attacked=name(found),
                broken_by=by,
                evidence=dict(answer.evidence),
            )
            rows.append(row)
        return tuple(rows)

    def _blow(self, answer: Answer, blows: Blows, k: int) -> tuple[float | None, int, str | None]:
        """(radius, class, label of the attack) of sample k: what broke it, an attack of the method too."""
        at = float(blows.at[k])
        if math.isfinite(at):
            return at, int(blows.found[k]), blows.by[k]
        if answer.found is not None:
            return self.eps, answer.found, answer.stage
        return None, NONE, None

    def _status(self, answer: Answer, broken_at: float | None, by: str | None) -> tuple[str, str]:
        """(status, stage): what stays unknown to the method is falsified where an attack broke it."""
        if answer.status == "unknown" and by is not None and broken_at is not None and broken_at <= self.eps:
            return "falsified", by
        return answer.status, answer.stage
