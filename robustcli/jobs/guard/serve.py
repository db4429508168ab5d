"""`robustcli guard serve`: who may ask, then the processes that answer."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

from robustcli.errors import PolicyError, UsageError
from robustcli.guard.server.door import Rules
from robustcli.guard.server.process import Plan, listen, serve
from robustcli.guard.server.service import Limits, Service
from robustcli.jobs.guard.model import Opening, open_guard, open_keeper
from robustcli.terminal.console import Console

_SHORTEST = 16  # characters of a token
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class ServeFlags:
    """What the command line says.

    Args:
        host, port: where to listen.
        token_env: the variable that holds the token.
        allow_hosts: further names for this server in the header Host, such as that of a proxy.
        i_know: the user knows that other machines can reach the server.
        workers: processes.
        queue, batch: see `Limits`.
        threads: of each process; None shares the cores among the processes.
    """

    host: str
    port: int
    token_env: str
    allow_hosts: tuple[str, ...]
    i_know: bool
    workers: int
    queue: int
    batch: int
    threads: int | None


def guard_serve(opening: Opening, flags: ServeFlags, console: Console) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT. With --json the document is printed when the server listens.

    Raises:
        PolicyError: other machines could reach a server without a token, or the user did not say so.
        UsageError: the token is too short, or GUARD is no guarded model. ResourceError: E-PORT, E-EXTRA.
    """
    rules = _rules(flags)
    cores = max(1, (os.cpu_count() or 1) // flags.workers)
    limits = Limits(batch=flags.batch, queue=flags.queue, threads=flags.threads or cores)
    open_guard(opening)  # what is wrong with it is said before anything listens
    build = partial(_service, opening, Console(quiet=console.quiet))
    with listen(flags.host, flags.port) as sock:
        url = f"http://{_in_url(flags.host)}:{sock.getsockname()[1]}"
        document = {"url": url, "store": opening.place, "workers": flags.workers}

        def ready() -> None:
            console.info(f"{opening.guard} at {url}, alarms at {url}/review; Ctrl-C ends it")
            console.document({"ok": True, "verb": "guard serve", **document})

        serve(Plan(rules, limits, flags.workers), build, sock, ready)
    console.info("all requests were answered")
    return document


def _service(opening: Opening, console: Console, limits: Limits) -> Service:
    """The service of one process."""
    model = open_guard(opening)
    return Service(model, open_keeper(opening, model, console.warn), limits, console.warn)


def _rules(flags: ServeFlags) -> Rules:
    """Who may come in. Raises PolicyError, UsageError."""
    token = os.environ.get(flags.token_env, "")
    if token and len(token) < _SHORTEST:
        raise UsageError(
            f"the token has fewer than {_SHORTEST} characters",
            where=flags.token_env,
            hint='python -c "import secrets; print(secrets.token_urlsafe())" makes one',
        )
    if _is_local(flags.host):
        names = (*_LOCAL, _in_url(flags.host), *flags.allow_hosts)
        return Rules(token, tuple(name.lower() for name in names), Limits.body)
    if not token or not flags.i_know:
        raise PolicyError(
            "other machines could ask this server",
            where=f"--host {flags.host}",
            hint=f"set {flags.token_env} to a token and add --i-know; put TLS in front of it",
        )
    return Rules(token, flags.allow_hosts, Limits.body)


def _is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
