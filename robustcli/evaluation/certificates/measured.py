"""What is proven of many samples, and what attacks do to the same samples, shard by shard."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustcli.certificates.answer import ABSTAIN, Answer
from robustcli.data.split import Split
from robustcli.evaluation.answers import NONE
from robustcli.evaluation.certificates.attacked import Attacked, Blows
from robustcli.evaluation.certificates.certifier import Certifier
from robustcli.evaluation.certificates.shards import CertificateStore, CertifiedShard
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.shards import shards_of
from robustcli.evaluation.sizing import in_batches
from robustcli.records.alarm import Alarm
from robustcli.records.certify import CertificateRow

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


@dataclass
class Certification:
    """Certifies and attacks samples.

    A shard is certified first and attacked then, and saved when both are done. No row depends on the cut
    into shards, but for the attacks on a classifier that is sampled: its noise begins anew in each shard.

    Args:
        certifier: the method of proof.
        attacked: the attacks.
        eps: radius of the threat.
        size: samples per shard.
        batch_size: images of one call of the certifier; None = chosen by the device.
        say: shows one line to the user.
        at: told what is done now: "ibp", "attack".
        told: of each answer that this process computes.
    """

    certifier: Certifier
    attacked: Attacked
    eps: float
    size: int
    batch_size: int | None = None
    say: Callable[[str], None] = lambda text: None
    at: Callable[[str], None] = lambda text: None
    told: Told = lambda answer, x, sample: None
    _tallies: Counter[str] = field(default_factory=Counter)

    def run(
        self,
        split: Split,
        positions: Tensor,
        device: torch.device,
        *,
        open_store: OpenStore | None = None,
        numbers: Sequence[int] | None = None,
        done: Callable[[Sequence[CertificateRow], bool], None] = lambda rows, known: None,
    ) -> Certified:
        """Measure all positions, int64 [n].

        Args:
            split: the samples.
            positions: places in it.
            device: where they are measured.
            open_store: makes the store of shards; a shard that it holds is not measured again.
            numbers: of the shards to measure; None = all.
            done: told the rows of each shard, and whether an earlier run had measured them.
        """
        positions = positions[split.ids[positions].argsort()]
        ids = split.ids[positions]
        plan = self.attacked.prepare(split, positions, device)
        store = None if open_store is None else open_store(plan, self.attacked.alarms, ids)
        groups = shards_of(ids, self.size)
        rows: list[CertificateRow] = []
        found = 0
        for number, places in enumerate(groups):
            shard = None if store is None else store.read(number, ids[places])
            known = shard is not None
            if shard is None:
                if numbers is not None and number not in numbers:
                    continue
                shard = self._measured(split, positions[places], device)
                if store is not None:
                    store.write(number, shard)
            rows += shard.rows
            found += 1
            self._tallies.update(shard.tallies)
            done(shard.rows, known)
        return Certified(rows, self.attacked.alarms, self._tallies, len(ids), (found, len(groups)))

    def _measured(self, split: Split, positions: Tensor, device: torch.device) -> CertifiedShard:
        """Certify and attack the samples of one shard; positions: int64 [R], by id."""
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
        rows = self._rows(split, positions, answers, blows)
        return CertifiedShard(rows, blows.tallies)

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
