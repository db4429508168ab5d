"""The model card: a `model-index` that the Hub reads, and sections that say what was and was not shown."""

import json

import pytest
import yaml
from written_runs import CONFIG, HASHES, certify_rows, eval_rows, write_eval, write_run, write_train

from robustcli.claims.cyclonedx import cyclonedx
from robustcli.claims.model_card import model_card
from robustcli.reporting.dossier import Dossier

jsonschema = pytest.importorskip("jsonschema", reason="checks a document against a schema")
#: huggingface/hub-docs, modelcard.md: what is required there, and what a reader of it takes.
TEXT = {"type": "string", "minLength": 1}
MODEL_INDEX = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "results"],
        "additionalProperties": False,
        "properties": {
            "name": TEXT,
            "results": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["task", "dataset", "metrics"],
                    "additionalProperties": False,
                    "properties": {
                        "task": {"type": "object", "required": ["type"], "properties": {"type": TEXT}},
                        "dataset": {
                            "type": "object",
                            "required": ["type", "name"],
                            "additionalProperties": False,
                            "properties": {
                                **dict.fromkeys(("type", "name", "config", "split", "revision"), TEXT),
                                "args": {"type": "object"},
                            },
                        },
                        "metrics": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "required": ["type", "value"],
                                "additionalProperties": False,
                                "properties": {
                                    "type": TEXT,
                                    "value": {"type": "number", "minimum": 0, "maximum": 1},
                                    "name": TEXT,
                                    "args": {"type": "object"},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
SECTIONS = (
    "Intended use", "Trained on", "Threat model", "Results", "Reliability", "Limits", "Not tested",
    "Environment", "Hashes (SHA-256)", "How to reproduce", "Citations",
)  # fmt: skip


def parts(run):
    """(the front matter, section -> its text) of the card of a run."""
    text = model_card(Dossier.read(run))
    assert text.startswith("---\n")
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    sections = {part.partition("\n")[0]: part for part in body.split("\n## ")}
    return yaml.safe_load(front), sections


def metrics(front):
    """(type, norm) -> the metric."""
    jsonschema.validate(front["model-index"], MODEL_INDEX)
    results = front["model-index"][0]["results"]
    return {(m["type"], m["args"].get("norm")): m for result in results for m in result["metrics"]}


def test_what_an_evaluation_claims(tmp_path):
    front, sections = parts(
        write_eval(tmp_path / "e", 90, 40, classes={"a": (50, 20, 50), "b": (40, 20, 50)})
    )
    found = metrics(front)
    assert found["accuracy", None]["value"] == 0.9 and found["robust_accuracy", "linf"]["value"] == 0.4
    assert found["attack_success_rate", "linf"]["args"]["n"] == 90
    args = found["robust_accuracy", "linf"]["args"]
    assert (args["eps"], args["n"], args["k"], args["attack"]) == (0.1, 100, 40, "pgd-20")
    assert args["interval"] == list(eval_rows()[2].robust.exact)
    assert len(front["model-index"][0]["results"]) == 2  # what is clean and what is attacked stand apart
    assert tuple(sections)[1:] == SECTIONS
    assert "40.0 % [30.9, 49.8] of 100" in sections["Results"] and "| b " in sections["Results"]
    assert HASHES["model"] in sections["Hashes (SHA-256)"]
    assert f"robustcli eval {tmp_path}/e/config.resolved.yaml" in sections["How to reproduce"]
    assert "arXiv:1706.06083" in sections["Citations"]
    assert "white box" in sections["Threat model"] and "every pixel by at most" in sections["Threat model"]
    assert "Other norms: l2, l1 and l0" in sections["Not tested"] and "by queries" in sections["Not tested"]


def test_an_attack_that_sees_scores_is_tested(tmp_path):
    _, sections = parts(write_eval(tmp_path / "e", attack="square"))
    assert "by queries" not in sections["Not tested"] and "white box" not in sections["Threat model"]


@pytest.mark.parametrize("more", [{"reliability": "invalid"}, {"state": "failed", "code": 5}])
def test_what_is_no_claim_has_no_model_index(tmp_path, more):
    front, sections = parts(write_eval(tmp_path / "e", **more))
    assert "model-index" not in front and "metrics" not in front
    assert "**No claim:**" in next(iter(sections.values()))


def test_a_part_of_an_evaluation_is_no_claim(tmp_path):
    run = write_eval(tmp_path / "e")
    document = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**document, "partial": {"shards": 3, "of": 8}}))
    front, sections = parts(run)
    assert "model-index" not in front and "partial 3/8 shards" in next(iter(sections.values()))
    assert not cyclonedx(Dossier.read(run))["components"][0]["modelCard"]["quantitativeAnalysis"][
        "performanceMetrics"
    ]


def test_a_targeted_attack_is_named_beside_its_number(tmp_path):
    config = {**CONFIG, "eval": {**CONFIG["eval"], "target": "random"}}
    front, sections = parts(write_eval(tmp_path / "e", config=config))
    attacked = front["model-index"][0]["results"][1]["metrics"][0]
    assert attacked["args"]["attack"] == "pgd-20, target random" and attacked["name"].endswith(
        ", target random)"
    )
    assert "pgd-20, target random" in sections["Results"]


def test_a_suspect_number_says_so(tmp_path):
    alarm = {"name": "plateau", "level": "suspect", "evidence": "3 of 64", "remedy": "more steps"}
    front, sections = parts(write_eval(tmp_path / "e", reliability="suspect", alarms=[alarm]))
    assert "model-index" in front and "> **Suspect:**" in next(iter(sections.values()))
    assert "plateau: 3 of 64; more steps" in sections["Reliability"]


def test_a_training_claims_validation_numbers_of_its_best_checkpoint(tmp_path):
    front, sections = parts(write_train(tmp_path / "t", (80, 30), (90, 50), (95, 40), best=2))
    found = metrics(front)
    assert found["accuracy", None]["value"] == 0.9 and found["robust_accuracy", "linf"]["value"] == 0.5
    assert front["model-index"][0]["results"][0]["dataset"]["split"] == "validation"
    assert "validation numbers" in sections["Limits"]
    assert "`madry` against `pgd` with 7 steps, linf 25.5/255 (0.1)" in sections["Trained on"]


def test_a_certificate_names_its_method(tmp_path):
    front, _ = parts(write_run(tmp_path / "c", "certify", certify_rows(), document={"reliability": "ok"}))
    found = metrics(front)
    assert found["certified_accuracy", "linf"]["args"]["method"] == "crown"
    assert found["robust_accuracy", "linf"]["value"] == 0.6 and found["accuracy", None]["value"] == 0.9


def test_the_training_of_an_evaluated_run_is_followed(tmp_path):
    write_train(tmp_path / "t", (90, 50))
    config = {**CONFIG, "model": {"name": f"run:{tmp_path}/t"}, "objective": {"name": "natural"}}
    _, sections = parts(write_eval(tmp_path / "e", config=config))
    assert "`madry`" in sections["Trained on"] and str(tmp_path / "t") in sections["Trained on"]
    _, sections = parts(write_eval(tmp_path / "f", config={**config, "model": {"name": "run:gone"}}))
    assert "Not known" in sections["Trained on"] and "run:gone" in sections["Trained on"]


def test_a_run_without_accuracy_has_a_card(tmp_path):
    front, sections = parts(write_run(tmp_path / "b", "bench", document={}))
    assert "model-index" not in front and "measured no accuracy" in sections["Results"]


def test_names_from_outside_break_nothing(tmp_path):
    name = "a: b\n---\n# x `y` | z"
    config = {**CONFIG, "name": name, "model": {"name": "run:`x`\n---"}}
    rows = {"a|b\n": (90, 40, 100)}
    front, sections = parts(write_eval(tmp_path / "e", config=config, data=name, classes=rows))
    assert front["model-index"][0]["name"] == name and tuple(sections)[1:] == SECTIONS
