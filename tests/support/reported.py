"""Run directories made from records, as a verb would have left them: no model, no attack, no time."""

import json

from robustcli.records.alarm import Alarm
from robustcli.records.eval import EvalRow
from robustcli.records.sample import SampleRow
from robustcli.reporting.dossier import Dossier
from robustcli.store.identity import Identity

LEVELS = ("ok", "note", "suspect", "invalid")
ALARM = Alarm("not-converged", "suspect", "9 of 64 images fall only after step 30", "use more steps")
CONFIG = {"name": "mine", "seed": 0, "data": {"name": "digits"}, "ball": {"norm": "linf", "eps": 0.1}}
ENVIRONMENT = {"robustcli": "0.1.0", "code": "c0de", "torch": "2.9", "gpus": [], "cuda": None}


def lines(rows):
    return "".join(json.dumps(row.to_json()) + "\n" for row in rows)


def begun(path, verb="eval", state="done", code=0, config=CONFIG):
    """A directory with identity, status, configuration and environment."""
    path.mkdir(parents=True)
    Identity.new(verb.partition(" ")[0] if verb != "guard eval" else "eval").write(path)
    status = {"schema_version": 1, "state": state, "code": code, "step": None}
    (path / "status.json").write_text(json.dumps({**status, "last_checkpoint": None, "resumable": False}))
    (path / "config.resolved.yaml").write_text(json.dumps(config))  # JSON is YAML
    (path / "env.json").write_text(json.dumps(ENVIRONMENT))
    return path


def evaluation(
    path, n=20, *, right=None, standing=None, classes=("cat", "dog"), model="small_cnn", attack="pgd",
    alarms=(), state="done", code=0, eps=0.1, norm="linf", document=None, config=None,
):  # fmt: skip
    """An evaluation of n samples, of which the first `right` are right and the first `standing` stand."""
    right = n - n // 10 if right is None else right
    standing = n // 2 if standing is None else standing
    spec = {"name": model, "weights": None, "plugin": None}
    tree = {**CONFIG, "ball": {"norm": norm, "eps": eps}, "model": spec, **(config or {})}
    begun(path, "eval", state, code, tree)
    common = {
        "norm": norm, "eps": eps, "clean_correct": right, "n": n, "data": "digits", "split": "test",
        "model": model, "hashes": {"model": "m0del", "data": "da7a", "code": "c0de"},
    }  # fmt: skip
    labels = [classes[i % len(classes)] for i in range(n)]

    def per_class(k):
        return {name: [labels[:k].count(name), labels.count(name)] for name in dict.fromkeys(labels)}

    rows = [
        EvalRow(kind="clean", correct=right, per_class=per_class(right), **common),
        EvalRow(kind="attack", correct=standing, attack=attack, label=f"{attack}-20", seconds=2.0, **common),
        EvalRow(kind="worst", correct=standing, per_class=per_class(standing), **common),
    ]
    other = classes[-1] + "x"
    samples = [
        SampleRow(
            id=i,
            file=None,
            label=label,
            clean=label if i < right else other,
            confidence=0.9,
            attacked=other if standing <= i < right else None,
            broken_by=f"{attack}-20" if standing <= i < right else None,
        )  # fmt: skip
        for i, label in enumerate(labels)
    ]
    (path / "metrics.jsonl").write_text(lines(rows))
    (path / "samples.jsonl").write_text(lines(samples))
    found = [alarm.to_json() for alarm in alarms]
    whole = {
        "verb": "eval", "ok": True, "n": n, "clean_acc": right / n, "robust_acc": standing / n,
        "model": model, "alarms": found, "attacks": [{"name": f"{attack}-20"}], "classes": list(classes),
        "reliability": max((alarm.level for alarm in alarms), default="ok", key=LEVELS.index),
    }  # fmt: skip
    if state == "done" and code == 0:
        (path / "summary.json").write_text(json.dumps({**whole, **(document or {})}))
    return Dossier.read(path)
