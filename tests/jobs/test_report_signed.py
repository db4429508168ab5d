"""`report --sign` and `--verify`: one byte of weights, report or records is found, and named."""

import hashlib
import json
import shutil
import sys

import pytest
from written_runs import CONFIG, samples, write_eval, write_run, write_train

from robustcli.claims.signing import sign, signer_of
from robustcli.claims.sums import sums_of, weights_of
from robustcli.errors import UsageError
from robustcli.reporting.dossier import Dossier

#: A configuration whose model lies in no file and whose data lie nowhere, so that neither is read again.
GONE = {**CONFIG, "model": {"name": "small_cnn"}, "data": {"name": "npz:gone.npz"}}


def keys(folder):
    """A new pair key, key.pub in a folder."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = form.Encoding.PEM, form.NoEncryption()
    (folder / "key").write_bytes(key.private_bytes(pem, form.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(pem, form.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A training with its checkpoints, and an evaluation of it with a report, both signed, and the keys."""
    pytest.importorskip("model_signing", reason="the extra `sign`", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("signed")
    keys(folder)
    train = write_train(folder / "t", (90, 50), best=1)
    for step in (10, 20):
        checkpoint = train / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        for name in ("manifest.json", "model.safetensors", "optimizer.safetensors"):
            (checkpoint / name).write_text(f"{step} {name}")
    for tag, step in (("best", 10), ("last", 20)):
        (train / "checkpoints" / tag).write_text(f"step-{step:08d}\n")
    config = {**CONFIG, "model": {"name": f"run:{train}"}}
    run = write_eval(folder / "e", samples=samples(40, 50, 10), config=config)
    (run / "shards").mkdir()
    (run / "shards" / "0000.jsonl").write_text("{}")
    for name in ("report.html", "model_card.md", "bom.cdx.json"):
        (run / name).write_text(f"what stands in {name}")
    for signed in (train, run):
        sign(Dossier.read(signed), signer_of(folder / "key"))
    return folder


@pytest.fixture
def mine(cli, signed, tmp_path):
    """A copy that may be changed, in the working directory."""
    shutil.copytree(signed, tmp_path, dirs_exist_ok=True)
    return tmp_path


def verify(cli, run, key="key.pub"):
    """(the answer of the command, what its document says of the run)."""
    answer = cli("report", "--verify", run, "--public-key", key, "--json")
    return answer, answer.document["verified"][0]


def weights(folder):
    return folder / "t" / "checkpoints" / "step-00000010" / "model.safetensors"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("run", ["t", "e"])
def test_what_is_as_it_was_signed(cli, mine, run):
    answer, found = verify(cli, run)
    assert (answer.code, found["holds"], found["changed"]) == (0, True, []) and found["signed"] > 7
    shown = cli("report", "--verify", run, "--public-key", "key.pub")
    assert shown.out == f"signature of {run} is good: {found['signed']} files are as they were signed\n"


@pytest.mark.parametrize(
    ("run", "file"),
    [
        *(("t", name) for name in ("summary.json", "metrics.jsonl", "checkpoints/best")),
        *(("e", name) for name in ("report.html", "summary.json", "samples.jsonl", "model_card.md")),
        *(("e", name) for name in ("bom.cdx.json", "run.json", "config.resolved.yaml")),
    ],
)
def test_one_byte_of_a_file_is_found_and_named(cli, mine, run, file):
    flip(mine / run / file)
    answer, found = verify(cli, run)
    assert (answer.code, found["changed"], found["missing"], found["holds"]) == (1, [file], [], False)
    assert f"gate not met: signature of {run} is broken: changed {file}" in answer.err


def test_one_byte_of_the_weights_is_found_in_their_run_and_in_that_which_measured_them(cli, mine):
    flip(weights(mine))
    name = weights(mine).relative_to(mine / "t").as_posix()
    assert verify(cli, "t")[1]["changed"] == [name]
    assert verify(cli, "e")[1]["changed"] == [f"../t/{name}"]


def test_what_is_missing_and_what_was_added(cli, mine):
    (mine / "e" / "samples.jsonl").unlink()
    (mine / "e" / "distances.jsonl").write_text("{}\n")
    (mine / "e" / "notes.txt").write_text("mine")
    found = verify(cli, "e")[1]
    assert (found["missing"], found["added"]) == (["samples.jsonl"], ["distances.jsonl"])


@pytest.mark.parametrize(
    ("run", "file"), [("t", "sweep.jsonl"), ("e", "guard.jsonl"), ("e", "robust/run.json")]
)
def test_a_record_of_another_verb_was_added_too(cli, mine, run, file):
    """Reports, claims and gates read it, whichever verb wrote the run."""
    (mine / run / file).parent.mkdir(exist_ok=True)
    (mine / run / file).write_text("{}\n")
    assert verify(cli, run)[1]["added"] == [file]


def test_a_link_is_not_what_was_signed(cli, mine):
    samples = mine / "e" / "samples.jsonl"
    samples.rename(mine / "same.jsonl")
    samples.symlink_to(mine / "same.jsonl")
    (mine / "e" / "distances.jsonl").symlink_to(mine / "same.jsonl")
    (mine / "e" / "plots").symlink_to(mine)
    found = verify(cli, "e")[1]
    assert not found["holds"] and found["missing"] == ["samples.jsonl"]
    assert found["added"] == ["distances.jsonl", "plots"]
    with pytest.raises(UsageError, match="a link cannot be signed"):
        sums_of(Dossier.read(mine / "e"))


@pytest.mark.parametrize("model", [{"name": "run:gone"}, {"name": "small_cnn", "weights": "gone.npz"}])
def test_a_run_is_not_signed_without_its_weights(cli, mine, model):
    write_eval(mine / "new", config={**GONE, "model": model}, data="npz:gone.npz")
    answer = cli("report", "new", "--sign", "--private-key", "key")
    assert answer.code == 2 and "are not found from here" in answer.err
    assert not (mine / "new" / "SHA256SUMS.sig").exists()


@pytest.mark.parametrize("file", ["SHA256SUMS", "SHA256SUMS.sig"])
def test_a_list_or_a_signature_that_was_changed(cli, mine, file):
    flip(mine / "e" / file)
    answer, found = verify(cli, "e")
    assert answer.code == 1 and "SHA256SUMS" in found["broken"]


def test_a_list_that_was_made_to_match_is_not_the_signed_one(cli, mine):
    report, sums = mine / "e" / "report.html", mine / "e" / "SHA256SUMS"
    before = hashlib.sha256(report.read_bytes()).hexdigest()
    flip(report)
    sums.write_text(sums.read_text().replace(before, hashlib.sha256(report.read_bytes()).hexdigest()))
    assert verify(cli, "e")[1]["broken"] == "SHA256SUMS is not the one that was signed"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"verificationMaterial": {}}', "\x00"])
def test_anything_for_a_signature(cli, mine, text):
    (mine / "e" / "SHA256SUMS.sig").write_text(text)
    answer, found = verify(cli, "e")
    assert answer.code == 1 and "no signature" in found["broken"]


def test_another_key(cli, mine):
    (mine / "other").mkdir()
    keys(mine / "other")
    assert verify(cli, "e", "other/key.pub")[1]["broken"] == "another key has signed"


def test_the_list_is_one_that_sha256sum_reads(mine):
    for line in (mine / "e" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((mine / "e" / name).read_bytes()).hexdigest() == digest


def test_the_command_writes_the_report_and_signs_it(cli, mine):
    write_eval(mine / "new", config=GONE, data="npz:gone.npz", classes={"a": (90, 40, 100)})
    answer = cli("report", "new", "--sign", "--private-key", "key", "--json")
    assert (answer.code, answer.document["signature"]) == (0, "new/SHA256SUMS.sig")
    listed = (mine / "new" / "SHA256SUMS").read_text()
    assert all(f"  {name}\n" in listed for name in ("report.html", "model_card.md", "bom.cdx.json"))
    assert verify(cli, "new")[1]["holds"]


def test_pruning_and_locks_break_no_signature(cli, mine):
    shutil.rmtree(mine / "e" / "shards")
    (mine / "e" / ".lock").write_text("{}")
    cli("runs", "prune", ".", "--keep-best", "--yes")
    assert verify(cli, "e")[1]["holds"] and verify(cli, "t")[1]["holds"]


def test_what_no_longer_matches_its_records_is_not_signed(cli, mine):
    run = write_eval(mine / "new", config=GONE, data="npz:gone.npz")
    document = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**document, "robust_acc": 1.0}))
    answer = cli("report", "new", "--sign", "--private-key", "key")
    assert answer.code == 9 and "error[E-POLICY]: the records no longer match" in answer.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("e", "--sign"), "--sign needs a key"),
        (("e", "t", "--sign", "--private-key", "key"), "one run"),
        (("e", "--sign", "--private-key", "key", "--out", "x"), "one run"),
        (("e", "--sign", "--private-key", "nothing"), "no elliptic-curve private key"),
        (("e", "--sign", "--private-key", "key.pub"), "no elliptic-curve private key"),
        (("--verify", "e"), "needs a run and a key"),
        (("--verify", "--public-key", "key.pub"), "needs a run and a key"),
        (("--verify", "e", "--public-key", "key"), "no elliptic-curve public key"),
        (("--verify", "plain", "--public-key", "key.pub"), "not signed"),
    ],
)
def test_requests_that_cannot_be_met(cli, mine, words, told):
    write_eval(mine / "plain")
    answer = cli("report", *words)
    assert answer.code == 2 and told in answer.err
    assert "PRIVATE KEY-" not in answer.err and not (mine / "x").exists()


def test_a_missing_extra_is_said_before_anything_is_written(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    write_eval(tmp_path / "e")
    answer = cli("report", "e", "--sign", "--private-key", "key")
    assert answer.code == 6 and 'pip install "robustcli[sign]"' in answer.err
    assert not (tmp_path / "e" / "report.html").exists()


def test_weights_of_a_guard_and_of_a_file_are_signed_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    guard = write_run(tmp_path / "g", "guard")
    for name in ("guard.json", "weights.safetensors"):
        (guard / name).write_text("{}")
    (tmp_path / "w.npz").write_text("x")
    for model, names in (
        ({"name": "guard:g"}, ["guard.json", "weights.safetensors"]),
        ({"name": "small_cnn", "weights": "w.npz"}, ["w.npz"]),
        ({"name": "small_cnn"}, []),
    ):
        run = write_eval(tmp_path / "e", config={**CONFIG, "model": model})
        assert [path.name for path in weights_of(Dossier.read(run))] == names
