"""`attack` fits one patch on images that are not measured; a run's patch is shown to another model."""

import json

import pytest
import torch
from safetensors.torch import save_file

from robustcli.attacks.patch import NAME, read_patch
from robustcli.data.png import read_png
from robustcli.store.inventory import holds_nothing_else

QUICK = (
    "model={name: small_cnn, widths: [6], strides: [2]}",
    "eval.checks=0",
    "threads=1",
    "search.precision=fp32",
)
FIT = ("attack.patch.steps=2", "attack.patch.n=16", "attack.patch.area=0.2")
SHOWN = "attacks=[{name: patch, file: fitted, draws: 2}, {name: patch, file: noise, draws: 2}]"


def test_a_patch_is_fitted_stored_and_shown_to_another_model(cli, tmp_path):
    words = ("--data", "digits", *QUICK, "--n", "12", "--json")
    first = cli("attack", *words, SHOWN, *FIT, "--out", "fit")
    assert first.code == 0, first.err
    assert [attack["name"] for attack in first.document["attacks"]] == ["patch-fitted", "patch-noise"]
    assert "a square of at most 20.0% of the image" in first.err and first.document["norm"] == "none"
    run, stored = tmp_path / "fit", read_patch(str(tmp_path / "fit"))
    assert holds_nothing_else(run, "attack"), "store/inventory.py knows all files"
    assert torch.equal((stored.patch * 255).round().to(torch.uint8), read_png(run / "patch.png"))
    again = cli("attack", *words, SHOWN, *FIT, "--out", "again", "eval.batch_size=5")
    assert again.code == 0 and torch.equal(read_patch("again").patch, stored.patch)
    verdicts = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert verdicts == [
        json.loads(line) for line in (tmp_path / "again" / "samples.jsonl").read_text().splitlines()
    ]
    other = cli("eval", *words, "seed=1", "--attack", f"patch:fit/{NAME}:draws=2")
    assert other.code == 0 and [one["name"] for one in other.document["attacks"]] == ["patch-fitted"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((SHOWN,), 2, "attack.patch"),
        (("attack.patch.area=0.1",), 2, "attack.patch"),
        ((SHOWN, *FIT, "--target", "random"), 2, "one patch for all images"),
        ((SHOWN, *FIT, "attack.patch.dark=0.9", "attack.patch.bright=0.2"), 2, "below"),
        ((SHOWN, *FIT, "--labels-only"), 2, "a patch is fitted by gradients, and a black box has none"),
        (("--attack", "patch:no/such/file"), 3, "no/such/file"),
        (("--attack", "pgd:steps=1,patch:colour.safetensors"), 3, "images have 1 channels, the patch has 3"),
        (("--attack", "pgd:steps=1,patch:oblong.safetensors"), 3, "the file holds no patch"),
        (("--attack", "pgd:steps=1,patch:empty.safetensors"), 3, "the file holds no patch"),
        (("--attack", "pgd:steps=1,patch:wide.safetensors"), 3, "outside their ranges: 2, "),
    ],
)
def test_what_cannot_be_fitted_or_read_is_refused_before_a_run_is_made(cli, tmp_path, words, code, told):
    threat = torch.tensor([0.1, 20, 0.8])
    stored = {"colour": (3, 3, 3), "oblong": (1, 3, 5), "empty": (1, 0, 0)}
    for name, shape in stored.items():
        save_file({"patch": torch.rand(shape), "threat": threat}, tmp_path / f"{name}.safetensors")
    save_file({"patch": torch.rand(1, 3, 3), "threat": 20 * threat}, tmp_path / "wide.safetensors")
    answer = cli("attack", "--data", "digits", *QUICK, "--n", "4", "--json", *words)
    assert answer.code == code and told in answer.document["error"]["message"] + answer.err
    assert not (tmp_path / "runs").exists()
