"""The comparisons of `gpu_suite.py --part check`: one trained model, judged through every fast path.

What they are compared with is the plain fp32 search.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_report import Line, Row
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


def check(run: str, device: str, *, n: int, short: Sequence[str]) -> list[Row]:
    """The rows of all `lines`."""
    return [row for line in lines(run, device, n=n, short=short) for row in line.work()]


def lines(run: str, device: str, *, n: int, short: Sequence[str]) -> list[Line]:
    """All comparisons, what users meet first before what they ask for.

    `run`: a finished training. `short`: the words of a deterministic training of some steps, for the resume.
    """
    setting, model = measured(run, device)
    ways = Ways(setting, model, n)
    found = [Line(name, need, ways.row_of(name)) for name, need in ways.needs.items()]
    low = Line("gradient in bf16", 3, lambda: outer(setting, model, "bf16"))
    again = Line("resume", 15, lambda: [resume(short, device)])
    compiled = Line("gradient, compiled", 45, lambda: outer(setting, model, "compiled fp32"))
    return [*found[:3], low, again, *found[3:], compiled]


def _compiler(device: torch.device) -> AbstractContextManager[Any]:
    """On a CPU compiled code runs as it is: compiling there takes longer than all the rest."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if device.type == "cuda" or stance is None else stance("force_eager")


# ---- verdicts ----------------------------------------------------------------------------------------------


def measured(run: str, device: str) -> tuple[Setting, nn.Module]:
    """The data, ball and best model of a finished training, on the device."""
    stored = resolve_run(Path(run)) / "config.resolved.yaml"
    config = load_config(
        stored,
        [parse_assignment(f"device={device}", "suite"), parse_assignment(f"model.name=run:{run}", "suite")],
    ).config
    config = config.model_copy(update={"model": type(config.model)(name=f"run:{run}")})
    setting = prepare(config, Console(quiet=True))
    model = ModelSource(setting).to_measure(Console(quiet=True)).eval()
    return setting, model


class Ways:
    """PGD-20 through each search.

    The fp32 model confirms every hit, so a flip is an attack that one search found and another did not.

    Attributes:
        needs: name -> seconds on a GPU, in the order of worth; compilation takes most of the last one's.
    """

    def __init__(self, setting: Setting, model: nn.Module, n: int) -> None:
        self._setting, self._model, self._n = setting, model, n
        self._reference: Tensor | None = None
        plain = Search().exact()
        folded = replace(plain, fold_bn=True, channels_last=True)
        low = replace(folded, dtype=torch.bfloat16) if bf16_native(setting.device) else folded
        self._searches = {"folded bf16": low}
        if setting.device.type == "cuda":
            self._searches["folded bf16, CUDA graphs"] = replace(low, graph=True)
        self._searches |= {
            "growing batches": plain,
            "folded fp32": folded,
            "folded bf16, compiled": replace(low, compile=True),
        }
        self.needs = {name: 60.0 if search.compile else 5.0 for name, search in self._searches.items()}

    def row_of(self, name: str) -> Callable[[], Iterator[Row]]:
        """The work of a line: before the first one the verdict that all are compared with."""

        def work() -> Iterator[Row]:
            if self._reference is None:
                self._reference, _ = _survivors(self._setting, self._model, Search().exact(), self._n, 64)
                accuracy = float(self._reference.float().mean())
                yield Row(f"robust accuracy, plain fp32, n = {len(self._reference)}", accuracy)
            yield self._compared(name, self._searches[name], self._reference)

        return work

    def _compared(self, name: str, search: Search, reference: Tensor) -> Row:
        """How many verdicts differ, and which way."""
        said: list[str] = []
        batch = None if name == "growing batches" else 64
        with _compiler(self._setting.device):
            standing, margins = _survivors(self._setting, self._model, search, self._n, batch, said)
        flipped = standing != reference
        allowed = max(2, int(FLIPS * len(reference)))
        note = ""
        if bool(flipped.any()):
            note = f"margins {', '.join(f'{m:.2g}' for m in margins[flipped][:5].tolist())}; "
        more, fewer = int((standing & ~reference).sum()), int((reference & ~standing).sum())
        note += f"{more} more and {fewer} fewer survive" + "".join(f"; {text}" for text in said)
        passed = int(flipped.sum()) <= allowed and not said
        return Row(f"flipped verdicts, {name}", float(flipped.sum()), note, passed)


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


def outer(setting: Setting, model: nn.Module, way: str) -> Iterator[Row]:
    """Loss and weight gradient of one batch, "compiled fp32" or in "bf16", against eager fp32."""
    train = setting.data.train
    x, y, _ = next(iter(train.stream([torch.arange(min(128, len(train)))], setting.device)))
    if way == "compiled fp32":
        forward, loss_limit, gradient_limit = Forward(model, compiled=True), 1e-3, 1e-2
    elif bf16_native(setting.device):
        forward, loss_limit, gradient_limit = Forward(model, dtype=torch.bfloat16), 2e-2, 0.25
    else:
        return
    wanted_loss, wanted = _gradient(Forward(model), model, x, y)
    with _compiler(setting.device):
        loss, grad = _gradient(forward, model, x, y)
    apart = float(abs(loss - wanted_loss) / abs(wanted_loss))
    turned = float((grad - wanted).norm() / wanted.norm())
    name = f"{way} against fp32, relative difference"
    yield Row(f"loss, {name}", apart, forward.note, apart <= loss_limit and not forward.note)
    yield Row(f"weight gradient, {name}", turned, "", turned <= gradient_limit)


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
