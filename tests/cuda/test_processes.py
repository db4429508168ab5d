"""Copies to the device, a group of processes, and what several passes at once leave behind."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from jobs_support import IMAGES, TINY, write_images
from PIL import Image

from robustcli.data.images import Decoder
from robustcli.data.split import MemorySplit, Store
from robustcli.data.stream import StreamSplit
from robustcli.runtime.distributed import Ranks

CPU = torch.device("cpu")
COUNT = 48
BATCHES = torch.arange(COUNT).flip(0).split(7)


def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (COUNT, 3, 16, 16), generator=generator, dtype=torch.uint8)


def labels():
    return torch.arange(COUNT) % 3


@pytest.fixture(params=["memory", "fed", "files"])
def split(request, tmp_path, monkeypatch):
    """The same images in memory, gathered on the CPU because no device holds them, and in files."""
    if request.param != "files":
        if request.param == "fed":
            monkeypatch.setattr(Store, "on", lambda self, device: None)
        return MemorySplit(pixels(), labels(), ("a", "b", "c"))
    for number, image in enumerate(pixels().numpy()):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{number:02d}.png")
    paths = np.array([os.fsencode(f"{number:02d}.png") for number in range(COUNT)])
    return StreamSplit(paths, Decoder(str(tmp_path)), labels(), ("a", "b", "c"), (3, 16, 16), workers=0)


def test_each_batch_arrives_whole_while_the_device_works(device, split):
    """Copies from pinned memory do not wait: nothing may be read too early, or written over."""
    busy, kept = torch.rand(256, 256, device=device), []
    for x, y, ids in split.stream(list(BATCHES), device):
        kept.append((x + 0, y + 0, ids + 0))
        for _ in range(4):
            busy = torch.tanh(busy @ busy)
    assert len(kept) == len(BATCHES)
    for positions, (x, y, ids) in zip(BATCHES, kept, strict=True):
        assert x.device == y.device == ids.device == busy.device
        assert torch.equal(x.cpu(), pixels()[positions].float() / 255)
        assert torch.equal(y.cpu(), labels()[positions]) and torch.equal(ids.cpu(), positions)


@pytest.fixture
def group(device):
    """One process that believes to be one of two: its sums are its own, and means are halves.

    On CUDA NCCL carries the tensors.
    """
    backend = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}[device.type]
    dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())
    yield Ranks(0, 2, steady=dist.new_group())
    dist.destroy_process_group()


def test_a_group_averages_tensors_of_every_type_where_they_are(device, group):
    whole = [
        torch.full((3, 2), 4.0, device=device),
        torch.full((5,), 2.0, device=device, dtype=torch.float64),
    ]
    whole.append(torch.full((2,), 6.0, device=device, dtype=torch.bfloat16))
    group.mean(whole)
    assert [float(tensor.mean()) for tensor in whole] == [2.0, 1.0, 3.0]
    assert group.agree(False, True) == (False, True)
    group.barrier()


OFF = ("train.compile=off", "search.compile=off")


def two_steps(cli, device, *words):
    """The number of steps made."""
    answer = cli("train", *TINY, *OFF, "train.steps=2", "--device", device, *words, "--json")
    assert answer.code == 0
    return answer.document["steps"]


def test_a_training_whose_passes_are_shared_ends(device, cli):
    assert two_steps(cli, device, "train.parallel=dp") == 2


@pytest.mark.cuda  # the launcher on CPUs: tests/assembly
def test_a_training_of_one_rank_ends(cli):
    assert two_steps(cli, "cuda", "--nproc", "1") == 2


def test_a_training_from_files_ends(device, cli, tmp_path):
    """Workers decode while the device trains."""
    write_images(tmp_path)
    assert (
        cli(
            "train",
            *IMAGES,
            *OFF,
            "data.storage=stream",
            "data.workers=1",
            "train.steps=4",
            "--device",
            device,
        ).code
        == 0
    )
