"""`robustcli certify --merge A,B`: one verdict from the shards of several runs of the same certification."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from robustcli.config.load import load_config
from robustcli.errors import DataError, UsageError
from robustcli.evaluation.certificates.measured import Certified
from robustcli.evaluation.certificates.shards import load
from robustcli.evaluation.header import Header
from robustcli.evaluation.shards import merge_with
from robustcli.evaluation.stored import check_certified
from robustcli.jobs.certify.report import report
from robustcli.jobs.merge import run_folders
from robustcli.jobs.rerun import CONFIG, write_inputs
from robustcli.jobs.verb_flags import MergeFlags
from robustcli.records.alarm import Alarm
from robustcli.records.document import Document
from robustcli.store.rundir import open_run
from robustcli.store.sources import Source
from robustcli.terminal.console import Console


def merge(console: Console, flags: MergeFlags) -> dict[str, Any]:
    """Merge as asked; returns the `certify` document. The model is not needed.

    Raises UsageError: no shards there, or parts of different certifications; DataError: two runs disagree on
    a sample; and as `report`.
    """
    document = Document("certify")
    folders = run_folders(flags.runs)
    header, result = _merged(folders, console)
    config = load_config(str(folders[0] / CONFIG), []).config
    sources = [Source(f"the run {folder}", folder) for folder in folders]
    with open_run("certify", flags.name, out=flags.out, overwrite=flags.overwrite, sources=sources) as run:
        write_inputs(run, config)
        return report(run, document, config, header, result, console, strict=flags.strict)


def _merged(folders: list[Path], console: Console) -> tuple[Header, Certified]:
    """(the common header, the rows of all parts together)."""
    header, shards = merge_with(load, [folder / "shards" for folder in folders], console.warn)
    if not shards:
        raise UsageError(
            "no shard of these runs is complete",
            where=", ".join(map(str, folders)),
            hint="finish them with --resume first; evaluations are merged by robustcli eval",
        )
    try:
        check_certified(header.plan, header.about, header.alarms)
    except ValueError as error:
        raise DataError(
            f"the shards make no certification: {error}", where=str(folders[0]), hint="measure again"
        ) from error
    tallies: Counter[str] = Counter()
    for shard in shards:
        tallies.update(shard.tallies)
    alarms = [Alarm.from_json(alarm) for alarm in header.alarms]
    rows = [row for shard in shards for row in shard.rows]
    return header, Certified(rows, alarms, tallies, header.n, (len(shards), header.shards))
