"""What a reader has who types the commands of a page: runs, images, a network, a guard and its evidence."""

from __future__ import annotations

import io
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from documented import run_words
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

#: Adversarial training of a network of 500 weights: what later commands measure is weak, and falls at once.
TINY = (
    "model={name: small_cnn, widths: [6], strides: [2]}",
    *("adversary.steps=1", "train.batch_size=64", "train.val_n=16", "train.val_attack.steps=1"),
    *("eval.checks=2", "attacks=[{name: pgd, steps: 2}]", "threads=1"),
)
NETWORK = '''from torch import nn


def net(num_classes):
    """Grey images of any size."""
    head = nn.Linear(32, num_classes)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)
'''


def do(*words: str) -> None:
    """One command that must succeed."""
    code, out, err = run_words(list(words))
    assert code == 0, (words, out[-300:], err[-900:])


def write_images(folder: Path, each: int = 12) -> list[str]:
    """`PATH/{train,test}/<class>/`, the table `PATH.csv`, and `images/`; returns the files of `images`."""
    found = load_digits()
    pixels, rows = np.rint(found.images * 255 / 16).astype("uint8"), ["path,label,split"]
    for label in range(10):
        for k, number in enumerate(np.flatnonzero(found.target == label)[:each]):
            split = "test" if k % 4 == 0 else "train"
            file = folder / "PATH" / split / str(label) / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number]).save(file)
            rows.append(f"{file.relative_to(folder)},{label},{split}")
    for name in ("PATH.csv", "LIST.csv"):
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    np.savez(folder / "FILE.npz", x=pixels[:200], y=found.target[:200])
    write_packed(folder, pixels[:200], found.target[:200])
    (folder / "images").mkdir()
    for name, number in zip("abcdef", range(6), strict=True):
        Image.fromarray(pixels[number]).save(folder / "images" / f"{name}.png")
    return [f"images/{name}.png" for name in "abcdef"]


def write_packed(folder: Path, pixels: Any, labels: Any) -> None:
    """`PATH.tar`, and `PATH.parquet` where pyarrow is installed."""
    with tarfile.open(folder / "PATH.tar", "w") as archive:
        for k, label in enumerate(labels):
            file = io.BytesIO()
            Image.fromarray(pixels[k]).save(file, format="PNG")
            for name, stored in ((f"{k}.png", file.getvalue()), (f"{k}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(stored)
                archive.addfile(info, io.BytesIO(stored))
    with suppress(ImportError):
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"image": list(pixels.tolist()), "label": labels.tolist()})
        pyarrow.parquet.write_table(table, folder / "PATH.parquet")


def save_weights(folder: Path) -> None:
    """`w.safetensors` of `net.py:net`, without training; `model.safetensors` of the run A."""
    code: dict[str, Any] = {}
    exec(compile(NETWORK, "net.py", "exec"), code)
    save_file(dict(code["net"](10).state_dict()), folder / "w.safetensors")


def guards(folder: Path) -> dict[str, str]:
    """A guard that rejects half of all images, and two stores with what it rejected; the first two hashes."""
    from robustcli.guard.store import EvidenceStore

    do("guard", "fit", "--model", "run:A", "defences=[energy]", "guard.fpr=0.5", "name=run", "--smoke", "-q")
    do("guard", "run", "runs/guard/latest", "images", "PATH", "--store", "evidence.db", "-q")
    with EvidenceStore.open(folder / "evidence.db") as store:
        hashes = [item.hash for item in store.evidence()]
    labels = [word for number in hashes for word in ("--label", f"{number}=7")]
    do("guard", "review", "evidence.db", *labels)
    (folder / "evidence").mkdir()
    for name in ("evidence/store.db", "store.db"):
        shutil.copy(folder / "evidence.db", folder / name)
    return {"first": hashes[0], "second": hashes[1]}


def build(folder: Path) -> dict[str, str]:
    """Make the world in the working directory `folder`; returns the names that rules may use."""
    files = write_images(folder)
    (folder / "list.txt").write_text("\n".join(files) + "\n", encoding="utf-8")
    (folder / "net.py").write_text(NETWORK, encoding="utf-8")
    (folder / "mine").mkdir()
    (folder / "gate.yaml").write_text(
        "thresholds:\n  clean_acc: {min: 0.99, mode: point}\n", encoding="utf-8"
    )
    (folder / "my.yaml").write_text("data: {name: digits}\n", encoding="utf-8")
    do("train", "train/digits", *TINY, "train.steps=12", "--no-report", "-q")
    save_weights(folder)
    for name in ("A", "B", "C", "runs/natural", "runs/demo/latest/natural", "runs/demo/latest/robust"):
        shutil.copytree(folder / "runs" / "train" / "digits-1", folder / name)
    do("eval", "--model", "run:A", "name=first", "--n", "4", "--no-report", "-q")
    for name in ("old", "new"):
        shutil.copytree(folder / "runs" / "eval" / "first-1", folder / "runs" / "eval" / name)
    return guards(folder)
