"""The comparisons of `gpu_suite.py --part check`: one trained model, judged through every fast path.

What they are compared with is the plain fp32 search.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.samples import choose
from robustcli.assembly.setting import Setting, prepare
from robustcli.attacks.pgd import pgd
from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.core.losses import margin
from robustcli.core.modes import frozen
from robustcli.errors import Interrupted
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.jobs.trainrun import TrainRun
from robustcli.jobs.verb_flags import TrainFlags
from robustcli.runtime.distributed import solo
from robustcli.runtime.precision import bf16_native
from robustcli.store.latest import resolve_run
from robustcli.store.retention import resolve_checkpoint
from robustcli.store.rundir import open_run
from robustcli.store.snapshot import load_checkpoint
from robustcli.terminal.console import Console
from robustcli.training.forward import Forward

#: Share of samples (at least two) whose verdict another search may turn: the judge is the same for all.
FLIPS = 0.01
_STOP_AFTER = 13  # questions of the interrupted training whether to stop: some steps, the last one unfinished


@dataclass(frozen=True)
class Row:
    """One line of a table; `passed` is None where nothing is asked of the number."""

    name: str
    value: float
    note: str = ""
    passed: bool | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(run: str, device: str, *, n: int, short: Sequence[str]) -> list[Row]:
    """All comparisons.

    `run`: a finished training. `short`: the words of a deterministic training of some steps, for the resume.
    """
    stored = resolve_run(Path(run)) / "config.resolved.yaml"
    config = load_config(
        stored,
        [parse_assignment(f"device={device}", "suite"), parse_assignment(f"model.name=run:{run}", "suite")],
    ).config
    config = config.model_copy(update={"model": type(config.model)(name=f"run:{run}")})
    setting = prepare(config, Console(quiet=True))
    model = ModelSource(setting).to_measure(Console(quiet=True)).eval()
    with _compiler(setting.device):
        rows = verdicts(setting, model, n) + outer(setting, model)
    return [*rows, resume(short, device)]


def _compiler(device: torch.device) -> AbstractContextManager[Any]:
    """On a CPU compiled code runs as it is: compiling there takes longer than all the rest."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if device.type == "cuda" or stance is None else stance("force_eager")


# ---- verdicts ----------------------------------------------------------------------------------------------


def verdicts(setting: Setting, model: nn.Module, n: int) -> list[Row]:
    """PGD-20 through each search.

    The fp32 model confirms every hit, so a flip is an attack that one search found and another did not.
    """
    plain = Search().exact()
    folded = replace(plain, fold_bn=True, channels_last=True)
    low = replace(folded, dtype=torch.bfloat16) if bf16_native(setting.device) else folded
    ways = {
        "folded fp32": folded,
        "folded bf16": low,
        "folded bf16, compiled": replace(low, compile=True),
        "growing batches": plain,
    }
    reference, _ = _survivors(setting, model, plain, n, 64)
    rows = [Row(f"robust accuracy, plain fp32, n = {len(reference)}", float(reference.float().mean()))]
    for name, search in ways.items():
        said: list[str] = []
        standing, margins = _survivors(
            setting, model, search, n, None if name == "growing batches" else 64, said
        )
        flipped = standing != reference
        allowed = max(2, int(FLIPS * len(reference)))
        closest = (
            f"margins {', '.join(f'{m:.2g}' for m in margins[flipped][:5].tolist())}; "
            if bool(flipped.any())
            else ""
        )
        more, fewer = int((standing & ~reference).sum()), int((reference & ~standing).sum())
        note = f"{closest}{more} more and {fewer} fewer survive"
        note += "".join(f"; {text}" for text in said)
        rows.append(
            Row(
                f"flipped verdicts, {name}",
                float(flipped.sum()),
                note,
                int(flipped.sum()) <= allowed and not said,
            )
        )
    return rows


def _survivors(
    setting: Setting,
    model: nn.Module,
    search: Search,
    n: int,
    batch: int | None,
    said: list[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """bool [n] and the fp32 margin of the point found, float [n]; in the order of the ids."""
    plan = EvalPlan(
        setting.ball,
        [AttackCall("pgd-20", "pgd", pgd, {"steps": 20})],
        seed=0,
        batch_size=batch,
        search=search,
    )
    margins: list[Tensor] = []

    def keep(outcome: Any) -> None:
        with frozen(model), torch.no_grad():
            margins.append(margin(model(outcome.x_adv), outcome.y).float().cpu())

    split = setting.data.test
    positions = choose(split, n=n, first=None, seed=0)
    found = RobustEvaluation(model, plan, say=(said if said is not None else []).append).run(
        split, positions, setting.device, on_batch=keep
    )
    return found.survivors, torch.cat(margins)


# ---- the outer step ----------------------------------------------------------------------------------------


def outer(setting: Setting, model: nn.Module) -> list[Row]:
    """Loss and weight gradient of one batch: compiled and in bf16 against eager fp32."""
    train = setting.data.train
    x, y, _ = next(iter(train.stream([torch.arange(min(128, len(train)))], setting.device)))
    ways = {"compiled fp32": (Forward(model, compiled=True), 1e-3, 1e-2)}
    if bf16_native(setting.device):
        ways["bf16"] = (Forward(model, dtype=torch.bfloat16), 2e-2, 0.25)
    wanted_loss, wanted = _gradient(Forward(model), model, x, y)
    rows = []
    for name, (forward, loss_limit, gradient_limit) in ways.items():
        loss, grad = _gradient(forward, model, x, y)
        apart = float(abs(loss - wanted_loss) / abs(wanted_loss))
        turned = float((grad - wanted).norm() / wanted.norm())
        rows.append(
            Row(
                f"loss, {name} against fp32, relative difference",
                apart,
                forward.note,
                apart <= loss_limit and not forward.note,
            )
        )
        rows.append(
            Row(
                f"weight gradient, {name} against fp32, relative difference",
                turned,
                "",
                turned <= gradient_limit,
            )
        )
    return rows


def _gradient(forward: Forward, model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """In eval mode, so that nothing is written."""
    loss = F.cross_entropy(forward(x), y)
    grads = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return float(loss.detach()), torch.cat([grad.float().flatten() for grad in grads])


# ---- resume ------------------------------------------------------------------------------------------------


def resume(words: Sequence[str], device: str) -> Row:
    """A training that is stopped inside a step and goes on ends with the bits of one that was not."""
    source, settings = (words[0], words[1:]) if "=" not in words[0] else (None, words)
    config = load_config(
        source, [parse_assignment(text, "suite") for text in (*settings, f"device={device}")]
    ).config
    before = torch.are_deterministic_algorithms_enabled()
    with tempfile.TemporaryDirectory(prefix="robustcli-") as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        _train(config, whole, None)
        stopped = not _train(config, parts, _STOP_AFTER)
        _train(config, parts, None)
        expected, got = (load_checkpoint(resolve_checkpoint(path / "checkpoints")) for path in (whole, parts))
        tensors = {
            (group, name): value for group, named in expected.groups.items() for name, value in named.items()
        }
        differing = [
            key for key, value in tensors.items() if not torch.equal(value, got.groups[key[0]][key[1]])
        ]
        steps = [found.meta["progress"]["step"] for found in (expected, got)]
    torch.use_deterministic_algorithms(before)
    note = f"of {len(tensors)} after {steps[0]} steps{'' if stopped else '; the interruption came too late'}"
    return Row(
        "tensors that differ after a resume",
        float(len(differing)),
        note,
        stopped and not differing and steps[0] == steps[1],
    )


def _train(config: Any, out: Path, stop_after: int | None) -> bool:
    """One training in `out`, resumed where it exists; whether it came to its end."""
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if stop_after is not None and asked > stop_after:
            raise Interrupted("stopped", signum=15)

    console = Console(json=True, quiet=True)  # no tables
    try:
        with open_run("train", config.name, out=str(out), resume=out.exists()) as run:
            TrainRun(
                prepare(config, console), run, console, TrainFlags(resume=run.resumed), stop, solo()
            ).train()
    except Interrupted:
        return False
    return True
