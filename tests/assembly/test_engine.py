"""From a configuration to the engine of a training: what is watched, and what does not go together."""

import pytest

from robustcli import registry
from robustcli.assembly.attacks import planned_passes
from robustcli.assembly.cost import passes_per_image
from robustcli.assembly.engine import make_engine
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.setting import prepare
from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.errors import UsageError
from robustcli.registry import attacks
from robustcli.runtime.distributed import solo
from robustcli.terminal.console import Console
from robustcli.training.hook import Hook

BASE = ("data={name: fake, size: 8}", "model=mlp", "train.steps=2", "train.batch_size=8", "device=cpu")


@pytest.fixture
def one_step_attack():
    """An attack of one step, without a parameter `steps`, that is not named fgsm."""

    @attacks.register(
        "sidestep",
        kind="fixed",
        norms=("linf", "l2", "l1"),
        needs="gradient",
        precision="bf16",
        deterministic=True,
        passes=lambda given, classes, norm: 3,
        use="tests",
        starts_at_clean=True,
    )
    def sidestep(oracle, x, ball):
        """x_adv = x + eps sign(g)."""
        return oracle.result(ball.project(x, x + ball.eps * oracle.gradient(x).grad.sign()))

    yield "sidestep"
    del attacks._entries["sidestep"]


def setting_of(*settings):
    config = load_config(None, [parse_assignment(text, "test") for text in (*BASE, *settings)]).config
    return prepare(config, Console(quiet=True))


def engine_of(*settings, warn=lambda text: None):
    setting = setting_of(*settings)
    return make_engine(setting, ModelSource(setting).to_train(), solo(), lambda: None, warn)


def stages(engine):
    return [call.label for call in engine.plan.validations[0].attacks]


def test_an_attack_of_one_step_is_watched_for_a_collapse_whatever_its_name(one_step_attack):
    engine = engine_of(f"adversary={one_step_attack}")
    assert stages(engine) == ["fgsm", "pgd-10"]
    assert engine.guards.overfitting == "stop", "it cannot take one step more"


@pytest.mark.parametrize(
    ("settings", "watched"),
    [
        (("adversary=fgsm",), True),
        (("adversary={name: pgd, steps: 1}",), True),
        (("adversary={name: pgd, steps: 2}",), False),
        (("adversary=noise",), False),
        (("train.step=free",), True),
        (("adversary=fgsm", "train.overfitting=off"), False),
    ],
)
def test_only_one_step_training_is_watched(settings, watched):
    assert stages(engine_of(*settings)) == [*(["fgsm"] if watched else []), "pgd-10"]


@pytest.mark.parametrize(
    ("settings", "looked_at"),
    [
        (("adversary={name: pgd, steps: 1}",), True),
        (("train.step=free", "train.batch_size=64"), True),
        (("adversary={name: pgd, steps: 3}",), False),
        (("adversary={name: pgd, steps: 3}", "regularizers=[nuclear]"), True),
        (("adversary=fgsm", "train.overfitting=off"), False),
        (("objective=natural",), False),
    ],
)
def test_where_gradients_may_be_masked_a_look_goes_deeper_for_a_twentieth_of_the_passes(settings, looked_at):
    setting, plan = setting_of(*settings), engine_of(*settings).plan
    assert (plan.look is not None) == looked_at
    if looked_at:
        assert [call.label for call in plan.look.plans[0].attacks] == ["pgd-50", "square"]
        dearest = 64 * (1 + planned_passes(plan.look.plans[0].attacks, setting.classes, "linf"))
        one = plan.validate_every * plan.batch_size * passes_per_image(setting)
        assert (plan.look.every - 1) * one < 20 * dearest <= plan.look.every * one


def test_a_validation_of_one_step_is_told_that_it_sees_no_collapse(one_step_attack):
    said = []
    engine_of("adversary=fgsm", f"train.val_attack={one_step_attack}", warn=said.append)
    assert any("train.val_attack makes one step" in line for line in said)


def test_an_attack_that_starts_at_the_clean_image_does_not_go_with_trades(one_step_attack):
    with pytest.raises(UsageError, match="the KL of trades is flat at the clean image"):
        engine_of("objective=trades", f"adversary={one_step_attack}")


@pytest.mark.parametrize("hooks", ["[ema, swa]", "[swa, awp, ema]"])
def test_two_hooks_that_publish_weights_do_not_go_together(hooks):
    with pytest.raises(UsageError, match="ema and swa both publish an average of the weights"):
        engine_of(f"train.hooks={hooks}")


def test_every_hook_that_averages_says_that_it_publishes_the_weights():
    """The order of the hooks follows from the method, the check above from the registration."""
    model = ModelSource(setting_of()).to_train()
    for entry in registry.hooks:
        averages = type(entry.fn(model)).averaged is not Hook.averaged
        assert averages == (entry.facts.publishes == "weights"), entry.name


def test_an_attack_on_grey_images_is_refused_batch_statistics():
    """And is watched for a collapse, which a step more may cure."""
    with pytest.raises(UsageError, match="class_start asks about grey images, which are all alike") as caught:
        engine_of("adversary=class_start", "train.attack_bn=train")
    assert caught.value.hint == "train.attack_bn: eval"
    engine = engine_of("adversary=class_start")
    assert stages(engine)[0] == "fgsm" and engine.guards.overfitting != "stop"
