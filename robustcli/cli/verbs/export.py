"""`robustcli export`."""

from __future__ import annotations

import re
from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import MODEL, OUTPUT, Flag, add_flag
from robustcli.cli.model_flags import DATA_KEYS
from robustcli.errors import UsageError

POSITION = 75
HELP = "A model as files for other programs: torch.export and ONNX, normalisation inside, answers compared."
EXAMPLES = (
    "robustcli export --model run:runs/train/latest --out exported",
    "robustcli export --model run:runs/train/latest --out deployed --format torch,onnx --json",
)
FLAGS = (
    *("set", *MODEL, "data", "download", "out", "overwrite"),
    add_flag("format", Flag("torch (model.pt2), onnx (model.onnx) or both: torch,onnx.", metavar="FORMATS")),
    add_flag(
        "shape",
        Flag("Images of a network that does not say what it takes: 3x32x32.", metavar="CxHxW"),
    ),
    add_flag("classes", Flag("Classes, for a factory that is told their number.", metavar="K")),
    *("allow_pickle_weights", *OUTPUT),
)


def run(call: Call) -> dict[str, Any]:
    """One export."""
    out, shape, classes = call.text("out"), call.text("shape"), call.text("classes")
    if out is None:
        raise UsageError("where to? --out DIR is missing", hint="robustcli export --model ... --out exported")
    if shape is not None and not re.fullmatch(r"(\d{1,4})x(\d{1,5})x\2", shape, re.ASCII):
        raise UsageError(f"--shape {shape!r} is not CxHxW", hint="square images, as 3x32x32")
    if classes is not None and not re.fullmatch(r"\d{1,7}", classes, re.ASCII):
        raise UsageError(f"--classes {classes!r} is not a number")
    loaded = call.load()
    named = call.source() is not None or any(item.key in DATA_KEYS for item in call.overrides())
    from robustcli.jobs.project.export import ExportFlags, export

    channels, height, width = (int(text) for text in (shape or "0x0x0").split("x"))
    flags = ExportFlags(
        out=out,
        formats=tuple(name.strip() for name in (call.text("format") or "torch").split(",")),
        shape=(channels, height, width) if shape else None,
        classes=int(classes) if classes else None,
        with_data=named,
        overwrite=call.on("overwrite"),
        plugin=call.plugin(),
        allow_pickle=call.on("allow_pickle_weights"),
    )
    return export(loaded, call.console, flags)
