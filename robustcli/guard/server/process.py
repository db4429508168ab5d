"""The processes of the server: one socket, N workers with a model each, and an end that loses nothing."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from tempfile import TemporaryDirectory
from types import FrameType

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from robustcli.data.images import quiet_pillow
from robustcli.errors import PeerError, ResourceError
from robustcli.guard.server.app import application
from robustcli.guard.server.door import Rules
from robustcli.guard.server.metrics import SHARED
from robustcli.guard.server.service import Limits, Service

DRAIN = 5  # seconds that requests have to end after SIGTERM
_ENDED = 9.5  # seconds after which a worker that has not ended is killed
_CONNECTIONS = 1000  # more get a 503 of uvicorn
_STEP = 0.1  # seconds between two looks at the workers
_LOST = 5  # workers that are started again, for each that was asked for
ENDING = (signal.SIGTERM, signal.SIGINT)
Build = Callable[[Limits], Service]


@dataclass(frozen=True)
class Plan:
    """One server.

    Args:
        rules: who may come in.
        limits: of one process.
        workers: processes.
        secret: signs the forms of the page, for all workers.
    """

    rules: Rules
    limits: Limits
    workers: int = 1
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))


def listen(host: str, port: int) -> socket.socket:
    """The listening socket; port 0 lets the system choose.

    Raises ResourceError E-PORT when the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP)[0]
        # asyncio sends a small reply at once only where the protocol is named; create_server names none.
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(256)
    except OSError as error:
        raise ResourceError(
            f"cannot listen: {error.strerror or error}",
            where=f"{host}:{port}",
            hint="choose another --port or --host",
            code="E-PORT",
        ) from error
    return made


class Draining(uvicorn.Server):
    """uvicorn, whose first signal refuses new requests and lets those inside end.

    Its own handling sends the signal again at the end, and the process would die of it: a drained server ends
    well.
    """

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.places.draining = True
        super().handle_exit(sig, frame)


def _silent() -> None:
    return None


def serve_here(plan: Plan, build: Build, sock: socket.socket, ready: Callable[[], None] = _silent) -> None:
    """Serve in this process until SIGTERM or SIGINT, then drain. ready: called when signals are minded."""
    quiet_pillow()
    service = build(plan.limits)
    config = uvicorn.Config(
        application(service, plan.rules, plan.secret),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=DRAIN,
        ws="none",
    )
    Draining(config, service, ready).run([sock])


def serve(plan: Plan, build: Build, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        build: makes a service in each process; several are told it by pickle.
        ready: called when signals are minded, and a request would be answered.

    Raises PeerError when workers are lost again and again.
    """
    if plan.workers == 1:
        serve_here(plan, build, sock, ready)
        return
    with TemporaryDirectory(prefix="robustcli-metrics-") as shared:
        os.environ[SHARED] = shared
        try:
            Workers(plan, build, sock).run(ready)
        finally:
            del os.environ[SHARED]


class Workers:
    """The processes of one server. A lost one is started again, some times."""

    def __init__(self, plan: Plan, build: Build, sock: socket.socket) -> None:
        self._plan, self._build, self._sock = plan, build, sock
        self._context = multiprocessing.get_context("spawn")  # a fork would share locks of PyTorch
        self._signum = 0
        self._lost = 0
        self._running: list[BaseProcess] = []

    def run(self, ready: Callable[[], None]) -> None:
        """Start them, watch them, end them."""
        for number in ENDING:
            signal.signal(number, self._stop)
        try:
            self._running = [self._start() for _ in range(self._plan.workers)]
            ready()
            while not self._signum:
                time.sleep(_STEP)
                self._running = [self._kept(process) for process in self._running]
        finally:
            end(self._running)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum

    def _start(self) -> BaseProcess:
        """A worker. Ctrl-C reaches the whole group; a worker that still imports would print a traceback."""
        process = self._context.Process(target=_work, args=(self._plan, self._build, self._sock))
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.start()
        signal.signal(signal.SIGINT, before)
        return process

    def _kept(self, process: BaseProcess) -> BaseProcess:
        if process.is_alive() or self._signum:
            return process
        mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
        self._lost += 1
        if self._lost > _LOST * self._plan.workers:
            raise PeerError(
                f"{self._lost} workers were lost; the last one ended with {process.exitcode}",
                hint="look at its messages above; --workers 1 shows them alone",
            )
        return self._start()


def _work(plan: Plan, build: Build, sock: socket.socket) -> None:
    """One worker."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until it has something to drain
    serve_here(plan, build, sock)


def end(processes: Sequence[BaseProcess]) -> None:
    """SIGTERM to all; SIGKILL to those that have not drained in time."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _ENDED
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
        process.join()
