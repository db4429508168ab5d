"""Run directories made from records, as a verb would have left them: no model, no attack, no time."""

import json

from robustcli.records.alarm import Alarm
from robustcli.records.certify import CertificateRow, certify_rows
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardCurveRow, GuardRow
from robustcli.records.sample import SampleRow
from robustcli.records.train import TrainRow
from robustcli.records.transfer import TransferRow
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
    Identity.new(verb.partition(" ")[0]).write(path)
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


def training(path, epochs=4, **about):
    """A training that validated once an epoch; its best is the epoch before the last."""
    begun(path, "train", config={**CONFIG, "model": "small_cnn", "objective": {"name": "madry"}, **about})
    rows = [
        TrainRow(
            step=10 * epoch,
            epoch=float(epoch),
            lr=0.1,
            loss=2.0 / epoch,
            parts={"adversarial": 2.0 / epoch},
            norm="linf",
            eps=0.1,
            n=100,
            clean_acc=0.9,
            robust_acc=0.5 + 0.1 * (epoch == epochs - 1),
            attack="pgd",
            params={"steps": 10},
            data="digits",
            model="small_cnn",
            hashes={"data": "da7a"},
        )  # fmt: skip
        for epoch in range(1, epochs + 1)
    ]
    (path / "metrics.jsonl").write_text(lines(rows))
    best = {"epoch": float(epochs - 1), "clean_acc": 0.9, "robust_acc": 0.6}
    document = {"verb": "train", "best": best, "last": {**best, "robust_acc": 0.5, "epoch": float(epochs)}}
    ends = {"ended": "budget", "robust_overfitting": 0.1, "alarms": [], "steps": 10 * epochs}
    (path / "summary.json").write_text(json.dumps({**document, **ends}))
    return Dossier.read(path)


def certificate(path, proven=6, n=10, method="crown"):
    """A certification at two radii, of which the second is the threat."""
    begun(path, "certify")
    samples = [
        CertificateRow(
            id=i,
            file=None,
            label="cat",
            predicted="cat",
            clean="cat",
            radius=0.1 if i < proven else 0.0,
            status="verified" if i < proven else "unknown",
            stage=method,
            seconds=0.1,
        )  # fmt: skip
        for i in range(n)
    ]
    common = {"method": method, "norm": "linf", "data": "digits", "split": "test", "model": "small_cnn"}
    hashes = {"hashes": {"data": "da7a", "code": "c0de"}}
    rows = certify_rows(samples, [0.05, 0.1], ["pgd-10"], {**common, **hashes})
    (path / "metrics.jsonl").write_text(lines(rows))
    (path / "samples.jsonl").write_text(lines(samples))
    document = {"verb": "certify", "eps": 0.1, "norm": "linf", "acr": 0.06, "alarms": [], "reliability": "ok"}
    (path / "summary.json").write_text(json.dumps(document))
    return Dossier.read(path)


def transfer(path, names=("robust", "natural")):
    """A matrix in which every model breaks the others half of the time."""
    begun(path, "transfer")
    rows = [
        TransferRow(
            data="digits",
            split="test",
            attack="pgd-20",
            params=[{"name": "pgd"}],
            norm="linf",
            eps=0.1,
            seed=0,
            samples=20,
            n=10,
            source=source,
            target=target,
            source_reference=f"run:{source}",
            target_reference=f"run:{target}",
            k=10 if source == target else 5,
            gained=0,
            lost=0,
            hashes={"data": "da7a", "code": "c0de", "source": "s", "target": "t"},
        )  # fmt: skip
        for source in names
        for target in names
    ]
    (path / "transfer.jsonl").write_text(lines(rows))
    (path / "summary.json").write_text(json.dumps({"verb": "transfer", "alarms": [], "reliability": "ok"}))
    return Dossier.read(path)


def guarded(path, n=20):
    """An evaluation behind a detector that holds against an attack that does not know it."""
    whole = {"verb": "guard eval", "finding": "holds nothing", "verdict": "holds nothing"}
    evaluation(path, n, standing=8, model="guard:g", document=whole)
    row = GuardRow(
        data="digits", split="test", norm="linf", eps=0.1, seed=0, n=n, model="guard:g", members=1, fpr=0.05,
        hashes={"data": "da7a", "code": "c0de"},
        defences=[{"label": "density", "name": "density", "params": {}}],
        draws=1, clean_right=18, rejections=1, rejected_right=1, bare_right=18, bare_standing=8,
        oblivious_standing=16, adaptive_standing=8, gained=0, lost=0, attacks=["pgd-20"],
        adaptive_attacks=["pgd-20"],
    )  # fmt: skip
    curves = [
        GuardCurveRow(
            score="density",
            points=points,
            clean=n,
            wrong=10,
            caught=5,
            auroc=0.8,
            fpr=[0, 0.5, 1],
            tpr=[0, 0.8, 1],
        )  # fmt: skip
        for points in ("oblivious", "adaptive")
    ]
    (path / "guard.jsonl").write_text(lines([row, *curves]))
    return Dossier.read(path)


def fitted(path):
    """A fitted guard, without its weights."""
    begun(path, "guard fit", config={**CONFIG, "defences": [{"name": "density"}]})
    rates = {"clean_acc": 0.9, "clean_rejected": 0.05, "n": 100}
    found = {"verb": "guard fit", "defences": ["density"], "fpr": 0.05, "test": rates, "sha256": "5ea1"}
    detectors = [{"label": "density", "threshold": 1.5, "spread": 0.1}]
    calibration = {"source": "validation images", "n": 50, "alarms": 2}
    document = {**found, "detectors": detectors, "calibration": calibration}
    (path / "summary.json").write_text(json.dumps(document))
    return Dossier.read(path)


def demonstration(path):
    """A `demo` with its three runs inside."""
    begun(path, "demo")
    about = {"data": "digits", "split": "test", "seed": 0, "model": "small_cnn", "attack_success": 0.5}
    rates = {"n": 50, "norm": "linf", "eps": 0.1, "clean_acc": 0.9, "attacks": [{"name": "pgd-20"}]}
    common = {**about, **rates, "intervals": {}, "reliability": "ok", "alarms": [], "per_class": {}}
    models = {"natural": {**common, "robust_acc": 0.1}, "robust": {**common, "robust_acc": 0.6}}
    (path / "summary.json").write_text(json.dumps({"verb": "demo", "models": models}))
    for name in ("natural", "robust"):
        training(path / name)
    evaluation(path / "attack")
    return Dossier.read(path)


#: Kind of run -> how one is made.
KINDS = {
    "eval": evaluation,
    "train": training,
    "certify": certificate,
    "transfer": transfer,
    "guard eval": guarded,
    "guard fit": fitted,
    "demo": demonstration,
}
