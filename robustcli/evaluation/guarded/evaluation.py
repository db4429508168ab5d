"""One guarded model measured three times: bare, oblivious, adaptive.

The file is long by documentation; its class follows the evaluation from the bare network to the sanity tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from robustcli.core.modes import frozen
from robustcli.core.random import RowRandom
from robustcli.data.split import Split
from robustcli.evaluation.alarms import with_new
from robustcli.evaluation.guarded.bank import Bank
from robustcli.evaluation.guarded.calls import adaptive_calls, match_call, replay_call
from robustcli.evaluation.guarded.sanity import PROBED, Planting, free_pixels, implied, planting
from robustcli.evaluation.guarded.scores import Seen, joined, seen
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan
from robustcli.evaluation.pulse import Beat
from robustcli.evaluation.result import BatchOutcome, Evaluation
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.evaluation.sizing import in_batches
from robustcli.evaluation.surrogate import searched
from robustcli.evaluation.transfer_members import Member, shown
from robustcli.models.guarded import GuardedModel
from robustcli.proportions import Rate
from robustcli.records.alarm import Alarm

T = TypeVar("T")

#: Fresh draws that judge a guarded model which draws anew in each pass.
DRAWS = 100
_EOT = 20  # draws over which its scores are averaged, and the search behind a broken row


@dataclass(frozen=True)
class GuardResult:
    """Verdicts on n samples, in the order of `ids`, which are sorted; tensors on the CPU.

    Args:
        ids, labels: int64 [n].
        bare: the first network without its defences.
        half: right on the clean image and under all attacks in the ball of eps / 2, of the bare network; None
            where the adaptive number claims no more than the bare one at eps.
        rejected: bool [n], the clean images that the guard rejects.
        oblivious: bool [n], right and accepted, and the oblivious point is not wrong and accepted.
        adaptive: the searches that know the defences. Its survivors stand under the oblivious points, too.
        clean, points: what the guard says of the clean images; "oblivious" and "adaptive" -> of the points.
        votes: int64 [n], in how many of `draws` fresh passes the adaptive point is wrong and accepted; None
            for a model that answers the same each time.
        draws: passes per judgement.
        planted: what became of planted points; None where no sample stood.
        alarms: of all parts.
    """

    ids: Tensor
    labels: Tensor
    bare: Evaluation
    half: Rate | None
    rejected: Tensor
    oblivious: Tensor
    adaptive: Evaluation
    clean: Seen
    points: dict[str, Seen]
    votes: Tensor | None
    draws: int
    planted: Planting | None
    alarms: list[Alarm]

    @property
    def verdict(self) -> Evaluation:
        """The adaptive part as an evaluation of the guarded model, with the alarms of all parts."""
        return replace(self.adaptive, alarms=self.alarms)


class GuardEvaluation:
    """Measures a guarded model under an `EvalPlan`, whose attacks also run on the bare network.

    Args:
        model: the guarded model, on its device.
        plan: ball, attacks inside it, seed, batch size, search and checks; untargeted. No audit is made.
        stop, say, beat: as for `RobustEvaluation`.
    """

    def __init__(
        self,
        model: GuardedModel,
        plan: EvalPlan,
        *,
        stop: Callable[[], None] | None = None,
        say: Callable[[str], None] = lambda text: None,
        beat: Callable[[Beat], None] | None = None,
    ) -> None:
        self.model, self.plan = model, replace(plan, audit=None, judge_draws=DRAWS)
        self._stop, self._say, self._beat = stop, say, beat
        self._draws, self._looks = (DRAWS, _EOT) if model.randomised else (1, 1)

    def run(
        self,
        split: Split,
        positions: Tensor,
        device: torch.device,
        *,
        on_part: Callable[[str], None] = lambda name: None,
        on_batch: Callable[[BatchOutcome], None] = lambda outcome: None,
    ) -> GuardResult:
        """Measure the samples at `positions`, int64 [n], of a split.

        on_part: told the name of each part that begins: bare, oblivious, adaptive, sanity. on_batch: called
        with each batch of the bare and of the adaptive part.
        """
        positions = positions[split.ids[positions].argsort()]
        ids, work = split.ids[positions], _Work(split, positions, device)
        on_part("bare")
        bare, broken = self._bare(work, on_batch)
        on_part("oblivious")
        points, fell = self._oblivious_points(work, broken)
        bare = _also_fallen(bare, fell)
        clean, rejected, stood = self._shown(work, points)
        on_part("adaptive")
        searcher = self._evaluation(self.model, replace(self.plan, attacks=self._calls(work, points)))
        adaptive, found, votes = self._adaptive(searcher, work, points, on_batch)
        adaptive = _also_fallen(adaptive, ~stood)
        on_part("sanity")
        half = self._half(work, bare, adaptive)
        planted, alarms = self._sanity(searcher, work, adaptive, half)
        return GuardResult(
            ids=ids,
            labels=adaptive.labels,
            bare=bare,
            half=half,
            rejected=rejected,
            oblivious=stood,
            adaptive=adaptive,
            clean=clean,
            points={"oblivious": self._points(work, points), "adaptive": found},
            votes=votes,
            draws=self._draws,
            planted=planted,
            alarms=with_new(adaptive.alarms, [*alarms, *map(_of_bare, bare.alarms)]),
        )

    def _evaluation(self, model: torch.nn.Module, plan: EvalPlan) -> RobustEvaluation:
        return RobustEvaluation(model, plan, stop=self._stop, say=self._say, beat=self._beat)

    def _bare(
        self, work: _Work, on_batch: Callable[[BatchOutcome], None]
    ) -> tuple[Evaluation, dict[int, Tensor]]:
        """The bare network under the attacks, and the point of each sample that they broke, by its id."""
        broken: dict[int, Tensor] = {}

        def keep(outcome: BatchOutcome) -> None:
            fell = (outcome.correct & ~outcome.survivors).nonzero()[:, 0]
            broken.update(zip(outcome.ids[fell].tolist(), outcome.x_adv[fell].cpu(), strict=True))
            on_batch(outcome)

        evaluation = self._evaluation(self.model.members[0], self.plan)
        return evaluation.run(work.split, work.positions, work.device, on_batch=keep), broken

    def _oblivious_points(self, work: _Work, broken: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Points deep in a wrong class of the bare network, [n, C, H, W]; bool [n], if it is wrong there.

        The searches go on behind the boundary, since a point deeper in the wrong class transfers better.
        Where they break nothing, it is the point that broke the sample in the bare part, if there is one.
        Both on the CPU.
        """
        net = self.model.members[0]
        with frozen(net):
            member = Member(
                net, self.plan, shown(work.split, work.positions, work.device), self._stop, self._say
            )

            def attack(x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
                points = member.attack(self.plan.attacks, x, y, ids)
                hit = member.judge.rule(x, points, member.judge.criterion(y)).hit
                for row in (~hit).nonzero()[:, 0].tolist():
                    points[row] = broken.get(int(ids[row]), points[row]).to(points)
                return points.cpu(), hit.cpu()

            parts = list(work.each(attack, self.plan.batch_size, self._say))
        points, hits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return points, hits

    def _shown(self, work: _Work, points: Tensor) -> tuple[Seen, Tensor, Tensor]:
        """What the guard says of clean images; bool [n], rejected ones; bool [n], who stands obliviously."""
        judge, places = Judge(self.model, self.plan.ball, draws=self._draws), work.places

        def judged(x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
            with frozen(self.model):
                clean = judge.clean(x, y)
                hit = judge.rule(x, points[places(ids)].to(x), judge.criterion(y)).hit
            return (clean.label == self.model.reject).cpu(), (clean.right & ~hit).cpu()

        parts = list(work.each(judged, self.plan.batch_size, self._say))
        rejected, stood = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return self._points(work, None), rejected, stood

    def _points(self, work: _Work, points: Tensor | None) -> Seen:
        """What the guard says of points [n, C, H, W]; None: of the clean images."""

        def look(x: Tensor, y: Tensor, ids: Tensor) -> Seen:  # noqa: ARG001
            at = x if points is None else points[work.places(ids)].to(x)
            return seen(self.model, at, self._looks)

        return joined(list(work.each(look, self.plan.batch_size, self._say)))

    def _calls(self, work: _Work, points: Tensor) -> list[AttackCall]:
        """All attacks of the adaptive part."""
        bank = Bank.of(self.model, self.plan.ball, work.split, work.positions, work.device)
        replay = replay_call(work.split.ids[work.positions], points)
        return adaptive_calls(self.model, self.plan.attacks, self.plan.ball, replay, match_call(bank))

    def _adaptive(
        self,
        searcher: RobustEvaluation,
        work: _Work,
        points: Tensor,
        on_batch: Callable[[BatchOutcome], None],
    ) -> tuple[Evaluation, Seen, Tensor | None]:
        """The searches; what the guard says of their points; and the votes of a randomised model."""
        looks, votes = dict[int, Seen](), torch.zeros(len(work.positions), dtype=torch.int64)
        judge = Judge(self.model, self.plan.ball, draws=self._draws)

        def keep(outcome: BatchOutcome) -> None:
            places = work.places(outcome.ids)
            looks[int(places[0])] = seen(self.model, self._deepened(outcome, points[places]), self._looks)
            if self._draws > 1:
                with frozen(self.model):
                    share = judge.success_rate(outcome.x_adv, judge.criterion(outcome.y))
                votes[places] = (share * self._draws).round().long().cpu()
            on_batch(outcome)

        result = searcher.run(work.split, work.positions, work.device, on_batch=keep)
        return result, joined([looks[k] for k in sorted(looks)]), votes if self._draws > 1 else None

    def _deepened(self, outcome: BatchOutcome, oblivious: Tensor) -> Tensor:
        """The points of a batch whose scores are read, [B, C, H, W]: those that broke a row are led on.

        The verdict needs the first point that is wrong and accepted. It lies just below the threshold, where
        its score still looks like an alarm. What an attacker can do to the scores is seen further in. A row
        whose clean image is rejected was not attacked: it is led on from its `oblivious` point, so that it
        does not seem to stand at another threshold.
        """
        points, unseen = outcome.x_adv.clone(), outcome.clean_predicted == self.model.reject
        points[unseen] = oblivious.to(points)[unseen]
        rows = ((outcome.correct & ~outcome.survivors) | unseen).nonzero()[:, 0]
        if not len(rows):
            return points
        x, ids = outcome.x[rows], outcome.ids[rows]
        judge = Judge(self.model, self.plan.ball, draws=self._draws)
        criterion = judge.criterion(outcome.y[rows])
        call, rng = replay_call(ids.cpu(), points[rows].cpu()), RowRandom(self.plan.seed, "deepened", ids)
        with frozen(self.model):
            deeper = searched(
                self.model, call, x, criterion, self.plan.ball, rng, stop=self._stop, draws=self._looks
            )
            better = judge.rule(x, deeper, criterion).hit
        points[rows[better]] = deeper[better]
        return points

    def _half(self, work: _Work, bare: Evaluation, adaptive: Evaluation) -> Rate | None:
        """The bare network at eps / 2, where the adaptive number claims more than the bare one at eps."""
        if int(adaptive.survivors.sum()) <= int(bare.survivors.sum()):
            return None
        plan = replace(self.plan, ball=self.plan.ball.scaled(0.5), checks=0, escalate=False)
        result = self._evaluation(self.model.members[0], plan).run(work.split, work.positions, work.device)
        return Rate(int(result.survivors.sum()), result.n)

    def _sanity(
        self, searcher: RobustEvaluation, work: _Work, adaptive: Evaluation, half: Rate | None
    ) -> tuple[Planting | None, list[Alarm]]:
        """The tests of `guarded.sanity`, on a few samples."""
        alarms = implied(Rate(int(adaptive.survivors.sum()), adaptive.n), half)
        right = _few(work.positions[adaptive.correct])
        if len(right) and self.plan.ball.eps > 0:
            alarms += free_pixels(searcher, work.split, right, work.device)
        stands = _few(work.positions[adaptive.survivors])
        if not len(stands) or self.plan.ball.eps == 0:
            return None, alarms
        result, more = planting(searcher, searcher.plan.attacks, work.split, stands, work.device)
        return result, alarms + more


@dataclass(frozen=True)
class _Work:
    """The samples: positions int64 [n] in a split, in the order of their ids."""

    split: Split
    positions: Tensor
    device: torch.device

    def places(self, ids: Tensor) -> Tensor:
        """int64 [B], on the CPU: where samples stand in the order of this evaluation."""
        return torch.searchsorted(self.split.ids[self.positions], ids.cpu())

    def each(
        self, work: Callable[[Tensor, Tensor, Tensor], T], size: int | None, say: Callable[[str], None]
    ) -> Iterator[T]:
        """work(x, y, ids) of each batch."""
        return in_batches(self.split, self.positions, self.device, size, work, say)


def _few(positions: Tensor) -> Tensor:
    """At most `PROBED` of these positions, evenly spread."""
    n = len(positions)
    return positions[torch.linspace(0, max(0, n - 1), min(PROBED, n)).long()]


def _also_fallen(evaluation: Evaluation, fell: Tensor) -> Evaluation:
    """The evaluation where these samples, bool [n], fell to every attack."""
    return replace(evaluation, stages={label: still & ~fell for label, still in evaluation.stages.items()})


def _of_bare(alarm: Alarm) -> Alarm:
    """An alarm about the bare network, which says so."""
    return replace(alarm, evidence=f"the bare network: {alarm.evidence}")
