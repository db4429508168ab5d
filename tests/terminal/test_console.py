"""What reaches stdout and stderr: on a pipe, on a terminal, with --json, with the other end gone or full."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustcli.errors import ResourceError
from robustcli.reporting.tables import Table
from robustcli.terminal import progress as progress_module
from robustcli.terminal.console import Console
from robustcli.terminal.progress import Line, Pace, clock
from robustcli.terminal.streams import clean, is_terminal, write

ROOT = Path(__file__).resolve().parents[2]
TABLE = Table("numbers", ["name", "value"], [["a" * 200, 0.5], ["evil \x1b[31m | name", None]])


def python(
    code: str, *, shell: str = "", env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter; `shell` is put behind it (a redirection or a pipe)."""
    command = f'"{sys.executable}" -c "$CODE" {shell}'
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "CODE": f"from robustcli.terminal.console import Console\n{code}",
        **(env or {}),
    }
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def terminal(code: str, columns: int = 80) -> str:
    """What `code` writes when stdout and stderr are one terminal of `columns` columns."""
    pty = pytest.importorskip("pty")
    import fcntl
    import struct
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm-256color",
        "LC_ALL": "C.UTF-8",
    }
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=child, stdout=child, stderr=child, env=environment
    ) as process:
        os.close(child)
        pieces = []
        while True:
            try:
                piece = os.read(parent, 65536)
            except OSError:  # the child has closed its end
                break
            if not piece:
                break
            pieces.append(piece)
        assert process.wait(60) == 0
    os.close(parent)
    return b"".join(pieces).decode()


# ---- streams and levels ------------------------------------------------------------------------------------


def test_results_and_messages_never_share_a_stream(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.info("about to start")
    console.result("runs/x")
    console.table(TABLE)
    console.warn("careful")
    assert console.document({"a": 1}) is False
    out, err = capsys.readouterr()
    assert err == "about to start\nwarning: careful\n"
    assert out == "runs/x\n" + TABLE.markdown()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "info\nwarning: warn\nerror\n"),
        ({"verbose": True}, "info\ndetail\nwarning: warn\nerror\n"),
        ({"quiet": True}, "warning: warn\nerror\n"),
        ({"quiet": True, "verbose": True}, "warning: warn\nerror\n"),
    ],
)
def test_levels(options: dict[str, bool], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(**options)
    console.info("info")
    console.detail("detail")
    console.warn("warn")
    console.error("error")
    console.result("result")
    out, err = capsys.readouterr()
    assert (out, err) == ("result\n", expected)


def test_json_prints_exactly_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    console.result("runs/x")
    console.table(TABLE)
    console.info("message")
    values = {
        "path": Path("runs/x"),
        "nan": math.nan,
        "inf": [math.inf, 1.5],
        "eight": np.float32(0.5),
        "count": np.int64(3),
        "pair": (1, 2),
        "ü": "ü",
    }
    assert console.document(values) is True
    assert console.document({"ok": False}) is False
    out, err = capsys.readouterr()
    assert err == "message\n" and out.count("\n") == 1 and out.isascii()
    assert json.loads(out) == {
        "schema_version": 1, "path": "runs/x", "nan": None, "inf": [None, 1.5], "eight": 0.5, "count": 3,
        "pair": [1, 2], "ü": "ü",
    }  # fmt: skip


def test_a_document_that_json_cannot_hold_is_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TypeError):
        Console(json=True).document({"set": {1}})
    assert capsys.readouterr().out == ""


def test_terminal_escapes_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    Console().info("class \x1b[2J\x07 name\nsecond\tline")
    Console().result("\x9b31m\udc80")
    Console().table(TABLE)
    out, err = capsys.readouterr()
    assert err == "class \\x1b[2J\\x07 name\nsecond\tline\n"
    assert out.startswith("\\x9b31m\\udc80\n") and "\x1b" not in out


# ---- pipes -------------------------------------------------------------------------------------------------


def test_nothing_is_cut_and_no_ansi_is_written_in_a_pipe() -> None:
    done = python(
        "from robustcli.reporting.tables import Table\n"
        "Console().table(Table('t', ['name', 'value'], [['a' * 300, 0.5]]))",
        env={"FORCE_COLOR": "1", "COLUMNS": "80"},
    )
    assert (
        done.returncode == 0
        and "a" * 300 in done.stdout
        and "\x1b" not in done.stdout
        and max(map(len, done.stdout.splitlines())) > 300
    )


MANY = (
    "c = Console()\nfor i in range(20000): c.result('line ' + str(i))\n"
    "import sys; print('end', file=sys.stderr)"
)


def test_a_reader_that_leaves_changes_nothing() -> None:
    done = python(MANY, shell="| head -n 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "line 0\n", "end\n")


def test_a_reader_that_left_does_not_hide_a_failed_gate() -> None:
    assert python(MANY + "\nraise SystemExit(1)", shell="| head -n 1").returncode == 1


def test_closed_streams_are_no_error() -> None:
    done = python(
        "c = Console()\nc.info('a')\nc.result('b')\nwith c.progress(10, 'w') as bar: bar.advance(10)",
        shell=">&- 2>&-",
    )
    assert done.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_stdout_is_loud_and_behind_stderr_is_not() -> None:
    code = """
import sys
from robustcli.errors import RobustCliError
try:
    Console().result('x')
except RobustCliError as error:
    print(error.line(), file=sys.stderr)
    sys.exit(error.exit_code)
"""
    done = python(code, shell="> /dev/full")
    assert done.returncode == 6
    assert (
        done.stderr == "error[E-DISK]: cannot write the result: No space left on device; stdout; "
        "free some space, or send it elsewhere\n"
    )
    done = python("c = Console()\nc.info('lost')\nc.result('kept')", shell="2> /dev/full")
    assert (done.returncode, done.stdout) == (0, "kept\n")


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"TERM": "dumb"},
    ],
)
def test_any_locale_without_home_or_terminal(env: dict[str, str]) -> None:
    code = """
from robustcli.reporting.tables import Table
c = Console()
c.info('gr\\u00fcn')
c.result('gr\\u00fcn')
c.table(Table('\\u65e5', ['x'], [['\\u00fc']]))
with c.progress(2, '\\u00fc') as bar:
    bar.advance(2)
"""
    done = python(code, env=env, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] in ("grün", "gr\\xfcn") and done.stderr.splitlines()[0] in (
        "grün",
        "gr\\xfcn",
    )


# ---- progress ----------------------------------------------------------------------------------------------


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    timer = Clock()
    monkeypatch.setattr(progress_module.time, "monotonic", timer.monotonic)
    yield timer


def test_a_line_every_ten_percent(timer: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress(200, "training") as bar:
        for _ in range(200):
            timer.now += 0.5
            bar.advance(loss=0.25)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 10
    assert lines[0] == "training: 10 % 20/200, 2/s, 1:30 left, loss 0.25"
    assert lines[-1] == "training: 100 % 200/200, 2/s, loss 0.25"


def test_a_line_every_thirty_seconds_when_it_is_slow(
    timer: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Console().progress(1000, "slow") as bar:
        for _ in range(9):
            timer.now += 10
            bar.advance()
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "slow: 0 % 3/1000",
        "slow: 0 % 6/1000",
        "slow: 0 % 9/1000",
    ]


@pytest.mark.parametrize("total", [None, 0])
def test_an_unknown_total(total: int | None, timer: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress(total, "reading") as bar:
        bar.advance(5)
        timer.now += 31
        bar.advance(62)
    assert capsys.readouterr().err == "reading: 67, 2/s\n"


def test_what_was_done_before_counts_for_no_rate(timer: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A resumed run jumps to its step first: 500 of 1000 at once are not 500 per second."""
    for done, jump in ((500, 0), (0, 500)):
        with Console().progress(1000, "resumed", done=done) as bar:
            bar.advance(jump)
            for _ in range(100):
                timer.now += 1
                bar.advance()
        assert capsys.readouterr().err.splitlines()[-1] == "resumed: 60 % 600/1000, 1/s, 6:40 left"


def test_quiet_shows_no_progress_and_json_keeps_stdout_free(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(quiet=True).progress(10, "work") as bar:
        bar.advance(10, **{"img/s": "3"})
    assert capsys.readouterr() == ("", "")
    with Console(json=True).progress(10, "work") as bar:
        bar.advance(10)
    assert capsys.readouterr() == ("", "work: 100 % 10/10\n")


def test_pace_and_clock() -> None:
    pace = Pace(3)
    assert (
        pace.add(1) is None
        and pace.done == 4
        and pace.left(None, 10) is None
        and pace.left(2.0, 10) == 3.0
        and pace.left(2.0, 4) is None
    )
    assert [clock(s) for s in (0, 59.6, 61, 3599.9, 3661, math.inf, math.nan, -1)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "1:01:01",
        "?",
        "?",
        "?",
    ]


def test_work_inside_a_unit_moves_the_heartbeat(timer: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """One batch of 100 images that takes minutes: a line per tenth of its work, and at least every 30 s."""
    with Console().progress(100, "test images") as bar:
        for k in range(12):
            timer.now += 10
            bar.within(k, 110.0 - 10 * k, at=f"pgd step {k}/12", standing="81.0%")
        bar.advance(100, robust="80.0%")
    assert capsys.readouterr().err.splitlines() == [
        "test images: 2 % 0/100, 1:30 left, at pgd step 2/12, standing 81.0%",
        "test images: 5 % 0/100, 1:00 left, at pgd step 5/12, standing 81.0%",
        "test images: 8 % 0/100, 0:30 left, at pgd step 8/12, standing 81.0%",
        "test images: 10 % 0/100, 0:10 left, at pgd step 10/12, standing 81.0%",
        "test images: 100 % 100/100, robust 80.0%",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_bar_drops_what_matters_least(width: int) -> None:
    """At 80 columns step, time left and the labelled validation stay; no line is wider than the screen."""
    parts = [
        "step 12345/40000",
        "1:31:05 left",
        "val clean 78.1% robust 41.2%",
        "loss 1.234",
        "img/s 1183",
    ]
    text, bar = Line("training").fitted(width - 1, parts)
    assert len("training") + 1 + bar + 1 + len(text) <= width - 1 and bar >= 6
    assert text.startswith("step 12345/40000") and parts[1] in (text if width > 40 else parts)
    assert all(part in text for part in parts[: 3 if width >= 80 else 1])
    assert ("img/s 1183" in text) == (width >= 120)


# ---- terminal ----------------------------------------------------------------------------------------------


def test_a_terminal_gets_a_table_that_fits() -> None:
    code = """
from robustcli.terminal.console import Console
from robustcli.reporting.tables import Table
Console().table(Table('t', ['name', 'value'], [['x' * 60, 0.5]]))
"""
    text = terminal(code, 40)
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= 40
    assert text.count("x") == 60 and "|" not in text


def test_a_terminal_gets_a_live_bar_with_lines_above_it() -> None:
    code = """
from robustcli.terminal.console import Console
console = Console()
with console.progress(4, "train [red]") as bar:
    for i in range(4):
        bar.advance(loss=0.5, **{"img/s": "12"})
        if i == 1:
            console.warn("look [bold]")
    with console.progress(2, "inner") as inner:
        inner.advance(2)
console.result("done")
"""
    text = terminal(code, 120)
    assert "train [red]" in text and "4/4" in text and "loss 0.5" in text and "img/s 12" in text
    assert "warning: look [bold]\r\n" in text and "inner: 100 % 2/2\r\n" in text
    assert text.endswith("done\r\n") and "\x1b[?25h" in text  # the cursor is back


def test_a_terminal_that_goes_away_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setenv("TERM", "xterm")
    done = 0
    console = Console()
    with console.progress(3, "work") as bar:
        for _ in range(3):
            bar.advance()
            console.info("still here")
            done += 1
    assert done == 3


def test_is_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    closed = Tty()
    closed.close()
    assert is_terminal(Tty()) and not is_terminal(io.StringIO()) and not is_terminal(None)
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Tty())


def test_write_and_clean() -> None:
    closed = io.StringIO()
    closed.close()
    assert write(None, "x") is None and write(closed, "x") is None
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert write(narrow, "grün") is None
    assert narrow.buffer.getvalue() == b"gr\\xfcn"  # type: ignore[attr-defined]
    assert clean("a\rb\x00\n\tc") == "a b\\x00\n\tc"


def test_a_refused_write_names_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(ResourceError, match="No space left on device") as caught:
        Console().result("x")
    assert caught.value.exit_code == 6 and caught.value.code == "E-DISK"
