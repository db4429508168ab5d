"""The pretended device catches what it says it catches."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from pretended import OnDevice, pretended_cuda
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CUDA = torch.device("cuda")


@pytest.fixture
def x(device):
    return torch.arange(6.0, device=CUDA).reshape(2, 3)


def on_cpu():
    return torch.ones(2, 3)


def causes(count):
    return {what for _, what in count}


# ---- places ------------------------------------------------------------------------------------------------

MISPLACED = {
    "sum": lambda x: x + on_cpu(),
    "sum from the CPU": lambda x: on_cpu() + x,
    "in place": lambda x: on_cpu().add_(x),
    "product": lambda x: x @ on_cpu().T,
    "layer": lambda x: nn.Linear(3, 2)(x),
    "loss": lambda x: nn.functional.cross_entropy(x, torch.tensor([0, 1])),
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.int64)),
    "where": lambda x: torch.where(x > 1, x, on_cpu()),
    "cat": lambda x: torch.cat([x, on_cpu()]),
    "stack of numbers": lambda x: torch.stack([x.sum(), torch.zeros(())]),
    "index": lambda x: on_cpu()[torch.zeros(1, dtype=torch.int64, device=CUDA)],
    "values by index": lambda x: x.__setitem__(torch.zeros(2, dtype=torch.int64, device=CUDA), on_cpu()),
    "foreach": lambda x: torch._foreach_add([x], [on_cpu()]),
    "generator": lambda x: torch.randn(2, device=CUDA, generator=torch.Generator()),
    "generator in place": lambda x: x.uniform_(generator=torch.Generator()),
    "generator of the device": lambda x: torch.randperm(4, generator=torch.Generator(CUDA)),
    "draw": lambda x: torch.bernoulli(x / 6, generator=torch.Generator()),
    "ordinal": lambda x: x.to("cuda:1"),
    "pinning": lambda x: x.pin_memory(),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_what_is_on_the_wrong_side_fails(x, name):
    with pytest.raises(RuntimeError, match=r"device|cpu|cuda|CUDA"):
        MISPLACED[name](x)


def test_numpy_needs_a_copy(x):
    for call in (lambda: x.numpy(), lambda: np.asarray(x), lambda: x.detach().numpy()):
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            call()
    assert x.cpu().numpy().shape == (2, 3)


def test_what_torch_allows_is_allowed(x):
    """Numbers of the CPU beside tensors of the device, an index from the CPU, copies between both."""
    assert (x * torch.tensor(2.0))[torch.tensor([1])].device.type == "cuda"
    x[0] = torch.zeros(3)
    x[x > 3] = 0.0
    assert torch.zeros(2, 3).copy_(x).tolist() == [[0, 0, 0], [3, 0, 0]]
    assert nn.functional.one_hot(torch.arange(2, device=CUDA), 3).device.type == "cuda"


def test_everything_made_there_lies_there(device):
    generator = torch.Generator(CUDA).manual_seed(0)
    made = [torch.zeros(2, device="cuda"), torch.tensor([1.0], device=CUDA), torch.arange(3, device="cuda:0")]
    made += [torch.rand(2, device=CUDA, generator=generator), torch.ones(2).cuda(), torch.eye(2).to(made[0])]
    made += [made[0].new_ones(3), torch.zeros_like(made[0]), torch.empty_like(torch.ones(2), device="cuda")]
    made += [copy.deepcopy(made[0]), pickle.loads(pickle.dumps(made[0])), made[1][0], made[1].view(1, 1)]
    assert all(isinstance(one, OnDevice) and one.is_cuda and str(one.device) == "cuda:0" for one in made)


def test_a_model_moves_and_learns_there_as_on_the_cpu(device):
    def run(place):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).to(place)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        x, y = torch.linspace(0, 1, 64).reshape(4, 1, 4, 4).to(place), torch.arange(4).remainder(3).to(place)
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            (loss + net(x).max(1).values.mean()).backward()
            optimizer.step()
        assert all(p.grad.device.type == place.type == p.device.type for p in net.parameters())
        return [p.detach().cpu() for p in (*net.parameters(), *net.buffers())]

    for one, other in zip(run(CUDA), run(torch.device("cpu")), strict=True):
        assert torch.equal(one, other)


def test_a_gradient_goes_back_to_where_its_tensor_lies(device):
    leaf, there = torch.ones(2, requires_grad=True), torch.ones(2, device=CUDA).requires_grad_()
    leaf.to(CUDA).mul(3).sum().backward()
    there.cpu().mul(3).sum().backward()
    assert leaf.grad.device.type == "cpu" and there.grad.device.type == "cuda"


def test_the_device_draws_numbers_of_its_own(device):
    state = torch.get_rng_state()
    torch.cuda.manual_seed(1)
    first = torch.rand(3, device=CUDA)
    nn.functional.dropout(torch.ones(3, device=CUDA))
    torch.cuda.manual_seed(1)
    assert torch.equal(torch.rand(3, device=CUDA), first) and torch.equal(torch.get_rng_state(), state)


def test_other_threads_are_watched_too(x):
    found = []

    def work():
        made = torch.zeros(2, 3, device=CUDA)
        found.append((x + made).device.type)
        try:
            made + on_cpu()
        except RuntimeError:
            found.append("refused")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["cuda", "refused"]


def test_afterwards_torch_is_as_before():
    def seen():
        cuda = [getattr(torch.cuda, name) for name in ("is_available", "Stream", "synchronize")]
        made = [torch.Generator, torch.empty, torch.compile, torch.autocast]
        return [*cuda, *made, torch.Tensor.to, torch.Tensor.cpu]

    before = seen()
    if torch.cuda.is_available():
        pytest.skip("a real CUDA device is here")
    with pretended_cuda():
        assert torch.cuda.is_available() and seen() != before
    assert seen() == before and not torch.cuda.is_available()


# ---- copies that are not waited for ------------------------------------------------------------------------


def test_a_copy_to_the_host_is_wrong_until_it_is_waited_for(x):
    expected = x.cpu()
    ways = (
        torch.cuda.synchronize,
        lambda: torch.cuda.current_stream().synchronize(),
        lambda: torch.cuda.current_stream().record_event().synchronize(),
        lambda: x.sum().item(),
    )
    for wait in ways:
        fetched, buffer = x.to("cpu", non_blocking=True), torch.zeros(2, 3).pin_memory()
        buffer.copy_(x, non_blocking=True)
        assert fetched.isnan().all() and buffer.isnan().all() and fetched.is_pinned()
        wait()
        assert torch.equal(fetched, expected) and torch.equal(buffer, expected)
    assert not torch.equal((x > 2).to("cpu", non_blocking=True), expected > 2)


def test_an_event_waits_for_what_came_before_it(x):
    early = x.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    late = x.to("cpu", non_blocking=True)
    event.synchronize()
    assert torch.equal(early, x.cpu()) and event.query()
    assert not late.isnan().any()  # x.cpu() has waited for it


def test_a_page_locked_source_that_is_written_too_early_is_told():
    if torch.cuda.is_available():
        pytest.skip("a real CUDA device is here")
    with pytest.raises(AssertionError, match="page-locked"), pretended_cuda():
        source = torch.ones(3).pin_memory()
        source.to(CUDA, non_blocking=True)
        source.zero_()
        torch.cuda.synchronize()
    with pretended_cuda():
        source.to(CUDA, non_blocking=True)
        torch.cuda.synchronize()
        source.fill_(1)  # by now it is free


def test_a_stream_must_wait_for_the_stream_that_writes(x):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        with pytest.raises(RuntimeError, match="another stream"):
            x + 1
        side.wait_stream(torch.cuda.default_stream())
        made = x + 1
        event = side.record_event()
    with pytest.raises(RuntimeError, match="another stream"):
        made.cpu()
    torch.cuda.current_stream().wait_event(event)
    assert made.sum().item() == 21 and torch.cuda.current_stream() is torch.cuda.default_stream()


def test_a_loader_pins_in_its_thread(device):
    data = TensorDataset(torch.arange(8.0).reshape(8, 1))
    with device.counted() as waits:
        for (batch,) in DataLoader(data, batch_size=4, pin_memory=True):
            assert batch.is_pinned() and batch.to(CUDA, non_blocking=True).device.type == "cuda"
    assert not waits
    assert not torch.zeros(2).is_pinned() and torch.zeros(2, pin_memory=True).is_pinned()


# ---- waits -------------------------------------------------------------------------------------------------


WAITS = {
    "item": (lambda x: x.sum().item(), "item"),
    "float": (lambda x: float(x[0, 0]), "item"),
    "int": (lambda x: int(x[0, 0]), "item"),
    "bool": (lambda x: bool((x > 3).any()), "item"),
    "if": (lambda x: 1 if (x > 3).any() else 0, "item"),
    "tolist": (lambda x: x.tolist(), "tolist"),
    "cpu": (lambda x: x.cpu(), "a copy to the CPU"),
    "to": (lambda x: x.to("cpu"), "a copy to the CPU"),
    "copy_": (lambda x: torch.zeros(2, 3).copy_(x), "a copy to the CPU"),
    "up": (lambda x: torch.ones(2).to(CUDA), "a copy to the device"),
    "tensor": (lambda x: torch.tensor([1, 2], device=CUDA), "a copy to the device"),
    "nonzero": (lambda x: x.nonzero(), "nonzero"),
    "where": (lambda x: torch.where(x > 1), "nonzero"),
    "mask": (lambda x: x[x > 1], "a mask as index"),
    "mask of rows": (lambda x: x[torch.tensor([True, False], device=CUDA)], "a mask as index"),
    "write by mask": (lambda x: x.__setitem__(x > 1, x[0, 0]), "a mask as index"),
    "masked_select": (lambda x: x.masked_select(x > 1), "masked_select"),
    "unique": (lambda x: x.unique(), "unique"),
    "equal": (lambda x: torch.equal(x, x), "equal"),
    "allclose": (lambda x: torch.allclose(x, x), "equal"),
    "svd": (lambda x: torch.linalg.svdvals(x), "svd"),
    "print": (lambda x: str(x), "print"),
    "format": (lambda x: f"{x[0, 0]:.1f}", "item"),
    "synchronize": (lambda x: torch.cuda.synchronize(), "synchronize"),
    "index from the CPU": (lambda x: x[torch.tensor([0])], "an index from the CPU"),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_counted_by_its_call_site(device, x, name):
    call, cause = WAITS[name]
    with device.counted() as waits:
        call(x)
    assert cause in causes(waits), waits
    assert all("test_pretended" in site for site, _ in waits)


FREE = {
    "arithmetic": lambda x: torch.where(x > 1, x, 0.0).sum(),
    "index": lambda x: x[torch.arange(2, device=CUDA)][:, :1],
    "number by mask": lambda x: x.__setitem__(x > 1, 0.0),
    "pinned": lambda x: torch.ones(2).pin_memory().to(CUDA, non_blocking=True),
    "full": lambda x: torch.full((), 255.0, device=CUDA),
    "shape": lambda x: len(x) + x.numel(),
    "backward": lambda x: (x.clone().requires_grad_() * 2).max(1).values.sum().backward(),
    "sort": lambda x: x.topk(2).values.sort().values,
}


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_wait_is_not_counted(device, x, name):
    with device.counted() as waits:
        FREE[name](x)
    assert not waits
