"""What stands in front of a classifier that stays as it is: training, checkpoint, refusals."""

import pytest
import torch

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.twin import SearchTwin
from robustcli.errors import CheckpointError, ConfigError
from robustcli.models.build import build_model
from robustcli.models.fill import fill
from robustcli.models.front import put_in_front
from robustcli.models.info import ModelInfo
from robustcli.models.meta import model_from_meta, model_meta
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

INFO = ModelInfo(3, 1, 6, (0.4,), (0.3,))
SMALL = {"depth": 3, "width": 4}
X = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(8)


def classifier():
    model = build_model("small_cnn", {"widths": [4], "strides": [2]}, INFO, seed=3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.linspace(-0.1, 0.1, len(module.running_mean)))
    return model


def fronted():
    model = classifier()
    put_in_front(model, "denoiser", SMALL, seed=0)
    return model


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def step_of(model, name="denoise", hooks=()):
    entry = registry.objectives.get(name)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    made = [registry.hooks.get(hook).fn(model) for hook in hooks]
    return MinMax(
        StepSettings(model, entry.fn, None, lambda o, x, b: x, Ball("l2", 0.5), optimizer, hooks=made)
    )


@pytest.mark.parametrize("objective", ["denoise", "gaussian", "natural"])
@pytest.mark.parametrize("hooks", [(), ("awp", "ema")])
def test_training_moves_the_front_and_nothing_behind_it(objective, hooks):
    model, bare = fronted(), state(classifier())
    step = step_of(model, objective, hooks)
    for epoch in range(2):
        step(X, IDS % 3, IDS, seed=0, epoch=epoch)
    after = state(model)
    for name, tensor in bare.items():
        assert torch.equal(after[name], tensor), name
    moved = {name for name in after if name.startswith("front.") and "num_batches" not in name}
    begun = state(fronted())
    assert moved and any(not torch.equal(after[name], begun[name]) for name in moved)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.training for m in norms] == [False, True] or [m.training for m in norms] == [True, False]
    for hook in step.descent.hooks:
        average = hook.averaged()
        if average is not None:
            kept = average.state_dict()
            assert all(torch.equal(kept[name], tensor) for name, tensor in bare.items())


def test_a_fresh_front_changes_no_answer_and_the_bare_classifier_stays_within_reach():
    model, alone = fronted().eval(), classifier().eval()
    assert torch.equal(model(X), alone(X))
    with torch.no_grad():
        model.front.residual[-1].bias.fill_(0.2)
        assert not torch.equal(model(X), alone(X)) and torch.equal(model.bare(X), alone(X))


def test_a_search_twin_folds_both_parts():
    model = fronted().eval()
    with torch.no_grad():
        model.front.residual[-1].weight.normal_(0, 0.1)
    twin = SearchTwin(model)
    assert len(twin.folded) == 2 and twin.parity(X) == ""


def test_a_checkpoint_says_what_stands_in_front():
    model = fronted()
    with torch.no_grad():
        model.front.residual[-1].weight.normal_(0, 0.3)
    meta = model_meta(model, ("a", "b", "c"))
    opened = model_from_meta(meta)
    fill(opened, model.state_dict(), "here", strict_dtype=True)
    assert torch.equal(opened.eval()(X), model.eval()(X))
    assert meta["model"]["front"] == {"name": "denoiser", "params": {**SMALL, "noise": 0.25}}
    assert not any(p.requires_grad for p in opened.backbone.parameters())
    assert "front" not in model_meta(classifier(), ("a", "b", "c"))["model"]


@pytest.mark.parametrize(
    ("front", "what"),
    [
        (5, "no name with parameters"),
        ({"name": "denoiser"}, "no name with parameters"),
        ({"name": "from_later", "params": {}}, "cannot be built"),
        ({"name": "denoiser", "params": {"depth": 1}}, "cannot be built"),
        ({"name": "jpeg", "params": {}}, "cannot be built"),
        ({"name": "denoiser", "params": {**SMALL, "width": 5}}, "another network"),
        (None, "another network"),
    ],
)
def test_a_damaged_description_is_refused(front, what):
    meta = model_meta(fronted(), ("a", "b", "c"))
    meta["model"]["front"] = front
    with pytest.raises(CheckpointError, match=what):
        model_from_meta(meta)


@pytest.mark.parametrize("name", ["jpeg", "median", "energy", "reconstruction", "nothing_known"])
def test_what_cannot_be_trained_in_front_is_named(name):
    with pytest.raises(ConfigError, match=name) as caught:
        put_in_front(classifier(), name, {}, seed=0)
    assert "train.front" in str(caught.value.where) or "train.front" in str(caught.value)


def test_a_second_front_is_refused_and_the_same_one_is_kept():
    model = fronted()
    with torch.no_grad():
        model.front.residual[-1].bias.fill_(0.2)
    before = state(model)
    put_in_front(model, "denoiser", SMALL, seed=9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ConfigError, match="another denoiser"):
        put_in_front(model, "denoiser", {"depth": 4, "width": 4}, seed=0)
