"""The page and the markdown of every kind of run, from records alone."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from reported import ALARM, KINDS, begun, certificate, demonstration, evaluation, guarded, training

from robustcli.claims.provenance import Provenance
from robustcli.jobs.evidence.freshness import checks_of
from robustcli.reporting.cells import digest_name
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.page.blocks import Text
from robustcli.reporting.page.compose import Material, report_of
from robustcli.reporting.page.doubt import MEANINGS
from robustcli.reporting.page.html import html_of
from robustcli.reporting.page.limits import untested
from robustcli.reporting.page.markdown import LIMIT, markdown_of
from robustcli.reporting.page.origin import command_of, flags_of
from robustcli.reporting.page.threat import MITIGATIONS, TECHNIQUES, attacker, techniques
from robustcli.reporting.page.verdict import verdict_of

UNMET = {"metric": "robust_acc", "passed": False, "value": 0.5}
#: Kind of run -> what its verdict must say.
SAYS = {
    "eval": "right on 90.0 of 100 images as they are, and still on 50.0 of 100 when an attacker may change"
    " every pixel by at most 25.5/255, 10 % of its range",
    "train": "of epoch 3, is right on 90.0 of 100 validation images",
    "certify": "For 60.0 of 100 images it is proven by crown",
    "transfer": "break `natural` most: 50.0 of 100",
    "guard eval": "The guard holds nothing: adaptive 40.0 % where the bare model has 40.0 %",
    "guard fit": "rejects 5.0 of 100 clean test images; its thresholds were set for 5",
    "demo": "the robust model keeps 60.0 of 100 images, the natural one 10.0",
}


def page(*runs):
    return html_of(report_of(runs, Material(), "made"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_has_its_page(tmp_path, kind):
    run = KINDS[kind](tmp_path / "run")
    verdict = verdict_of(run)
    assert SAYS[kind] in verdict.sentence and 2 <= len(verdict.numbers) <= 3
    assert verdict.light == "good" and verdict.word in ("NO ALARM", "DONE")
    text, comment = page(run), markdown_of(report_of([run], Material(), "made"))
    for title in (
        "Threat model",
        "Reliability",
        "Limits of the claim",
        "Not tested",
        "Origin of the numbers",
    ):
        assert title in text and title in comment
    assert verdict.word in text and verdict.word in comment and len(comment) < LIMIT
    assert "robustcli " in text and "config.resolved.yaml" in text or kind == "demo"


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_needs_nothing_from_elsewhere(tmp_path, kind):
    text = page(KINDS[kind](tmp_path / "run"))
    assert "default-src 'none'" in text and "<script" not in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)|url\(|@import|https?://""", text)


def test_the_parts_of_a_demo_have_chapters(tmp_path):
    text = page(demonstration(tmp_path / "run"))
    for name in ("natural", "robust", "attack"):
        assert re.search(rf'<h2 class="run" id="r1-p\d-top">{name}</h2>', text)


def test_each_alarm_of_the_documentation_is_explained(tmp_path):
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "alarms.md").read_text()
    named = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.M))
    assert named and named == set(MEANINGS)


@pytest.mark.parametrize(
    ("changes", "word", "light"),
    [
        ({"alarms": [ALARM]}, "SUSPECT", "care"),
        ({"document": {"reliability": "invalid"}}, "INVALID", "bad"),
        ({"document": {"partial": {"shards": 1, "of": 3}}}, "PARTIAL", "care"),
        ({"document": {"gate": [UNMET]}}, "BELOW THE THRESHOLD", "bad"),
        ({"document": {"notes": ["clean accuracy is not surely above chance."]}}, "LOOK", "care"),
        ({"state": "failed", "code": 5}, "FAILED", "bad"),
        ({"state": "running", "code": None}, "NO RESULT", "none"),
    ],
)  # fmt: skip
def test_the_word_of_the_verdict(tmp_path, changes, word, light):
    verdict = verdict_of(evaluation(tmp_path / "run", **changes))
    assert (verdict.word, verdict.light) == (word, light)


def test_without_its_rows_a_run_has_no_verdict(tmp_path):
    path = evaluation(tmp_path / "run").path
    (path / "metrics.jsonl").unlink()
    assert (verdict_of(Dossier.read(path)).word, verdict_of(Dossier.read(path)).light) == (
        "NO RESULT",
        "none",
    )
    bench = begun(tmp_path / "bench", "bench")
    (bench / "summary.json").write_text('{"verb": "bench"}')
    assert "No attack was tried here" in page(Dossier.read(bench))
    assert "Evade AI Model" not in page(Dossier.read(bench))
    assert verdict_of(Dossier.read(bench)).word == "DONE"


def test_stale_goes_before_suspect(tmp_path):
    verdict = verdict_of(evaluation(tmp_path / "run", alarms=[ALARM]), ["code: other"])
    assert verdict.word == "STALE" and verdict.light == "bad" and "code: other" in verdict.trust


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, "a wrong class to an image it was right on"),
        ("random", "a wrong class that was drawn for each image"),
        ("least-likely", "the class that it holds for the least likely"),
        (3, "the class `3`"),
    ],
)
def test_what_the_attacker_wants(tmp_path, target, words):
    run = evaluation(tmp_path / "run")
    aimed = replace(run, config={**run.config, "eval": {"target": target}})
    assert any("want any wrong class" in line for line in untested(aimed)) == (target is not None)
    assert words in dict(attacker(aimed))["Goal"]


def test_the_command_names_the_users_code_and_finds_its_configuration(tmp_path, monkeypatch):
    plugin = {"file": "net.py", "factory": "mine", "sha256": "a" * 64}
    there = evaluation(tmp_path / "-run", document={"run": "-run"})
    there = replace(there, config={**there.config, "model": {"name": "plugin:mine", "plugin": plugin}})
    comment = markdown_of(report_of([there], Material(), "made"))
    assert "the file with the SHA-256 `aaaa" in comment
    moved = f"robustcli eval --plugin net.py:mine {tmp_path}/-run/config.resolved.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert command_of(there) == moved == command_of(replace(there, path=Path("sub/../-run")))
    here = command_of(replace(there, path=Path("-run")))
    assert here == "robustcli eval --plugin net.py:mine ./-run/config.resolved.yaml"
    assert Provenance.of(there).command == moved


def test_the_story_of_a_guard_is_repeated_by_its_own_command(tmp_path):
    story = demonstration(tmp_path / "run")
    assert command_of(story) == "robustcli demo"
    document = {"alarms": {"adversarial": 181, "clean": 18}, "before": {"path": "g"}}
    inside = replace(story, parts={"guard": story.parts["robust"]}, document=document)
    assert command_of(inside) == "robustcli demo guard" and not inside.notes and not inside.alarms
    update = replace(story.parts["robust"], verb="guard update", document=document)
    assert command_of(update).startswith("robustcli guard update EVIDENCE.db g ")
    assert any("EVIDENCE.db" in flag for flag in flags_of(update))
    assert command_of(replace(update, verb="train", config={})) == "robustcli train"


def test_what_is_gone_is_not_called_the_same(tmp_path):
    run = evaluation(tmp_path / "run")
    (run.path / "samples.jsonl").write_bytes((run.path / "samples.jsonl").read_bytes()[:20])
    (run.path / "config.resolved.yaml").unlink()
    found = {check.what: check.state for check in checks_of(Dossier.read(run.path))}
    assert (found["records"], found["config"]) == ("unknown", "changed")


def test_a_hash_that_is_cut_says_so():
    assert digest_name("ids", "a" * 16) == "ids (first 16 digits)" and digest_name("code", "a" * 64) == "code"


def test_what_was_not_tested_follows_from_the_record(tmp_path):
    def has(run, start):
        return any(line.startswith(start) for line in untested(run))

    pgd, square = evaluation(tmp_path / "pgd"), evaluation(tmp_path / "square", attack="square", norm="l2")
    assert has(pgd, "Other norms: l2, l1 and l0.") and has(square, "Other norms: linf, l1 and l0.")
    assert has(pgd, "Black-box attacks") and not has(square, "Black-box attacks")
    assert has(pgd, "Proof:") and not has(certificate(tmp_path / "proven"), "Proof:")
    assert has(pgd, "Changes without a ball")
    assert not has(guarded(tmp_path / "guard"), "Attacks that adapt")
    assert has(training(tmp_path / "train"), "The test split")


def test_techniques_follow_from_the_attacks(tmp_path):
    assert techniques(evaluation(tmp_path / "pgd")) == ["AML.T0015", "AML.T0043.000"]
    assert techniques(evaluation(tmp_path / "square", attack="square")) == ["AML.T0015", "AML.T0043.001"]
    assert techniques(KINDS["transfer"](tmp_path / "t")) == ["AML.T0015", "AML.T0043.002"]
    trained = training(tmp_path / "trained")
    text = page(evaluation(tmp_path / "run", model=f"run:{trained.path}"))
    assert "AML.T0043.000 Craft Adversarial Data: White-Box Optimization" in text
    assert "AML.M0003 Model Hardening" in text and "AML.M0015 Adversarial Input Detection" in page(
        guarded(tmp_path / "guard")
    )
    assert len(TECHNIQUES) == 4 and len(MITIGATIONS) == 2
    natural = training(tmp_path / "natural", objective={"name": "natural"})
    assert techniques(natural) == ["AML.T0015", "AML.T0043.000"]  # it was validated under an attack
    assert "AML.M0003" not in page(natural) and "AML.M0003" in page(trained)
    assert "AML.M0003" not in page(evaluation(tmp_path / "file", model="net.safetensors"))
    assert techniques(demonstration(tmp_path / "demo")) == ["AML.T0015", "AML.T0043.000"]


@pytest.mark.parametrize(
    ("attack", "flag"),
    [
        ("mine.py:hit@0123456789ab", "--attack-plugin mine.py:hit"),
        ("transfer:0123456789ab", "--surrogate MODEL, whose hash begins with 0123456789ab"),
    ],
)
def test_flags_that_no_configuration_holds_are_said(tmp_path, attack, flag):
    run = evaluation(tmp_path / "run", attack=attack)
    assert f"<code>{flag}</code>" in page(run)
    assert ("AML.T0043.002" in techniques(run)) == attack.startswith("transfer")
    assert "Add what no configuration holds" not in page(evaluation(tmp_path / "plain"))


def test_no_number_of_a_failed_run_is_a_verdict(tmp_path):
    text = page(evaluation(tmp_path / "run", state="failed", code=5))
    assert "FAILED" in text and 'class="value"' not in text and 'class="verdict good"' not in text


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "`" * 3,
        "a" * 200,
        "](javascript:x)",
        "|",
        "\x1b[31m",
        "&amp;",
        "${7*7}{{7*7}}",
    ],
)
def test_hostile_names_stay_text(tmp_path, name):
    run = evaluation(tmp_path / "run", classes=(name, "dog"), model=name, attack=name.replace("`", "") or "x")
    text, comment = page(run), markdown_of(report_of([run], Material(), name))
    assert "<script" not in text and "<script" not in re.sub(r"`[^`\n]*`", "", comment)
    assert "\x1b" not in text and "\x1b" not in comment and ">49<" not in text


def test_a_comment_has_room_for_what_counts(tmp_path):
    classes = [f"class number {i} with a long name" for i in range(900)]
    comment = markdown_of(report_of([evaluation(tmp_path / "run", 900, classes=classes)], Material(), "made"))
    assert len(comment) <= LIMIT and "robust accuracy" in comment and "Sections left out here" in comment


def test_text_is_escaped_once():
    from robustcli.reporting.page.html import _inline

    assert str(_inline("a & `b < c`")) == "a &amp; <code>b &lt; c</code>"
    assert Text("x").text == "x"
