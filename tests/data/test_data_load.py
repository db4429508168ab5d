from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustcli.config.sections import DataConfig
from robustcli.data import datasets as module
from robustcli.data.datasets import load_data
from robustcli.errors import ConfigError, DataError, ResourceError
from robustcli.facts import DatasetFacts
from robustcli.registry import Entry, datasets


def test_all_names_are_registered() -> None:
    shipped = {"cifar10", "cifar100", "digits", "fake", "fashion-mnist", "folder", "gtsrb", "imagenet"}
    assert shipped | {"mnist", "npz", "svhn"} <= set(datasets.names())


def test_every_data_set_says_what_it_is() -> None:
    for entry in datasets:
        assert len(entry.summary) > 20, entry.name
        crop, flip = entry.facts.augment or (0, False)
        assert crop >= 0 and not (flip and entry.name in ("digits", "mnist", "svhn", "gtsrb")), entry.name
        assert len(entry.facts.mean or ()) == len(entry.facts.std or ()), entry.name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cifr10", "did you mean 'cifar10'?"),
        ("nothing:like/it", "known: cifar10, cifar100, "),
        ("digits:here", "takes no path"),
    ],
)
def test_unknown_names(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_data(DataConfig(name=name), allow_download=False)
    assert text in caught.value.line() and caught.value.where == "data.name"


@pytest.mark.parametrize("name", ["folder", "folder:", "npz"])
def test_some_need_a_path(name: str) -> None:
    with pytest.raises(ConfigError, match=f"write {name.rstrip(':')}:PATH"):
        load_data(DataConfig(name=name), allow_download=False)


@pytest.mark.parametrize("name", ["folder:~/none", "npz:~/none.npz"])
def test_home_is_expanded(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_data(DataConfig(name=name), allow_download=False)
    assert str(tmp_path) in caught.value.where


def test_no_memory_is_a_resource_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(config: DataConfig) -> None:
        raise MemoryError

    monkeypatch.setitem(module.datasets._entries, "fake", Entry("fake", greedy, DatasetFacts()))
    with pytest.raises(ResourceError) as caught:
        load_data(DataConfig(name="fake"), allow_download=False)
    assert caught.value.exit_code == 6 and "data.storage=stream" in caught.value.hint


SCRIPT = """
import torch
from robustcli.config.schema import DataConfig
from robustcli.data.datasets import load_data
from robustcli.data.sampling import stratified, train_order
b = load_data(DataConfig(name="fake", size=4), allow_download=False)
chosen = stratified(b.test.labels, 33, 5).sum().item()
print(b.digest, b.train.ids.sum().item(), chosen, train_order(99, 1, 2)[:5].tolist(), b.mean, b.std)
"""


def test_processes_agree_whatever_the_hash_seed() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "2"))
    }
    assert len(outputs) == 1 and outputs.pop().strip()


def test_loading_does_not_import_heavy_packages() -> None:
    code = (
        "import sys; from robustcli.registry import datasets; datasets; "
        "print([m for m in HEAVY if m in sys.modules])"
    )
    code = code.replace("HEAVY", "('torchvision', 'sklearn', 'PIL', 'scipy')")
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_stack_of_batches_covers_a_split_once() -> None:
    from robustcli.data.sampling import train_order

    bundle = load_data(DataConfig(name="fake", size=4), allow_download=False)
    order = train_order(len(bundle.train), seed=0, epoch=0)
    ids = torch.cat(
        [
            i
            for _, _, i in bundle.train.stream(
                [order[k : k + 64] for k in range(0, len(order), 64)], torch.device("cpu")
            )
        ]
    )
    assert torch.equal(ids.sort().values, bundle.train.ids)
