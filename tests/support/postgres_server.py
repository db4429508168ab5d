"""A real PostgreSQL on the loopback, from Debian's binaries, in a folder of its own."""

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

_SETTINGS = ("fsync=off", "shared_buffers=16MB", "max_connections=30", "unix_socket_directories=")


def missing():
    """Why no server can be started here; "" when one can."""
    if not binaries():
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        return "root cannot run PostgreSQL, and there is no setpriv"
    return ""


def binaries():
    """The folder of initdb and postgres, the newest; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


def _user():
    """Whom the server runs as, where root starts it."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise LookupError("neither postgres nor nobody is a user here")


def _free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@contextlib.contextmanager
def running():
    """Start a server; gives a URL with a password, and stops it at the end.

    Without a locale its encoding is SQL_ASCII, the one that asks most of a client.
    """
    folder, programs, prefix = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")), binaries(), []
    password, port = secrets.token_urlsafe(12), _free_port()
    (folder / "password").write_text(password)
    if os.geteuid() == 0:
        user = _user()
        prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        for path in (folder, folder / "password"):
            os.chown(path, user.pw_uid, user.pw_gid)

    def call(program, *argv):
        done = subprocess.run(
            [*prefix, programs / program, *argv],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )
        assert done.returncode == 0, (program, done.stdout, done.stderr)

    data = folder / "data"
    settings = ["listen_addresses=127.0.0.1", f"port={port}", *_SETTINGS]
    options = " ".join(f"-c {setting}" for setting in settings)
    try:
        call("initdb", "-N", "-D", data, "-U", "robust", "-A", "scram-sha-256", "--pwfile", "password")
        call("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql://robust:{password}@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
