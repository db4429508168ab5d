"""The tracker for Weights & Biases."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from robustcli.records.train import TrainRow
from robustcli.registry import trackers
from robustcli.reporting.pixels import Panels, sheet
from robustcli.reporting.trackers.kept import lacking, read_note, settings_of, write_note
from robustcli.reporting.tracking import Tracker, scalars

_NOTE = "wandb.json"
#: Records are all that is sent: nothing of the machine, the repository, the program or its output.
_SETTINGS = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "host": "-",
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "reinit": "create_new",  # a run of the user's own process stays as it is
    "finish_timeout": 120.0,  # seconds for what is not yet sent when the training is over
    "finish_timeout_raises": True,
}


@trackers.register("wandb")
def wandb(
    run_dir: Path,
    *,
    project: str = "",
    entity: str = "",
    mode: Literal["auto", "offline", "online"] = "auto",
    images: Annotated[int, Ge(0), Le(64)] = 8,
) -> Tracker:
    """The numbers of each validation record, adversarial examples and the configuration, as a run of W&B.

    Its files are in RUN/wandb; offline, `wandb sync` sends them later. A resumed run goes on in the same run
    of W&B, which `wandb.json` in the run directory names.

    Args:
        run_dir: the run's directory.
        project: its name. "" means WANDB_PROJECT, else robustcli.
        entity: user or team. "" means what W&B knows of the user.
        mode: offline, online, or auto: what the variable WANDB_MODE says, and offline without it.
        images: adversarial examples per validation, in [0, 64]; 0 = none.

    Raises:
        ResourceError: E-EXTRA, wandb is not installed.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the package is imported
    try:
        module = import_module("wandb")
    except ImportError as error:
        raise lacking("wandb", error) from error
    if mode == "auto":
        chosen = os.environ.get("WANDB_MODE") or "offline"
    else:
        chosen = mode
    settings = {name: value for name, value in _SETTINGS.items() if name in module.Settings.model_fields}
    init = partial(
        module.init,
        project=project or os.environ.get("WANDB_PROJECT") or "robustcli",
        entity=entity or None,
        name=run_dir.name,
        dir=str(run_dir.absolute()),  # its process has a working directory of its own
        mode=chosen,
        config=dict(settings_of(run_dir)),
        settings=module.Settings(**settings),
    )
    return _Run(init, module.Image, run_dir, chosen == "online", images)


class _Run:
    """A `Tracker`. Where an earlier process had one, the run of W&B is opened when the records are known.

    Args:
        init: opens a run of W&B by its id. image: makes its picture of pixels.
        online: whether a server has what was logged.
        images: as `examples` of a tracker.
    """

    def __init__(
        self, init: Callable[..., Any], image: Callable[..., Any], run_dir: Path, online: bool, images: int
    ) -> None:
        self._image, self.examples = image, images
        self._folder, self._online = run_dir / "wandb", online
        self._id = read_note(run_dir / _NOTE).get("run", "")
        self._opened: Any = None
        self._init = init
        if not self._id:
            self._id = secrets.token_hex(4)
            self._run()
            write_note(run_dir / _NOTE, run=self._id)

    def resume(self, rows: Sequence[TrainRow]) -> None:
        """Writes `rows`. Offline they take the place of what an earlier process wrote; a server keeps what it
        has, and a step that it has already is left aside by W&B."""
        if self._opened is None and not self._online:
            for earlier in self._folder.glob(f"offline-run-*-{self._id}"):
                shutil.rmtree(earlier, ignore_errors=True)
        for row in rows:
            self.row(row)

    def row(self, row: TrainRow) -> None:
        """See `Tracker`."""
        self._run().log(scalars(row), step=row.step)

    def images(self, step: int, panels: Panels) -> None:
        """See `Tracker`: one picture, a row per panel."""
        name = f"examples/{'-'.join(panels)}"
        self._run().log({name: self._image(sheet(panels))}, step=step)

    def close(self) -> None:
        """See `Tracker`. Raises TimeoutError where a server does not take what is left."""
        self._run().finish()

    def _run(self) -> Any:
        """The run of W&B; the first call opens it."""
        if self._opened is None:
            resume = "allow" if self._online else None
            self._opened = self._init(id=self._id, resume=resume)
        return self._opened
