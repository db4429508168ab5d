"""Run directories as verbs leave them, written without running anything."""

import json

from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.sample import SampleRow
from robustcli.records.train import TrainRow
from robustcli.store.identity import Identity

DATA = {"data": "digits", "split": "test", "seed": 0}
HASHES = {"model": "a" * 64, "data": "d" * 64, "code": "c" * 64, "ids": "1" * 16}
BALL = {"norm": "linf", "eps": 0.1}
CONFIG = {
    "name": "mine",
    "seed": 0,
    "data": {"name": "digits"},
    "model": {"name": "small_cnn"},
    "ball": BALL,
    "attacks": [{"name": "pgd", "steps": 20}],
    "eval": {"target": None, "n": 100},
    "objective": {"name": "madry"},
    "adversary": {"name": "pgd", "steps": 7},
    "train": {"epochs": 4, "batch_size": 64, "val_attack": {"name": "pgd", "steps": 10}},
}
ENVIRONMENT = {"robustcli": "0.1.0", "torch": "2.15.0", "python": "3.11.7", "code": "c" * 64}


def write_run(
    path, verb, rows=(), samples=(), document=None, config=CONFIG, state="done", code=0, id="ab" * 16
):
    """A run of a verb. document: what summary.json holds beside the envelope; None for no summary.json."""
    path.mkdir(parents=True, exist_ok=True)
    Identity(verb, id).write(path)
    status = {"schema_version": 1, "state": state, "code": code, "step": None, "last_checkpoint": None}
    (path / "status.json").write_text(json.dumps({**status, "resumable": False}))
    (path / "config.resolved.yaml").write_text(json.dumps(config))  # which is YAML, too
    (path / "env.json").write_text(json.dumps(ENVIRONMENT))
    (path / ".lock").write_text("")
    (path / "metrics.jsonl").write_text(lines(rows))
    if samples:
        (path / "samples.jsonl").write_text(lines(samples))
    if document is not None:
        envelope = {"schema_version": 1, "ok": True, "verb": verb, "run": str(path), "seconds": 1.0}
        (path / "summary.json").write_text(json.dumps({**envelope, **document}))
    return path


def lines(rows):
    return "".join(json.dumps(row.to_json()) + "\n" for row in rows)


def eval_rows(clean=90, robust=40, n=100, attack="pgd", steps=20, classes=None, **more):
    """The rows clean, attack and worst of an evaluation. classes: name -> (clean, robust, n)."""
    common = {**DATA, **BALL, "model": "small_cnn", "n": n, "clean_correct": clean, "hashes": HASHES, **more}
    per = [{name: (counts[i], counts[2]) for name, counts in (classes or {}).items()} for i in (0, 1)]
    label = f"{attack}-{steps}"
    return [
        EvalRow(kind="clean", correct=clean, per_class=per[0], **common),
        EvalRow(kind="attack", correct=robust, attack=attack, params={"steps": steps}, label=label, **common),
        EvalRow(kind="worst", correct=robust, label=label, per_class=per[1], **common),
    ]


def eval_document(rows, reliability="ok", alarms=()):
    """What an evaluation answers for these rows, as far as a reader needs it."""
    clean, attack, worst = rows
    return {
        **{name: getattr(worst, name) for name in ("model", "data", "split", "norm", "eps", "seed", "n")},
        "clean_acc": clean.clean.value,
        "robust_acc": worst.robust.value,
        "attack_success": worst.success and worst.success.value,
        "attacks": [{"name": attack.title, "robust_acc": attack.robust.value}],
        "reliability": reliability,
        "alarms": list(alarms),
    }


def write_eval(path, clean=90, robust=40, n=100, reliability="ok", alarms=(), samples=(), **more):
    """A finished evaluation."""
    state = {key: more.pop(key) for key in ("state", "code", "config", "id") if key in more}
    rows = eval_rows(clean, robust, n, **more)
    return write_run(path, "eval", rows, samples, eval_document(rows, reliability, alarms), **state)


def samples(standing, broken=0, wrong=0, start=0):
    """Lines of samples.jsonl: ids from `start`, first those that stand, then the broken, then the wrong."""
    kinds = ["stands"] * standing + ["broken"] * broken + ["wrong"] * wrong
    return [sample(start + k, kind) for k, kind in enumerate(kinds)]


def sample(id, kind):
    """One sample that stands, is broken or is wrong."""
    broken = {"attacked": "b", "broken_by": "pgd-20"} if kind == "broken" else {}
    clean = "b" if kind == "wrong" else "a"
    return SampleRow(
        **{"id": id, "file": None, "label": "a", "clean": clean, "confidence": 0.9},
        **{"attacked": None, "broken_by": None, **broken},
    )


def train_rows(*accuracies, n=100):
    """One validation for each (clean, robust) in percent."""
    common = {**BALL, "n": n, "attack": "pgd", "params": {"steps": 10}, "data": "digits", "lr": 0.1}
    return [
        TrainRow(step=10 * k, epoch=float(k), loss=1.0, clean_acc=c / 100, robust_acc=r / 100, **common)
        for k, (c, r) in enumerate(accuracies, 1)
    ]


def write_train(path, *accuracies, best=None, **more):
    """A finished training whose best validation is number `best` (from 1), the last one by default."""
    rows = train_rows(*accuracies)
    chosen = rows[(best or len(rows)) - 1]
    document = {
        **{name: _point(row) for name, row in (("best", chosen), ("last", rows[-1]))},
        "checkpoint": f"{path}/checkpoints/step-00000010",
        "alarms": [],
    }
    return write_run(path, "train", rows, document=document, **more)


def _point(row):
    return {"epoch": row.epoch, "clean_acc": row.clean_acc, "robust_acc": row.robust_acc}


def certify_rows(certified=50, standing=60, clean=90, n=100):
    """Rows of a certificate: the clean images, and one radius."""
    common = {**DATA, "method": "crown", "norm": "linf", "n": n, "hashes": HASHES}
    return [
        CertifyRow(eps=0.0, certified=clean, standing=clean, **common),
        CertifyRow(eps=0.1, certified=certified, standing=standing, attacks=["pgd-10"], **common),
    ]
