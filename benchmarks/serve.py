"""The server of `robustcli guard serve` under load, through HTTP on this machine.

    python benchmarks/serve.py --out benchmarks/results/serve_cpu.json
    python benchmarks/serve.py --seconds 600 --out -    # ten minutes of overload

A network for 28x28 grey images (small_cnn) with one detector, whose threshold lets 1 % of the images be
alarms, is served by one process with an evidence store on the disk. The client is this process: it shares the
cores with the server. Three questions, one after the other:

- batches: images/s of four connections that send 64 images each, as fast as they are answered;
- latency: a request with one image every 20 ms, whatever became of the last one (an open loop: a slow answer
  delays no later request, and its wait counts);
- overload: 64 connections that send 64 images each without a pause; those that get a 429 come again at once.
  Each request holds an alarm that no other holds. Counted are the replies by status, the memory of the server
  at the beginning and at the end, and the alarms that were acknowledged but are not in the store (there must
  be none).
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import platform
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from robustcli import registry
from robustcli.guard.evidence import Keeper, png_of
from robustcli.guard.server.door import Rules
from robustcli.guard.server.process import Plan, listen, serve
from robustcli.guard.server.service import Limits, Service
from robustcli.guard.store import EvidenceStore
from robustcli.models.build import build_model
from robustcli.models.guarded import Defence, GuardedModel
from robustcli.models.info import ModelInfo

BATCH, POOL, ALARMS = 64, 2048, 0.01
BOUNDARY = "robustcli-bench"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def images() -> torch.Tensor:
    """float32 [POOL, 1, 28, 28]: blurred noise on black, about as many bytes as a digit of MNIST has."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(POOL, 1, 7, 7, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, size=28, mode="bilinear")
    return ((smooth - 0.5).clamp_min(0) * 2 * 255).round() / 255


def model() -> GuardedModel:
    """The guarded network; 1 % of `images` are alarms."""
    info = ModelInfo(num_classes=10, channels=1, size=28, mean=(0.13,), std=(0.31,))
    network = build_model("small_cnn", {}, info, seed=0).eval()
    registered = registry.defences.get("energy")
    guarded = GuardedModel([network], [Defence("energy", "energy", {}, registered.fn())], 10).eval()
    with torch.no_grad():
        scores = guarded.look(images()).scores["energy"]
    guarded.thresholds[0] = scores.quantile(1 - ALARMS)
    return guarded


def service(limits: Limits, store: str) -> Service:
    """What the server serves."""
    return Service(model(), Keeper(EvidenceStore.open(store, create=True), "0" * 64), limits, print)


def server(store: str, sock: socket.socket, ready: Any, threads: int) -> None:
    """The process of the server."""
    plan = Plan(Rules("", (), 10_000_000), Limits(threads=threads))
    serve(plan, lambda limits: service(limits, store), sock, ready.set)


@contextmanager
def running(store: str, threads: int) -> Iterator[tuple[int, int]]:
    """(port, process) of a server; at its end it drains."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command does
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    with listen("127.0.0.1", 0) as sock:
        process = context.Process(target=server, args=(store, sock, ready, threads))
        process.start()
        ready.wait()
        try:
            yield sock.getsockname()[1], process.pid or 0
        finally:
            os.kill(process.pid or 0, signal.SIGTERM)
            begin = time.monotonic()
            process.join()
            print(f"drained in {time.monotonic() - begin:.1f} s, exit {process.exitcode}")


def body(pngs: list[bytes]) -> bytes:
    """A form with these images."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'.encode()
    return b"".join(head + png + b"\r\n" for png in pngs) + f"--{BOUNDARY}--\r\n".encode()


def around(bodies: list[bytes]) -> Callable[[int], bytes]:
    """The bodies one after the other, again and again."""
    return lambda place: bodies[place % len(bodies)]


def unlike(guarded: GuardedModel, pngs: list[bytes]) -> Callable[[int], bytes]:
    """Bodies of which each has an alarm of its own: the worst image, its place written into three pixels."""
    pool = images()
    with torch.no_grad():
        worst = pool[guarded.look(pool).scores["energy"].argmax()]

    def made(place: int) -> bytes:
        image = worst.clone()
        image[0, 0, :3] = torch.tensor([place >> 16 & 255, place >> 8 & 255, place & 255]) / 255
        start = place * (BATCH - 1) % (POOL - BATCH)
        return body([*pngs[start : start + BATCH - 1], png_of(image)])

    return made


class Client:
    """One connection; counts replies by status, and remembers acknowledged alarms.

    It asks bodies(place), bodies(place + step), …; a body that was refused is sent again.
    """

    def __init__(self, port: int, bodies: Callable[[int], bytes], place: int, step: int = 1) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._bodies, self._place, self._step = bodies, place, step
        self._body = bodies(place)
        self.statuses: Counter[int] = Counter()
        self.alarms: set[str] = set()
        self.images = 0

    def ask(self) -> None:
        """One request."""
        self._connection.request("POST", "/predict", self._body, HEADERS)
        with self._connection.getresponse() as reply:
            text = reply.read()
        self.statuses[reply.status] += 1
        if reply.status == 200:
            answers = json.loads(text)
            self.images += len(answers)
            self.alarms |= {one["quarantined"] for one in answers if one["quarantined"]}
            self._place += self._step
            self._body = self._bodies(self._place)


def together(clients: list[Client], seconds: float) -> float:
    """Let all ask for some seconds; returns how long it took."""
    begin = time.monotonic()

    def work(client: Client) -> None:
        while time.monotonic() - begin < seconds:
            client.ask()

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - begin


def latencies(make: Callable[[], Client], rate: float, seconds: float) -> list[float]:
    """Seconds from when a request was due to its answer, in an open loop."""
    count, found = int(rate * seconds), []
    begin, due = time.monotonic() + 0.1, iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        client = make()
        while True:
            with lock:
                place = next(due, None)
            if place is None:
                return
            when = begin + place / rate
            time.sleep(max(0.0, when - time.monotonic()))
            client.ask()
            found.append(time.monotonic() - when)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found)


def resident(pid: int) -> float:
    """MiB of a process in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def overload(clients: list[Client], pid: int, seconds: float) -> dict[str, Any]:
    """What becomes of memory and replies."""
    memory, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            memory.append(round(resident(pid), 1))

    watcher = threading.Thread(target=watch)
    watcher.start()
    took = together(clients, seconds)
    ended.set()
    watcher.join()
    statuses = sum((client.statuses for client in clients), Counter[int]())
    tenth = max(1, len(memory) // 10)
    return {
        "seconds": round(took, 1),
        "replies": dict(sorted(statuses.items())),
        "images_per_second": round(sum(client.images for client in clients) / took),
        "memory_first_tenth": statistics.median(memory[tenth : 2 * tenth]),
        "memory_last_tenth": statistics.median(memory[-tenth:]),
        "memory_peak": max(memory),
    }


def measured(options: argparse.Namespace, store: str) -> dict[str, Any]:
    """All three answers."""
    pngs = [png_of(image) for image in images()]
    many = around([body(pngs[start : start + BATCH]) for start in range(0, POOL, BATCH)])
    one = around([body([png]) for png in pngs])
    fresh = unlike(model(), pngs)
    with running(store, options.threads) as (port, pid):
        together([Client(port, many, k) for k in range(4)], 2.0)  # warm
        clients = [Client(port, many, 8 * k) for k in range(4)]
        took = together(clients, options.batches)
        rate = sum(client.images for client in clients) / took
        waits = latencies(lambda: Client(port, one, 0), options.rate, options.batches)
        crowd = [Client(port, fresh, k, step=64) for k in range(64)]
        crowded = overload(crowd, pid, options.seconds)
    acknowledged = set().union(*(client.alarms for client in [*clients, *crowd]))
    with EvidenceStore.open(store) as opened:
        stored = {found.hash for found in opened.evidence()}
    return {
        "batches": {"images_per_second": round(rate)},
        "latency": {
            "requests_per_second": options.rate,
            "requests": len(waits),
            "p50_ms": round(1000 * waits[len(waits) // 2], 1),
            "p99_ms": round(1000 * waits[int(0.99 * len(waits))], 1),
            "max_ms": round(1000 * waits[-1], 1),
        },
        "overload": crowded
        | {"alarms_acknowledged": len(acknowledged), "alarms_lost": len(acknowledged - stored)},
    }


def main() -> None:
    """Measure, print, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=float, default=20.0, help="seconds of the first two questions")
    parser.add_argument("--rate", type=float, default=50.0, help="requests/s of the second question")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of overload")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the server")
    parser.add_argument("--out", default="-", help="a JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, str(Path(folder) / "store.db"))
    about: dict[str, Any] = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
    }
    about["load"] = os.getloadavg()[0]
    text = json.dumps({**about, "threads": options.threads, **found}, indent=1)
    print(text)
    if options.out != "-":
        Path(options.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
