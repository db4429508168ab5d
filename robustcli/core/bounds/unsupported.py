"""An operation that has no bounds here, said with the place of the user's code that calls it."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import FrameType

import torch
from torch import fx

from robustcli.errors import UsageError

_FOREIGN = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]), "<eval_with_key>")


class UnsupportedOperation(UsageError):
    """An operation without bounds (exit 2): its name, its file and line, and what to use instead."""

    code = "E-BOUNDS"


def running() -> str:
    """ "file.py:12", the line of a network's code that is being traced; "" where torch alone is at work.

    The code that asks for the trace is not meant: the search ends at the tracer.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "trace":
        if not frame.f_code.co_filename.startswith(_FOREIGN):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def place(node: fx.Node) -> str:
    """ "file.py:12, module layer3.act": the line that made a node, and the module it calls."""
    where = [node.meta.get("place", "")]
    if node.op == "call_module":
        where.append(f"module {node.target}")
    return ", ".join(filter(None, where))


def raised_at(error: BaseException) -> str:
    """ "file.py:12", the innermost line outside torch and this package that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_FOREIGN)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""
