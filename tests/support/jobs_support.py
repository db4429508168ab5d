"""A training job of half a second, and how two finished ones are compared."""

import torch

from robustcli.runtime.checkpoint import load_checkpoint, resolve_checkpoint

TINY = (
    "data.name=fake", "data.size=8", "model.name=small_cnn", "model.widths=[4]", "model.strides=[2]", "adversary.steps=2", "train.batch_size=16",
    "train.steps=24", "train.save_every=3", "train.validate_every=0.15", "train.val_n=16", "train.val_attack.steps=2", "train.optimizer.lr=0.05", "threads=1",
)  # fmt: skip


def final_state(path):
    """All tensors of the last checkpoint, the best step and the step."""
    snapshot = load_checkpoint(resolve_checkpoint(path / "checkpoints"))
    return {**snapshot.groups, "progress": {k: v for k, v in snapshot.meta["progress"].items() if k != "log_offset"}}


def same(got, expected):
    """Bitwise equal, momentum and progress included."""
    assert got["progress"] == expected["progress"]
    for group in ("model", "optimizer"):
        assert got[group].keys() == expected[group].keys()
        differing = [name for name in expected[group] if not torch.equal(got[group][name], expected[group][name])]
        assert not differing, differing[:5]
