"""Runs made of records, so that no test of a gate waits for a model."""

import json
from pathlib import Path

import yaml

from robustcli.records.alarm import Alarm, reliability
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.sample import SampleRow
from robustcli.records.sweep import SweepRow
from robustcli.store.identity import Identity

HASHES = {"data": "d" * 64, "model": "m" * 64}


def lines(rows):
    return "".join(json.dumps(row.to_json()) + "\n" for row in rows)


def write(
    path,
    *,
    samples=(),
    more=(),
    verb="eval",
    config=None,
    document=None,
    status=None,
    alarms=(),
    listed=False,
):
    """A run that has ended well: its records say what the samples say. A sample is (right, stands).

    listed: whether samples.jsonl has them, for those who compare runs.
    """
    path = Path(path)
    path.mkdir(parents=True)
    Identity.new(verb).write(path)
    state = {"schema_version": 1, "state": "done", "code": 0, "step": None, "last_checkpoint": None}
    (path / "status.json").write_text(json.dumps({**state, "resumable": False, **(status or {})}))
    config = {"attacks": [{"name": "pgd", "steps": 20}], **(config or {})}
    (path / "config.resolved.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    n, right, stands = len(samples), sum(r for r, _ in samples), sum(s for _, s in samples)
    common = {"norm": "linf", "eps": 0.1, "n": n, "clean_correct": right, "hashes": HASHES, "split": "test"}
    rows = []
    if n:
        classes = {"a": samples[: n // 2], "b": samples[n // 2 :]}
        clean = {name: [sum(r for r, _ in part), len(part)] for name, part in classes.items()}
        worst = {name: [sum(s for _, s in part), len(part)] for name, part in classes.items()}
        rows.append(EvalRow(kind="clean", correct=right, per_class=clean, **common))
        rows.append(EvalRow(kind="worst", correct=stands, per_class=worst, **common))
    (path / "metrics.jsonl").write_text(lines([*rows, *[row for row in more if isinstance(row, CertifyRow)]]))
    (path / "sweep.jsonl").write_text(lines([row for row in more if isinstance(row, SweepRow)]))
    if listed:
        (path / "samples.jsonl").write_text(
            lines(line(i, *sample, "ab"[i >= n // 2]) for i, sample in enumerate(samples))
        )
    summary = {
        "verb": verb,
        "n": n,
        "alarms": [alarm.to_json() for alarm in alarms],
        "reliability": reliability(list(alarms)),
        **(document or {}),
    }
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def line(i, right, stands, label):
    """The record of one sample."""
    broken = right and not stands
    return SampleRow(
        id=i,
        file=None,
        label=label,
        clean=label if right else "c",
        confidence=0.5,
        attacked="c" if broken else None,
        broken_by="pgd-20" if broken else None,
    )


def answers(n, stands, right=None):
    """Samples of which the first `right` are right and the first `stands` stand."""
    right = n if right is None else right
    return [(i < right, i < stands) for i in range(n)]


SUSPECT = Alarm("not-converged", "suspect", "more steps break more", "raise steps")
