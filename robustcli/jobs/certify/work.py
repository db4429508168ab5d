"""One certification at work: the method, the attacks, the shards, and how far they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robustcli.assembly.certifying import Method, Watch
from robustcli.assembly.samples import samples
from robustcli.assembly.setting import Setting
from robustcli.certificates.answer import Answer
from robustcli.evaluation.certificates.attacked import Attacked
from robustcli.evaluation.certificates.document import Provenance, save_certificate
from robustcli.evaluation.certificates.measured import Certification, Certified, Told
from robustcli.evaluation.certificates.shards import CertificateStore
from robustcli.evaluation.header import Header
from robustcli.evaluation.plan import EvalPlan
from robustcli.jobs.certify.method import configured_method, radii
from robustcli.jobs.certify.plan import CertifyPlan, attack_plan, shard_size
from robustcli.jobs.certify.tally import Tally
from robustcli.jobs.sharded import beginner, header_of
from robustcli.records.alarm import Alarm
from robustcli.runtime.signals import StopFlag
from robustcli.runtime.team import Team
from robustcli.store.follower import Follower
from robustcli.store.run import Run
from robustcli.terminal.console import Console
from robustcli.terminal.progress import Silent

_TOGETHER = 256  # samples that are worked on at once where each is by itself


class Work:
    """One certification.

    Args:
        setting: device, data, ball and configuration.
        model: what is certified.
        console: told what was chosen; shows the progress.

    Attributes:
        stop: set by signals; entered by the caller.
        n: samples of the whole.
        method, plan: the method of proof, and the attacks beside it.
        size, shards: samples per shard, and number of shards of the whole.

    Raises UsageError for what cannot be certified.
    """

    def __init__(self, setting: Setting, model: nn.Module, console: Console) -> None:
        self._setting, self._model, self._console = setting, model, console
        self.stop = StopFlag()
        self._tally = Tally(Silent(), 0, Team())
        self._split, self._positions = samples(setting)
        self.n = len(self._positions)
        watch = Watch(self.stop.check, self._drawn, console.info)
        self.method: Method = configured_method(setting, model, watch)
        self.plan: EvalPlan = attack_plan(setting, self.method, self.n)
        self.size = shard_size(setting, self.method, self.n)
        self.shards = -(-self.n // self.size)

    def measure(
        self, run: Run | Follower, numbers: Sequence[int] | None, team: Team
    ) -> tuple[Certified, Header]:
        """What was found, and the header of its shards.

        numbers: of the shards to measure, None = all. team: the processes that measure together.
        """
        setting, method, console = self._setting, self.method, self._console
        begin = beginner(run, setting.config)
        opened: list[Header] = []

        def open_store(plan: EvalPlan, alarms: list[Alarm], ids: Tensor) -> CertificateStore:
            header = self._header(plan, alarms, ids)
            opened.append(header)
            shared = not team.main or team.again
            store = CertificateStore(run.path / "shards", header, console.warn, shared=shared)
            begin()
            return store

        n = self.n if numbers is None else sum(min(self.size, self.n - k * self.size) for k in numbers)
        attacks = ", ".join(call.label for call in self.plan.attacks)
        title = f"{setting.config.eval.split} images"
        console.info(f"{n} {title}, {method.certifier.name} beside {attacks}")
        with console.progress(n, title) as bar:
            self._tally = tally = Tally(bar, n, team)
            certification = Certification(
                method.certifier,
                self._attacked(tally),
                setting.ball.eps,
                self.size,
                together=0 if method.sampled else _TOGETHER,
                batch_size=setting.config.eval.batch_size,
                say=console.warn,
                at=tally.phase,
                told=self._writer(run),
            )
            result = certification.run(
                self._split,
                self._positions,
                setting.device,
                open_store=open_store,
                numbers=numbers,
                team=team,
                done=tally.done,
            )
        return result, opened[0]

    def _attacked(self, tally: Tally) -> Attacked:
        method = self.method
        return Attacked(
            method.attacked,
            self.plan,
            radii(self._setting),
            confirm=method.confirm,
            reset=method.reset,
            stop=self.stop.check,
            say=self._console.warn,
            beat=tally.beat,
        )

    def _writer(self, run: Run | Follower) -> Told:
        """Writes the certificate of each answer, and counts the answers of a method that counts no draws."""
        method = self.method
        source = Provenance.of(self._model, method.certifier.norm, method.parameters, method.seed)

        def write(answer: Answer, x: Tensor, sample: int) -> None:
            certificate = source.certificate(answer, x, sample)
            if certificate is not None:
                save_certificate(run.path, certificate)
            if not method.sampled:
                self._tally.certified(1.0)

        return write

    def _header(self, plan: EvalPlan, alarms: Sequence[Alarm], ids: Tensor) -> Header:
        setting, method = self._setting, self.method
        described = CertifyPlan(
            method.certifier.name,
            method.parameters,
            method.limits,
            setting.ball,
            radii(setting),
            plan,
            setting.config.seed,
        )
        return header_of(setting, self._model, described, ids, alarms, self.size)

    def _drawn(self, samples: float) -> None:
        self._tally.certified(samples)
