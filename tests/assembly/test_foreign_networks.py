"""Twenty kinds of networks as users bring them: training, evaluation, attack, benchmark and Python API.

Each works or gets the one error that explains, and nothing of the user's object is changed.
"""

import copy
import warnings

import foreign
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import robustcli
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.setting import prepare
from robustcli.assembly.throughput import Bench
from robustcli.assembly.timing import FP32, Repeat
from robustcli.assembly.trainstep import make_step
from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.errors import ConfigError
from robustcli.evaluation.diagnosis import _slopes
from robustcli.jobs.measure import measure
from robustcli.models.contract.adapted import adapted
from robustcli.runtime.distributed import solo
from robustcli.terminal.console import Console
from robustcli.training.guarding import Guards
from robustcli.training.hooks.average import WeightCopy

warnings.filterwarnings("ignore", message=".*torch.jit.*")
COMPILED = pytest.param("compiled", marks=pytest.mark.slow)  # importing the compiler takes seconds
KINDS = (
    "lenet", "resnet", "heads", "recurrent", "vit", "one_logit", "dict_output", "in_place", "script", "half",
    "double", "parallel", "dropout", "own_norm", "weight_norm", "shared", "reentrant", "fixed", "hooked",
    COMPILED, "flat_logit", "attribute_output", "old_weight_norm", "distilled", "frozen", "quantised",
)  # fmt: skip
#: What cannot be trained, and a word of the error that says why.
UNTRAINABLE = {
    "half": "float16",
    "fixed": "no parameters",
    "frozen": "all 4 parameters are frozen",
    "quantised": "do not depend on a parameter",
    "distilled": "backbone.aux.bias, backbone.aux.weight, which eval mode uses",
}
REFUSED = {
    "integers": r"returns bool \[3, 2\].*before argmax",
    "probability": "one probability for each image.*leave the sigmoid out",
    "pair": r"returns a tuple \(float32 \[3, 2\], float32 \[3, 2\]\).*returns self.net\(x\)\[0\]",
    "mean_of_the_batch": r"returns float32 \[1, 2\].*keep the batch",
    "scores": r"a dict with 'scores'.*returns self.net\(x\)\['scores'\]",
    "sparse": r"returns float32 \[3, 2\] \(sparse_coo\).*to_dense",
    "transposed": r"for 2 images it returns float32 \[3, 2\].*keep the batch",
    "by_even_numbers": r"cannot take 3 images of 1x8x8: AssertionError: even only.*try it on 3 images",
}


def made(kind):
    torch.manual_seed(0)
    return getattr(foreign, kind)()


def images(n=12):
    """Bright and dark images, and their labels."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % 2
    return (torch.rand(n, 1, 8, 8, generator=generator) * 0.5 + 0.4 * y[:, None, None, None]), y


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    x, y = images(64)
    path = tmp_path_factory.mktemp("foreign") / "two.npz"
    pixels, labels = (255 * x).to(torch.uint8).numpy(), y.numpy()
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels[:16], y_test=labels[:16])
    return path


def words(data):
    return (
        f"data.name=npz:{data}", "data.val_fraction=0.25", "ball.eps=0.1", "adversary.steps=2", "threads=1",
        "train.batch_size=8", "eval.checks=0", "eval.n=8", "device=cpu", "train.val_n=8", "train.steps=3",
    )  # fmt: skip


@pytest.fixture(scope="module")
def setting(data):
    loaded = load_config(None, [parse_assignment(word, "test") for word in words(data)], environ={})
    return prepare(loaded.config, Console(quiet=True))


def source(setting, kind):
    return ModelSource(setting, plugin=f"{foreign.__file__}:{kind}")


def tensors_of(net):
    return [(name, value) for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)]


def snapshot(net):
    """All of a network that a user may look at afterwards."""
    return (
        {name: (value.clone(), value.dtype, value.stride()) for name, value in tensors_of(net)},
        [(id(value), value.requires_grad, value.grad) for value in net.parameters()],
        [id(value) for value in net.buffers()],
        [(id(module), module.training) for module in net.modules()],
        [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in net.modules()],
    )


def assert_same(before, after):
    assert before[1:] == after[1:] and before[0].keys() == after[0].keys()
    for name, (value, dtype, stride) in before[0].items():
        now, *kind = after[0][name]
        assert torch.equal(value, now) and kind == [dtype, stride], name


# ---- what the look leaves behind, and what it finds -------------------------------------------------------


def test_a_network_that_initialises_itself_is_as_before_the_look():
    net, (x, _) = made("first_mean"), images()
    before = {**vars(net)}
    assert adapted(net, x)[0] is net
    assert vars(net) == before and not net.done and net.shift.item() == 0 and net.kept == {}


@pytest.mark.parametrize("batch_size", [None, 4])
def test_evaluation_gives_it_back_and_says_that_it_changed(batch_size):
    net, (x, y) = made("first_mean"), images()
    for _ in range(2):  # the second call finds what the first found
        verdict = robustcli.evaluate(
            net, x, y, eps=0.05, attack="fgsm", batch_size=batch_size, checks=0, device="cpu"
        )
        assert "model-mutated" in [alarm.name for alarm in verdict.alarms]
        assert not net.done and float(net.shift) == 0
    robustcli.attack(net, x, y, name="fgsm", eps=0.05, device="cpu")
    assert not net.done and float(net.shift) == 0


@pytest.mark.parametrize("kind", ["squeezed", "squeezed_logit"])
def test_one_image_is_a_batch_of_a_network_that_squeezes(kind, setting):
    net, (x, y) = made(kind), images()
    usual = made("plain" if kind == "squeezed" else "one_logit")
    asked, _ = adapted(net, x)
    assert asked(x[:1]).shape == (1, 2) and torch.equal(asked(x)[:1].argmax(1), asked(x[:1]).argmax(1))
    for n in (1, 3):
        mine, theirs = (
            robustcli.attack(one, x[:n], y[:n], eps=0.05, steps=2, batch_size=1, device="cpu")
            for one in (net, usual)
        )
        assert torch.equal(mine, theirs)
    assert robustcli.evaluate(net, x[:1], y[:1], eps=0.05, attack="fgsm", batch_size=1, device="cpu").n == 1
    trained = source(setting, kind).to_train()
    assert trained.train()(x[:1]).shape == (1, 2)


def test_a_lazy_network_is_run_once_by_the_api():
    net, (x, y) = made("lazy"), images()
    verdict = robustcli.evaluate(net, x, y, eps=0.05, attack="fgsm", checks=0, device="cpu")
    assert verdict.reliability == "ok" and net[3].weight.shape == (2, 144)


def test_a_network_that_refuses_copies_is_timed_on_itself(setting):
    lines = []
    model = source(setting, "alone").to_train()
    before, modes = snapshot(model), [module.training for module in model.modules()]
    bench = Bench(setting, model, Repeat(least=1, budget=0, warm=0), warn=lines.append)
    assert bench.training_step(FP32)["images_per_second"] > 0 and bench.data(1)["images_per_second"] > 0
    assert bench.on(torch.device("cpu")) is None
    assert_same(before, snapshot(model))
    assert modes == [module.training for module in model.modules()]
    assert any("cannot be copied (RuntimeError)" in line for line in lines)


def test_an_average_of_a_network_that_refuses_copies_is_refused():
    with pytest.raises(ConfigError, match=r"cannot be copied \(RuntimeError: no copies\)") as caught:
        WeightCopy(made("alone"))
    assert caught.value.code == "E-MODEL"


# ---- the Python API ----------------------------------------------------------------------------------------


def calls_of_the_api(kind, checks):
    """Evaluate and attack; nothing of the network, of the images and of the random numbers is changed."""
    net, (x, y) = made(kind), images()
    before, pixels, rng = snapshot(net), x.clone(), torch.get_rng_state()
    verdict = robustcli.evaluate(net, x, y, eps=0.05, steps=2, checks=checks, device="cpu")
    x_adv = robustcli.attack(net, x, y, eps=0.05, steps=2, device="cpu")
    assert_same(before, snapshot(net))
    assert torch.equal(x, pixels) and torch.equal(rng, torch.get_rng_state())
    assert verdict.n == 12 and float((x_adv - x).abs().max()) <= 0.05 + 1e-6
    if kind not in ("quantised", "fixed"):
        assert not torch.equal(x_adv, x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_api_measures_it_and_changes_nothing(kind):
    calls_of_the_api(kind, checks=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_api_diagnoses_it_and_changes_nothing(kind):
    calls_of_the_api(kind, checks=4)


@pytest.mark.parametrize("kind", [COMPILED, "once", "reentrant", "in_place", "half"])
def test_a_look_at_its_gradients(kind):
    """Compiled code goes backward once, and re-entrant checkpointing bears no partial pass."""
    net, (x, y) = made(kind), images()
    with frozen(net):
        model = adapted(net, x)[0]
        logits, of_ce, of_margin = _slopes(model, x, Criterion(y))
    assert logits.shape == (12, 2) and float(of_ce.abs().sum()) > 0 and float(of_margin.abs().sum()) > 0


@pytest.mark.parametrize("kind", REFUSED)
def test_other_answers_get_the_one_error_that_shows_how_to_wrap(kind, setting):
    net, (x, y) = made(kind), images()
    before = snapshot(net)
    for call in (robustcli.evaluate, robustcli.attack):
        with pytest.raises(ConfigError, match=REFUSED[kind]) as caught:
            call(net, x, y, eps=0.05, device="cpu")
        assert caught.value.code in ("E-MODEL", "E-PLUGIN") and "data.size" not in str(caught.value)
    with pytest.raises(ConfigError, match=REFUSED[kind]):
        source(setting, kind).to_train()
    with pytest.raises(ConfigError, match=REFUSED[kind]):
        source(setting, kind).to_measure(Console(quiet=True))
    assert_same(before, snapshot(net))


@pytest.mark.parametrize("search", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["lenet", "in_place", "dict_output", "script", COMPILED, "double"])
def test_every_search_finds_what_the_plain_one_finds(kind, search, capsys):
    """A copy that cannot be made, or does not run, is done without, and the user is told once."""
    net, (x, _) = made(kind), images()
    y, said = adapted(net, x)[0].eval()(x).argmax(1), []
    asked = {"eps": 0.4, "checks": 0, "device": "cpu", "attack": ["pgd", "fgsm"]}
    verdict = robustcli.evaluate(net, x, y, search=search, say=said.append, **asked)
    plain = robustcli.evaluate(net, x, y, search="fp32", **asked)
    assert verdict.clean_acc == plain.clean_acc == 1 and abs(verdict.robust_acc - plain.robust_acc) <= 2 / 12
    assert len([line for line in said if line.startswith("searching on")]) <= 1
    assert "Traceback" not in capsys.readouterr().err  # torch.fx prints one of its own


# ---- what each kind is read as -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one_logit", "flat_logit"])
def test_one_logit_is_two_classes_with_the_binary_cross_entropy(kind):
    net, (x, y) = made(kind).eval(), images()
    logits, z = adapted(net, x)[0](x), net(x).reshape(-1)
    assert logits.shape == (12, 2) and torch.equal(logits.argmax(1), (z > 0).long())
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], z)
    torch.testing.assert_close(F.cross_entropy(logits, y), F.binary_cross_entropy_with_logits(z, y.float()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_answers_what_the_network_answers(kind):
    """A classifier that is one already is taken as it is."""
    net, (x, _) = made(kind).eval(), images()
    found, classes = adapted(net, x)
    with torch.no_grad():
        out, logits = (
            net(
                x.to(torch.float64 if kind == "double" else torch.float16)
                if kind in ("double", "half")
                else x.clone()
            ),
            found(x.clone()),
        )
    out = out["logits"] if isinstance(out, dict) else getattr(out, "logits", out)
    if kind in ("one_logit", "flat_logit"):
        out = torch.stack((-out.reshape(-1) / 2, out.reshape(-1) / 2), 1)
    torch.testing.assert_close(logits, out.float())
    assert classes == 2 and logits.dtype == torch.float32
    changed = {"one_logit", "flat_logit", "dict_output", "attribute_output", "in_place", "half", "double"}
    assert (found is net) == (kind not in changed)


def test_a_half_network_is_searched_where_its_own_gradient_would_be_zero():
    """In half precision the gradient of cross-entropy vanishes beyond a lead of 16."""
    whole, (x, _) = made("plain"), images()
    with torch.no_grad():
        whole[3].weight.mul_(300)
    half = copy.deepcopy(whole).half()
    net = adapted(half, x)[0]
    y = net(x).argmax(1)
    lead = net(x).diff(dim=1).abs().squeeze()
    assert float(lead.max()) > 20
    with frozen(net), frozen(whole):
        _, of_ce, of_margin = _slopes(net, x, Criterion(y))
        _, exact, exact_margin = _slopes(whole, x, Criterion(y))
    for found, expected in ((of_ce, exact), (of_margin, exact_margin)):
        cosine = F.cosine_similarity(found.flatten(1).double(), expected.flatten(1).double(), eps=1e-30)
        assert float(cosine.min()) > 0.99
    sizes = of_ce.flatten(1).double().norm(dim=1) / exact.flatten(1).double().norm(dim=1)
    assert torch.isfinite(of_ce).all() and float(sizes.min()) > 0.5 and float(sizes.max()) < 2


def test_a_recurrent_gradient_that_cudnn_refuses_is_asked_without_it(monkeypatch):
    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.cudnn = torch.backends.cudnn.enabled
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            if ctx.cudnn:
                raise RuntimeError("cudnn RNN backward can only be called in training mode")
            return grad

    net = foreign.Answer(made("recurrent"), Refusing.apply)
    x, y = images()
    assert robustcli.evaluate(net, x, y, eps=0.05, steps=2, checks=0, device="cpu").n == 12
    assert torch.backends.cudnn.enabled


# ---- training, evaluation, benchmark -----------------------------------------------------------------------


def test_a_normalisation_is_said_only_where_the_network_gets_it(setting):
    told = []
    source(setting, "alone").to_train(info=told.append)
    assert told == []
    ModelSource(setting).to_train(info=told.append)
    assert len(told) == 1 and told[0].startswith("normalisation: measured on ")


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_or_says_why_not(kind, setting):
    if kind in UNTRAINABLE:
        with pytest.raises(ConfigError, match=UNTRAINABLE[kind]) as caught:
            source(setting, kind).to_train(lambda text: None)
        assert caught.value.code == "E-MODEL"
        return
    said = []
    model = source(setting, kind).to_train(said.append)
    start = copy.deepcopy({name: value.clone() for name, value in model.state_dict().items()})
    step = make_step(setting, model, solo(), Guards(0, 2, None, "off"), lambda: None, said.append)
    x, y = images(8)
    for number in range(3):
        terms = step(x, y, torch.arange(8), seed=0, epoch=number, progress=0.1)
    assert torch.isfinite(terms.total)
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, start[name])]
    assert any(name.startswith("backbone.") for name in moved)
    notes = [line for line in said if "channels-last" in line or "auxiliary heads" in line]
    assert len(notes) == (kind in ("lenet", "parallel", "in_place", "heads"))
    assert not step.twin_note or kind in ("script", "compiled")


@pytest.mark.parametrize("kind", KINDS[:20])
def test_it_is_evaluated_and_timed(kind, setting):
    lines = []
    console = Console(quiet=True)
    console.warn = lines.append
    model = source(setting, kind).to_measure(console)
    result, rows = measure(setting, model, console, lambda: None)
    assert result.n == 8 and rows
    if kind in UNTRAINABLE:
        return
    bench = Bench(setting, source(setting, kind).to_train(lines.append), Repeat(least=1, budget=0, warm=0))
    for row in (bench.attack_step(FP32, True), bench.attack_step(FP32, False), bench.training_step(FP32)):
        assert row["images_per_second"] > 0
    assert len(lines) == len(set(lines))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *REFUSED])
def test_the_command_line_takes_it_or_says_why_not(kind, cli, data):
    for verb in ("train", "eval", "attack", "bench"):
        more = ("--smoke",) if verb == "bench" else ()
        answer = cli(verb, "--plugin", f"{foreign.__file__}:{kind}", *words(data), *more)
        refused = kind in REFUSED or (kind in UNTRAINABLE and verb in ("train", "bench"))
        assert answer.code == (2 if refused else 0), (verb, answer.err)
        code = "E-PLUGIN" if kind == "by_even_numbers" else "E-MODEL"  # its own code raises
        assert answer.err.count(f"error[{code}]") == refused


@pytest.mark.parametrize(
    ("kind", "verb"),
    [("lenet", "train"), ("lenet", "bench"), pytest.param("heads", "train", marks=pytest.mark.slow)],
)
def test_the_commonest_kinds_on_the_command_line(kind, verb, cli, data):
    more = ("--smoke",) if verb == "bench" else ()
    answer = cli(verb, "--plugin", f"{foreign.__file__}:{kind}", *words(data), *more)
    assert answer.code == 0, answer.err
    told = "channels-last" if kind == "lenet" else "auxiliary heads get no loss"
    assert answer.err.count(told) == 1
