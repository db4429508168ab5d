"""`--merge` of the verbs that measure in shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustcli.cli.call import Call
from robustcli.errors import UsageError

if TYPE_CHECKING:
    from robustcli.jobs.verb_flags import MergeFlags


def merge_flags(call: Call, flags: Sequence[str], allowed: Sequence[str]) -> MergeFlags:
    """What the command line says of the merged run.

    flags: all of the verb. allowed: those that go with --merge. Raises UsageError for flags and words that
    say what was measured.
    """
    from robustcli.config.number import parse_number
    from robustcli.jobs.verb_flags import MergeFlags

    others = [name for name in flags if name not in allowed and call.values.get(name)]
    refused = [*(f"--{name.replace('_', '-')}" for name in others), *call.texts("words")]
    if refused:
        raise UsageError(f"--merge does not go with {refused[0]}", hint="the parts say what was measured")
    least = {item.key.rpartition(".")[2]: parse_number(item.value) for item in call.fail_under()}
    return MergeFlags(
        runs=call.text("merge") or "",
        out=call.text("out"),
        name=call.text("name") or "merged",
        overwrite=call.on("overwrite"),
        strict=call.on("strict"),
        report=call.reports(),
        fail_under=least,
    )
