"""Training: every loss, compiled against eager, low precision, memory that runs out, the same bits again."""

import pytest
import torch
from jobs_support import TINY, all_same
from torch import nn

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch
from robustcli.errors import Interrupted
from robustcli.evaluation.plan import Search
from robustcli.runtime.signals import StopFlag
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

BALL = Ball("linf", 0.1)
CPU = torch.device("cpu")


def network():
    torch.manual_seed(0)
    body = (
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
    )
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(72, 3))


def images(device, count=12):
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(count) % 3
    x[torch.arange(count), y] = 0.7 * x[torch.arange(count), y] + 0.3  # each class has a colour
    return x.to(device), y.to(device), torch.arange(count, device=device)


# ---- losses ------------------------------------------------------------------------------------------------


def loss_and_gradient(entry, device):
    """Of one batch in eval mode: no statistic moves."""
    net, (x, y, ids) = network().eval().to(device), images(device)
    batch = Batch(x, y, (x + 0.05).clamp(0, 1), ids, BALL, RowRandom(0, "start", ids), None)
    total = entry.fn(net, batch).total
    grads = torch.autograd.grad(total, list(net.parameters()), allow_unused=True)
    assert total.device == x.device
    return total.detach().cpu(), torch.cat([g.flatten().cpu() for g in grads if g is not None])


@pytest.mark.parametrize("entry", list(registry.objectives), ids=lambda entry: entry.name)
def test_every_objective_is_that_of_the_cpu(device, entry):
    (loss, grad), (wanted_loss, wanted) = (loss_and_gradient(entry, where) for where in (device, CPU))
    assert torch.allclose(loss, wanted_loss, rtol=1e-3, atol=1e-5)
    assert float((grad - wanted).norm()) <= 1e-2 * float(wanted.norm())


# ---- steps -------------------------------------------------------------------------------------------------


def after_steps(device, count=3, **more):
    """Weights and buffers after `count` steps against PGD-3, and the loss of each."""
    net, entry = network().to(device), registry.objectives.get("trades")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    step = MinMax(
        StepSettings(
            net,
            entry.fn,
            entry.facts.inner,
            lambda o, x, ball: pgd(o, x, ball, steps=3),
            BALL,
            optimizer,
            **more,
        )
    )
    x, y, ids = images(device)
    losses = [float(step(x, y, ids, seed=0, epoch=k).total) for k in range(count)]
    assert step.twin_note == "" and step.descent.forward.note == ""
    return {name: tensor.float().cpu() for name, tensor in net.state_dict().items()}, losses


def test_a_step_is_that_of_the_cpu(device):
    """Its draws are the same bits; what is left are sums in another order."""
    (got, _), (wanted, _) = (after_steps(where) for where in (device, CPU))
    assert all(torch.allclose(got[name], wanted[name], rtol=2e-2, atol=2e-3) for name in wanted)


def test_a_compiled_step_is_the_eager_one(device, compiler):
    compiled = after_steps(device, compiled=True, search=Search(compile=True))
    (got, losses), (wanted, wanted_losses) = compiled, after_steps(device)
    assert losses == pytest.approx(wanted_losses, rel=1e-2)
    assert all(torch.allclose(got[name], wanted[name], rtol=2e-2, atol=2e-3) for name in wanted)


def test_low_precision_learns(device):
    """fp16 with its scaler on CUDA; bf16 elsewhere, where there is no fp16 training."""
    dtype, enabled = torch.bfloat16, device.type == "cuda"
    if enabled:
        dtype = torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=enabled)
    state, losses = after_steps(device, 12, dtype=dtype, scaler=scaler, search=Search(torch.bfloat16))
    assert all(tensor.isfinite().all() for tensor in state.values()) and losses[-1] < losses[0]


def test_two_steps_with_one_seed_are_the_same_bits(device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(True)
    try:
        (one, _), (other, _) = (after_steps(device) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- whole trainings ---------------------------------------------------------------------------------------

EAGER = ("train.compile=off", "search.compile=off", "deterministic=true")


def test_a_resume_in_deterministic_mode_ends_with_the_same_bits(device, cli, tmp_path, monkeypatch):
    words = ("train", *TINY, *EAGER, "train.steps=8", "--device", device)
    assert cli(*words, "--out", "whole").code == 0
    asked, check = [], StopFlag.check

    def stopping(self):
        asked.append(1)
        if len(asked) == 17:
            raise Interrupted("stopped", signum=15)
        check(self)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(StopFlag, "check", stopping)
        assert cli(*words, "--out", "parts").code == 143
    assert cli(*words, "--out", "parts", "--resume").code == 0
    all_same(tmp_path / "parts", tmp_path / "whole")


def test_a_model_is_judged_alike_wherever_it_was_trained(device, cli):
    assert cli("train", *TINY, "train.steps=8", *EAGER, "--device", device, "--out", "run").code == 0
    found = []
    for where in (device, CPU):
        words = ("--n", 40, "search.compile=off", "search.precision=fp32", "--device", where, "--json")
        answer = cli("eval", "--model", "run:run", *words)
        assert answer.code == 0
        found.append(answer.document)
    for key in ("clean_acc", "robust_acc"):
        assert abs(found[0][key] - found[1][key]) <= 1 / 40 + 1e-6


# ---- memory ------------------------------------------------------------------------------------------------

#: A network that needs 32 MiB for each image of a pass; on a CPU it says that more than 8 are too many.
GREEDY = """
import torch
from torch import nn

class Greedy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(192, num_classes)

    def forward(self, x):
        if x.device.type == "cpu" and len(x) > 8:
            raise torch.OutOfMemoryError("no room")
        device = "cuda" if x.is_cuda else "meta"
        room = torch.empty(len(x) << 25, dtype=torch.uint8, device=device)
        return self.head(x.flatten(1)) + 0 * len(room)

def net(num_classes):
    return Greedy(num_classes)
"""


@pytest.fixture
def scarce(device):
    """On CUDA 400 MiB more than are taken now."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.empty_cache()
    everything = torch.cuda.get_device_properties(device).total_memory
    room = torch.cuda.memory_reserved(device) + (400 << 20)
    torch.cuda.set_per_process_memory_fraction(room / everything, device)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.cuda.empty_cache()


def test_memory_that_runs_out_halves_what_is_in_a_pass(device, scarce, cli, tmp_path):
    (tmp_path / "greedy.py").write_text(GREEDY)
    small = [word for word in TINY if not word.startswith("model.")]
    plugin = ("--plugin", "greedy.py:net", "--device", device, *EAGER)
    trained = cli("train", *small, "train.steps=2", *plugin, "train.val_n=8", "--out", "run")
    assert trained.code == 0 and "out of memory: going on with 8 images" in trained.err
    judged = cli("eval", *small, *plugin, "--n", 16, "--batch-size", 16, "--json")
    assert judged.code == 0 and "out of memory with 16 images" in judged.err and judged.document["n"] == 16


def test_the_largest_memory_is_told_of_a_step(device, cli):
    """bench tells it; on CUDA it is what was allocated there."""
    answer = cli("bench", *TINY, "--smoke", *EAGER, "--device", device, "--json")
    steps = [row for row in answer.document["steps"] if row["work"] == "training step"]
    assert answer.code == 0 and all(
        (row["peak_memory_mib"] is not None) == (device.type == "cuda") for row in steps
    )
