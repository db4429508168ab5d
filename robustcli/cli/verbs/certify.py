"""`robustcli certify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustcli.cli.call import Call
from robustcli.cli.flags import DATA_AND_BALL, MACHINE, MODEL, OUTPUT, RUN, SAMPLE, Flag, add_flag
from robustcli.cli.merging import merge_flags
from robustcli.cli.processes import alone
from robustcli.errors import UsageError

if TYPE_CHECKING:
    from robustcli.config.load import Loaded

POSITION = 45
HELP = (
    "What is proven: certified accuracy at each radius, beside the accuracy under attack of the same samples."
)
EXAMPLES = (
    "robustcli certify --model run:runs/train/latest --n 100",
    "robustcli certify certify/digits_smoothing --model run:runs/train/latest",
)
FLAGS = (
    *("set", *MODEL, *DATA_AND_BALL, "attack", "steps"),
    add_flag(
        "method",
        Flag(
            "cascade, ibp, crown-ibp, crown, alpha-crown or smoothing; left out: what can prove something.",
            "certify.method",
        ),
    ),
    add_flag("radii", Flag("Radii that are asked for: 1/255,2/255.", "certify.radii", metavar="RADIUS,…")),
    add_flag("sigma", Flag("Of the noise that smooths, on the [0, 1] scale.", "certify.smoothing.sigma")),
    add_flag("draws", Flag("Draws of that noise for each image.", "certify.smoothing.n")),
    *(*SAMPLE, "skip", *MACHINE, *RUN, "resume", "nproc", "shard", "merge"),
    add_flag("check", Flag("Does this certificate hold? ID.json, or a run.", metavar="FILE")),
    add_flag("export", Flag("Write what stays unknown here, as ONNX and VNN-LIB.", metavar="DIR")),
    *("strict", "allow_pickle_weights", "smoke", "dry_run", *OUTPUT),
)
_RUNS = (
    *("eps", "norm", "attack", "steps", "method", "radii", "sigma", "draws", "n", "first", "skip"),
    *(*RUN, "resume", "nproc", "shard", "export", "strict", "smoke", "dry_run"),
)
_WITH_MERGE = ("merge", *RUN, "strict", *OUTPUT)


def run(call: Call) -> dict[str, Any] | None:
    """One certification, also in many processes, or the merger of several parts of one."""
    if call.text("merge") is not None:
        from robustcli.jobs.certify.merge import merge

        return merge(call.console, merge_flags(call, FLAGS, _WITH_MERGE))
    if call.text("check") is not None:
        _refuse_beside_check(call)
    loaded = call.load(lambda loaded: _smoothing(call, loaded))
    nproc = alone(call, loaded)
    from robustcli.jobs.certify.flags import CertifyFlags
    from robustcli.jobs.certify.run import certify

    flags = CertifyFlags(
        overwrite=call.on("overwrite"),
        resume=call.on("resume"),
        dry_run=call.on("dry_run"),
        strict=call.on("strict"),
        plugin=call.plugin(),
        allow_pickle=call.on("allow_pickle_weights"),
        nproc=nproc,
        shard=call.text("shard"),
        check=call.text("check"),
        export=call.text("export"),
    )
    return certify(loaded, call.console, flags)


def _refuse_beside_check(call: Call) -> None:
    """Raises UsageError for flags that say what a run measures: a certificate says it itself."""
    given = [name for name in _RUNS if call.values.get(name)]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise UsageError(f"--check does not go with {flag}", hint="the certificate says what it is about")


def _smoothing(call: Call, loaded: Loaded) -> list[str]:
    """--sigma and --draws mean smoothing. Raises UsageError where the method is another one."""
    given = [f"--{name}" for name in ("sigma", "draws") if call.text(name) is not None]
    method = loaded.config.certify.method
    if not given or method == "smoothing":
        return []
    if method is None:
        return ["certify.method=smoothing"]
    raise UsageError(
        f"{given[0]} is about smoothing, and the method is {method}", hint="leave one of them out"
    )
