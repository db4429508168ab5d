"""`robustcli eval`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call

HELP = "Clean accuracy, robust accuracy and attack success, each with n and a 95 % interval, and whether to believe them."
EXAMPLES = (
    "robustcli eval --model run:runs/train/latest --attack autoattack:rapid",
    "robustcli eval --model run:runs/train/latest --steps 40 --fail-under robust_acc=0.45",
)
FLAGS = (
    "set", "model", "weights", "plugin", "normalize", "data", "download", "eps", "norm", "allow_large_eps", "attack", "steps", "target", "n", "first",
    "split", "eval_batch", "device", "search", "seed", "threads", "name", "out", "overwrite", "resume", "shard", "merge", "sweep", "surrogate", "cross_check",
    "attack_plugin",
    "fail_under", "strict", "allow_pickle_weights", "smoke", "dry_run", "json", "quiet", "verbose", "debug",
)  # fmt: skip
_WITH_MERGE = (
    "merge",
    "out",
    "name",
    "overwrite",
    "strict",
    "fail_under",
    "json",
    "quiet",
    "verbose",
    "debug",
)


def run(call: Call) -> dict[str, Any]:
    """One evaluation, or the merger of several parts of one."""
    if call["merge"] is not None:
        from robustcli.config.number import parse_number
        from robustcli.errors import UsageError
        from robustcli.jobs.flags import MergeFlags
        from robustcli.jobs.merge import merge

        other = [name for name in FLAGS if name not in _WITH_MERGE and call[name]]
        if other or call["words"]:
            word = f"--{other[0].replace('_', '-')}" if other else call["words"][0]
            raise UsageError(f"--merge does not go with {word}", hint="the parts say what was measured")
        least = {
            item.key.rpartition(".")[2]: parse_number(item.value)
            for item in call.overrides()
            if item.key.startswith("eval.fail_under.")
        }
        asked = MergeFlags(
            runs=call["merge"],
            out=call["out"],
            name=call["name"] or "merged",
            overwrite=bool(call["overwrite"]),
            strict=bool(call["strict"]),
            fail_under=least,
        )
        return merge(call.console, asked)
    loaded = call.load()
    from robustcli.jobs.evaluate import evaluate
    from robustcli.jobs.flags import EvalFlags

    flags = EvalFlags(
        overwrite=call["overwrite"],
        resume=call["resume"],
        dry_run=call["dry_run"],
        strict=call["strict"],
        plugin=call["plugin"],
        allow_pickle=call["allow_pickle_weights"],
        shard=call["shard"],
        surrogate=call["surrogate"],
        cross_check=call["cross_check"],
        attack_plugin=call["attack_plugin"],
    )
    return evaluate(loaded, call.console, flags)
