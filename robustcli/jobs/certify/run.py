"""The work of `robustcli certify`: certify, attack, compare, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.assembly.lineage import begins_with
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.samples import samples, split_of
from robustcli.assembly.setting import Setting, prepare_to_measure
from robustcli.config.load import Loaded
from robustcli.evaluation.certificates.measured import Certified
from robustcli.evaluation.shards import parse_part
from robustcli.jobs.certify.check import check
from robustcli.jobs.certify.cost import certification_plan
from robustcli.jobs.certify.export import check_export, export
from robustcli.jobs.certify.flags import CertifyFlags
from robustcli.jobs.certify.plan import numbers_of
from robustcli.jobs.certify.report import report
from robustcli.jobs.certify.work import Work
from robustcli.jobs.measure import check_attacks
from robustcli.jobs.resuming import check_flags
from robustcli.jobs.sharded import joined, open_sharded, with_source
from robustcli.records.document import Document
from robustcli.reporting.certify_table import checked_table
from robustcli.store.follower import Follower
from robustcli.terminal.console import Console


def certify(loaded: Loaded, console: Console, flags: CertifyFlags) -> dict[str, Any] | None:
    """Certify as configured; returns the `certify` document, None in a process that is not the first.

    Raises UnreliableError E-INVERSION for a sample that was broken where it is certified.
    """
    document = Document("certify")
    team, console = joined(loaded.config, console)
    check_flags(flags.resume, flags.overwrite)
    share = parse_part(flags.shard) if flags.shard else None
    config = with_source("certify", loaded.config, console, resume=flags.resume, team=team)
    setting = prepare_to_measure(config, console, begins_with(config), dry_run=flags.dry_run)
    model = ModelSource.of(setting, flags).to_measure(console)
    if flags.check is not None:
        return _checked(document, setting, model, Path(flags.check), console)
    check_attacks(setting, model=model)
    if flags.export is not None:
        check_export(setting.ball)
    work = Work(setting, model, console)
    numbers = numbers_of(share, work.shards)
    if flags.dry_run:
        return certification_plan(
            setting, model, work.method, work.plan, work.n, console, processes=flags.nproc
        )
    with open_sharded("certify", config, console, flags, flags.plugin, team=team) as run, work.stop:
        result, header = work.measure(run, numbers, team)
        if isinstance(run, Follower):
            return None
        more: dict[str, Any] = {}
        if flags.export is not None:
            more["export"] = _exported(setting, model, result, Path(flags.export), console)
        return report(run, document, config, header, result, console, strict=flags.strict, more=more)


def _checked(
    document: Document, setting: Setting, model: nn.Module, file: Path, console: Console
) -> dict[str, Any]:
    """The document of --check. Raises DataError E-CERTIFICATE for a certificate that does not hold."""
    split = split_of(setting.data, setting.config.eval.split)
    found = check(file, model, split, console, device=setting.device)
    console.table(checked_table(found["checked"], setting.data.classes))
    return document.finish(None, found)


def _exported(
    setting: Setting, model: nn.Module, result: Certified, folder: Path, console: Console
) -> dict[str, Any]:
    """Write what stays unknown for a complete verifier."""
    split, positions = samples(setting)
    unknown = torch.tensor([row.id for row in result.rows if row.status == "unknown"], dtype=torch.int64)
    open_ones = positions[torch.isin(split.ids[positions], unknown)]
    seed = setting.config.seed
    return export(folder, model, split, open_ones, setting.ball, setting.device, seed=seed, say=console.info)
