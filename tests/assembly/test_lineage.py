"""What a reference to a model says of its data is what the checkpoint says that it loads."""

import pytest
import torch

from robustcli.assembly.lineage import class_order, lineage, trained_on
from robustcli.config.sections import DataConfig
from robustcli.store.checkpoint import save_checkpoint


@pytest.fixture
def run(tmp_path):
    """A run whose best checkpoint, of step 20, and whose last one, of step 40, say different things."""
    root = tmp_path / "r/checkpoints"
    root.mkdir(parents=True)
    for step, tag, classes in ((20, "best", ["a", "b"]), (40, "last", ["b", "a"])):
        meta = {"classes": classes, "config": {"data": {"name": f"folder:{tag}"}}}
        save_checkpoint(root, step, {"model": {"w": torch.zeros(1)}}, meta, tags=(tag,))
    return tmp_path / "r"


@pytest.mark.parametrize(
    ("reference", "tag"),
    [
        ("run:{}", "best"),
        ("run:{}/checkpoints", "best"),
        ("run:{}/checkpoints/best", "best"),
        ("run:{}/checkpoints/last", "last"),
        ("run:{}/checkpoints/step-20", "best"),
        ("run:{}/checkpoints/step-40", "last"),
        ("run:{}/checkpoints/step-00000040", "last"),
        ("{}/checkpoints/step-00000040/model.safetensors", "last"),
        ("{}/checkpoints/step-00000041/model.safetensors", None),
        ("resnet18", None),
    ],
)
def test_a_reference_reads_the_checkpoint_that_it_loads(run, reference, tag):
    metas = lineage([reference.format(run)])
    orders = {"best": ("a", "b"), "last": ("b", "a"), None: ()}
    assert class_order(metas) == orders[tag]
    for name in ("best", "last"):
        assert trained_on(metas, DataConfig(name=f"folder:{name}"), "none") == (name == tag)
