"""A program as a model: it answers PNG files with labels.

A program is kept alive: a service that loads a network need do so once. It gets the path of a PNG per line on
its standard input, and answers each with a class number on a line of its own. One that reads all of its input
before it answers is found out by its silence, and started anew for each batch.
"""

from __future__ import annotations

import hashlib
import io
import os
import select
import shlex
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from robustcli.config.spec import COMMAND
from robustcli.errors import RobustCliError, UsageError
from robustcli.models.blackbox import BlackBox, hot
from robustcli.regular import read_bytes

_CODE = "E-COMMAND"
_LIMIT = 2**28  # bytes of a file whose content belongs to the identity of the command
_SHOWN = 120  # characters of a strange answer that a message shows


class Program(BlackBox):
    """`command:PROGRAM ARGS`: pixels [B, C, H, W] in [0, 1] -> one-hot rows of the labels that it prints.

    Images are rounded to 8 bits, as PNG files hold them: a point is judged by what the program saw.

    Args:
        command: the words, split as a shell would; no shell runs.
        num_classes: K.
        timeout: seconds until an answer must have come.
        say: told one line.

    Raises UsageError E-COMMAND: it cannot be started, ends, hangs, answers another number of lines, or a line
    that is no class number.
    """

    grain = 1 / 255

    def __init__(
        self, command: str, num_classes: int, timeout: float = 30.0, say: Callable[[str], None] = print
    ) -> None:
        super().__init__("labels")
        self.num_classes = num_classes
        self._conversation = _Conversation(words_of(command), timeout, say)

    def get_extra_state(self) -> list[str]:
        """What hashes of the model are made of: the words of the command, and the files that they name.

        What the program reads besides, and a service that it asks, nobody here can know.
        """
        return [*self._conversation.words, *self._conversation.digests]

    def set_extra_state(self, state: list[str]) -> None:
        """Nothing to load."""

    def ask(self, x: Tensor) -> Tensor:
        if x.shape[1] not in (1, 3):
            raise _fault(f"images of {x.shape[1]} channels have no PNG", hint="1 or 3 channels")
        pixels = (x * 255).round().to(torch.uint8).cpu()
        labels = self._conversation.ask([_png(image) for image in pixels])
        try:
            return hot(torch.tensor(labels), self.num_classes, self._conversation.name)
        except UsageError:
            self._conversation.close()
            raise


def _png(image: Tensor) -> bytes:
    """uint8 [C, H, W], C = 1 or 3, as the bytes of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = image.permute(1, 2, 0).numpy()
    Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def words_of(command: str) -> list[str]:
    """The words of `command:PROGRAM ARGS`. Raises UsageError E-COMMAND where there is none."""
    try:
        words = shlex.split(command.removeprefix(COMMAND))
    except ValueError as error:
        raise _fault(f"{command!r} is no command: {error}") from error
    if not words:
        raise _fault(f"{command!r} names no program", hint="write --model 'command:PROGRAM ARGS'")
    return words


def _digests(words: Sequence[str]) -> Iterator[str]:
    """SHA-256 of each word that is a file which can be read whole, such as the script of an interpreter."""
    for word in words:
        with suppress(OSError, ValueError):
            yield hashlib.sha256(read_bytes(Path(word), _LIMIT)).hexdigest()


class _Conversation:
    """The running program. Nothing here is an attribute of a module, which measurements put back."""

    def __init__(self, words: Sequence[str], timeout: float, say: Callable[[str], None]) -> None:
        self.name, self.words, self._timeout, self._say = words[0], list(words), timeout, say
        self.digests = [*_digests(words)]
        self._folder = tempfile.TemporaryDirectory(prefix="robustcli-")
        self._errors: IO[bytes] = open(Path(self._folder.name) / "stderr", "w+b")  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        self._once = self._ever = False
        self._count, self._rest = 0, b""
        self._turn = threading.Lock()
        self._holder: list[subprocess.Popen[bytes]] = []
        weakref.finalize(self, _closed, self._holder, self._folder, self._errors)

    def ask(self, images: Sequence[bytes]) -> list[int]:
        """One class number per PNG."""
        with self._turn:
            paths = [self._written(image) for image in images]
            try:
                return [self._number(line) for line in self._answers(paths)]
            except RobustCliError:
                self.close()
                raise
            finally:
                for path in paths:
                    path.unlink(missing_ok=True)

    def _written(self, image: bytes) -> Path:
        self._count += 1
        path = Path(self._folder.name) / f"{self._count:09d}.png"
        path.write_bytes(image)
        return path

    def _answers(self, paths: Sequence[Path]) -> list[bytes]:
        """One line per path, from the program that runs, or from one that is started for these."""
        process = self._process or self._started()
        self._refuse_more()
        sender = threading.Thread(target=self._send, args=(process, paths, self._once), daemon=True)
        sender.start()
        lines: list[bytes] = []
        while len(lines) < len(paths):
            line = self._line(process)
            if line is None and not lines and not self._ever and not self._once:
                self._once = True
                self._say(
                    f"{self.name} reads all of its input before it answers: it is started for each batch"
                )
                sender.join(self._timeout)
                with suppress(OSError):
                    process.stdin.close()  # type: ignore[union-attr]
                continue
            if line is None:
                raise _fault(
                    f"{self.name} gave no answer for {self._timeout:g} s, after {len(lines)} of {len(paths)}",
                    hint="it must answer each line and flush it; model.timeout allows more",
                )
            if line == b"":
                raise self._ended(process, len(lines), len(paths))
            lines.append(line)
        self._ever = True
        if self._once:
            self._finish(process, len(paths))
        else:
            self._refuse_more()
        return lines

    def _started(self) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(
                self.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # an interrupt reaches us first
            )
        except OSError as error:
            raise _fault(
                f"cannot run {self.name}: {error.strerror or error}",
                hint="write its path, and make it executable",
            ) from error
        self._process, self._rest = process, b""
        self._holder[:] = [process]
        return process

    @staticmethod
    def _send(process: subprocess.Popen[bytes], paths: Sequence[Path], close: bool) -> None:
        """Write the paths; a program that is gone is noticed by who reads."""
        with suppress(OSError, ValueError):
            assert process.stdin is not None
            process.stdin.write("".join(f"{path}\n" for path in paths).encode())
            process.stdin.flush()
            if close:
                process.stdin.close()

    def _line(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """The next line; b"" at the end of the output, None where none comes in time."""
        assert process.stdout is not None
        until = time.monotonic() + self._timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                line, self._rest = self._rest, b""
                return line
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return line or b" "  # an empty line is an answer, and a wrong one

    def _refuse_more(self) -> None:
        """Raises UsageError where the program has printed more than it was asked."""
        process = self._process
        if process is None or process.stdout is None:
            return
        if not self._rest and select.select([process.stdout], [], [], 0)[0]:
            self._rest = os.read(process.stdout.fileno(), 1 << 16)
        if self._rest:
            extra = _shown(self._rest.partition(b"\n")[0])
            raise _fault(
                f"{self.name} printed a line more than it was asked: {extra}", hint="one line per path"
            )

    def _finish(self, process: subprocess.Popen[bytes], asked: int) -> None:
        """The end of a program that answers one batch."""
        if self._line(process):
            raise _fault(f"{self.name} answered more than {asked} lines for {asked} paths")
        self.close()

    def _ended(self, process: subprocess.Popen[bytes], got: int, asked: int) -> UsageError:
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        told = f": {said[-1][:_SHOWN]}" if said else ""
        what = f"{self.name} ended with {process.poll()} after {got} of {asked} answers{told}"
        return _fault(what, hint="it must print one class number per line of its input")

    def _number(self, line: bytes) -> int:
        text = line.decode(errors="replace").strip()
        if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 9:
            raise _fault(f"{self.name} answered {_shown(line)}, which is no class number")
        return int(text)

    def close(self) -> None:
        """End the program, and all that it started."""
        for process in self._holder:
            _killed(process)
        self._holder.clear()
        self._process, self._rest = None, b""


def _closed(
    holder: list[subprocess.Popen[bytes]], folder: tempfile.TemporaryDirectory[str], errors: IO[bytes]
) -> None:
    for process in holder:
        _killed(process)
    errors.close()
    folder.cleanup()


def _killed(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
    process.wait()


def _shown(line: bytes) -> str:
    return repr(line.decode(errors="replace").strip()[:_SHOWN])


def _fault(what: str, hint: str = "") -> UsageError:
    return UsageError(what, where="model", hint=hint, code=_CODE)
