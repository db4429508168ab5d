"""The bill of materials: valid by the published schema, and the same for the same records."""

import json
from pathlib import Path

import pytest
from written_runs import (
    CONFIG,
    DATA,
    HASHES,
    certify_rows,
    eval_rows,
    write_eval,
    write_run,
    write_train,
)

from robustcli.claims.cyclonedx import cyclonedx
from robustcli.records.transfer import TransferRow
from robustcli.reporting.dossier import Dossier

ALARM = {"name": "plateau", "level": "invalid", "evidence": "3 of 64", "remedy": "more steps"}


def pair(source, target):
    return TransferRow(
        **{**DATA, "attack": "pgd-20", "params": [{"name": "pgd", "steps": 20}], "norm": "linf", "eps": 0.1},
        **{"samples": 60, "n": 50, "source": source, "target": target, "k": 5, "gained": 0, "lost": 2},
        source_reference=f"run:{source}",
        target_reference=f"run:{target}",
        hashes={**HASHES, "target": {"a": "1", "b": "2"}[target] * 64},
    )


def transfer(path):
    rows = [pair(source, target) for source in "ab" for target in "ab"]
    run = write_run(path, "transfer", [], document={"reliability": "ok", "references": ["run:a", "run:b"]})
    (run / "transfer.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return run


MADE = {
    "eval": lambda path: write_eval(path, classes={"a": (90, 40, 100)}),
    "invalid": lambda path: write_eval(path, reliability="invalid", alarms=[ALARM]),
    "failed": lambda path: write_eval(path, state="failed", code=5),
    "train": lambda path: write_train(path, (90, 50)),
    "certify": lambda path: write_run(path, "certify", certify_rows(), document={"reliability": "ok"}),
    "transfer": transfer,
    "bench": lambda path: write_run(path, "bench", document={}, config={}),
    "names": lambda path: write_eval(path, data="a\n#&?x", config={**CONFIG, "name": "ä \x00 b"}),
}


@pytest.mark.parametrize("kind", MADE)
def test_it_is_valid_by_the_published_schema(kind, tmp_path):
    validation = pytest.importorskip("cyclonedx.validation.json", reason="the schema of CycloneDX")
    from cyclonedx.schema import SchemaVersion

    document = cyclonedx(Dossier.read(MADE[kind](tmp_path / "run")))
    problem = validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    assert problem is None, problem
    references = [component["bom-ref"] for component in document["components"]]
    assert len(set(references)) == len(references)
    for entry in document["dependencies"]:
        assert {entry["ref"], *entry["dependsOn"]} <= set(references)


def metrics(component):
    found = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    return {(metric["type"], metric["slice"]): metric for metric in found}


def test_the_metrics_of_an_evaluation_and_their_intervals(tmp_path):
    document = cyclonedx(Dossier.read(MADE["eval"](tmp_path / "e")))
    model = document["components"][0]
    assert (model["type"], model["name"]) == ("machine-learning-model", "mine")
    assert model["hashes"] == [{"alg": "SHA-256", "content": HASHES["model"]}]
    found = metrics(model)
    robust = found["robust_accuracy@linf:0.1", "digits/test; pgd-20; n=100"]
    low, high = eval_rows()[2].robust.exact
    assert float(robust["value"]) == 0.4
    bounds = robust["confidenceInterval"]
    assert (float(bounds["lowerBound"]), float(bounds["upperBound"])) == (low, high)
    assert ("accuracy", "digits/test; class a; n=100") in found
    data = document["components"][1]
    assert (data["type"], data["hashes"][0]["content"]) == ("data", HASHES["data"])
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": data["bom-ref"]}]


@pytest.mark.parametrize("kind", ["invalid", "failed"])
def test_what_is_no_claim_has_no_metric_and_says_why(kind, tmp_path):
    model = cyclonedx(Dossier.read(MADE[kind](tmp_path / "run")))["components"][0]
    assert metrics(model) == {}
    assert model["modelCard"]["considerations"]["technicalLimitations"][0].startswith("No claim:")


def test_each_model_of_a_transfer_has_its_own_hash(tmp_path):
    document = cyclonedx(Dossier.read(transfer(tmp_path / "t")))
    models = [part for part in document["components"] if part["type"] == "machine-learning-model"]
    assert {model["name"]: model["hashes"][0]["content"][0] for model in models} == {"a": "1", "b": "2"}


def test_a_fitted_guard_is_known_by_its_manifest(tmp_path):
    run = write_run(tmp_path / "g", "guard", document={"verb": "guard fit", "sha256": "9" * 64})
    model = cyclonedx(Dossier.read(run))["components"][0]
    assert model["hashes"] == [{"alg": "SHA-256", "content": "9" * 64}] and metrics(model) == {}


def test_the_same_records_give_the_same_document_and_others_another(tmp_path):
    run = MADE["eval"](tmp_path / "e")
    first, again = (cyclonedx(Dossier.read(run)) for _ in range(2))
    assert json.dumps(first) == json.dumps(again)
    (run / "samples.jsonl").write_text("")
    assert cyclonedx(Dossier.read(run))["serialNumber"] != first["serialNumber"]


def test_the_files_that_the_claims_rest_on_are_named_with_their_hashes(tmp_path):
    import hashlib

    run: Path = MADE["eval"](tmp_path / "e")
    found = {entry["url"]: entry for entry in cyclonedx(Dossier.read(run))["externalReferences"]}
    digest = hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest()
    assert found["metrics.jsonl"]["hashes"] == [{"alg": "SHA-256", "content": digest}]
