"""Black boxes on the command line: what is refused, what is recorded, and what a report says."""

import os


def test_labels_only_refuses_gradients_before_any_work(cli):
    flags = ("--model", "mlp", "--data", "digits", "--n", "8", "--labels-only")
    for verb, attack in (
        ("eval", "pgd"),
        ("eval", "autoattack"),
        ("attack", "square"),
        ("eval", "apgd,noise"),
    ):
        refused = cli(verb, *flags, "--attack", attack)
        assert refused.code == 2, refused.err
        assert "E-BLACK-BOX" in refused.err and "noise" in refused.err
        assert not os.path.exists("runs")
    answer = cli("eval", *flags, "--attack", "noise", "--json").document
    assert answer["model"] == "mlp (labels only)"
    assert "softmax-output" not in str(answer["alarms"])


def test_training_refuses_a_model_of_labels(cli):
    refused = cli("train", "--data", "digits", "--smoke", "model.labels_only=true")
    assert (refused.code, "E-MODEL" in refused.err) == (2, True)
