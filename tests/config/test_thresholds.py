"""The section `thresholds`: every mistake at its line, and keys with a dot in them."""

import pytest

from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.config.thresholds import parse_quantity
from robustcli.errors import ConfigError

WRONG = {
    "robst_acc: {min: 0.8}": "thresholds.robst_acc: unknown metric 'robst_acc'; did you mean 'robust_acc'?",
    "robust_acc@linf:0.1: {min: 0.3, mod: x}": "robust_acc@linf:0.1.mod: unknown key; did you mean 'mode'?",
    "robust_acc@linf:8: {min: 0.3}": "eps=8.0 on the [0,1] scale; did you mean 8/255?",
    "robust_acc@l3:0.1: {min: 0.3}": "expected @NORM:EPS such as @linf:8/255, got '@l3:0.1'",
    "robust_acc@linf:0: {min: 0.3}": "a radius must be > 0",
    "clean_acc@linf:8/255: {min: 0.3}": "clean_acc takes no radius; write clean_acc",
    "certified_acc: {min: 0.3}": "say at which radius: certified_acc@linf:2/255",
    "robust_acc: {max: 0.3}": "thresholds.robust_acc.max: robust_acc is judged by min: higher is better",
    "attack_success: {min: 0.3}": "attack_success is judged by max: lower is better",
    "clean_acc: {min: 45}": "thresholds.clean_acc.min: must be <= 1, got 45",
    "clean_acc: {}": "thresholds.clean_acc: says no limit; write {min: ...}",
    "clean_acc: {min: 0.5, mode: proof}": "did you mean 'prove'?",
    "clean_acc: {min: 0.5, baseline: runs/x}": "only clean_acc_drop and robust_acc_drop have a baseline",
    "clean_acc: 0.5": "thresholds.clean_acc: expected a mapping, got 0.5",
}


def test_all_mistakes_at_once_each_at_its_line(tmp_path):
    path = tmp_path / "gate.yaml"
    first = [line for line in WRONG if not line.startswith("clean_acc:")]
    for part in (first, *([line] for line in WRONG if line not in first)):
        path.write_text("thresholds:\n" + "".join(f"  {line}\n" for line in part))
        with pytest.raises(ConfigError) as caught:
            load_config(path, environ={}, bind=False)
        problems = caught.value.problems
        assert len(problems) == len(part)
        for number, (line, problem) in enumerate(zip(part, problems, strict=True), start=2):
            assert problem.startswith(f"{path}:{number}: thresholds.") and WRONG[line] in problem


def test_numbers_are_ours_and_origins_are_lines(tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text("thresholds:\n  robust_acc@linf:0.1: {min: 1/4}\n  attack_success: {max: 1e-2}\n")
    change = parse_assignment("thresholds.robust_acc@l2:0.5.min=8/255", "command line")
    loaded = load_config(path, [change], environ={}, bind=False)
    found = {name: each.min for name, each in loaded.config.thresholds.items()}
    assert found == {"robust_acc@linf:0.1": 0.25, "attack_success": None, "robust_acc@l2:0.5": 8 / 255}
    assert loaded.origins["thresholds.robust_acc@linf:0.1.min"] == f"{path}:2"
    assert loaded.origins["thresholds.robust_acc@l2:0.5.min"] == "command line"
    whole = parse_assignment("thresholds.robust_acc@l2:0.5={min: 0.5}", "command line")
    assert (
        load_config(None, [whole], environ={}, bind=False).config.thresholds["robust_acc@l2:0.5"].min == 0.5
    )


def test_a_quantity_is_written_as_it_is_read():
    for text in ("clean_acc", "robust_acc@linf:8/255", "certified_acc@l2:0.5"):
        assert parse_quantity(text).name == text
