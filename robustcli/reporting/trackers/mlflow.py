"""The tracker for MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from annotated_types import Ge, Le

from robustcli.errors import ResourceError, UsageError
from robustcli.records.train import TrainRow
from robustcli.registry import trackers
from robustcli.reporting.pixels import Panels, sheet
from robustcli.reporting.trackers.kept import flat, lacking, read_note, settings_of, write_note
from robustcli.reporting.tracking import Tracker, scalars

_NOTE = "mlflow.json"
_LONGEST = 500  # characters of a parameter that every version stores
_AT_ONCE = 100  # parameters that it takes in one call
#: Unless the user has said otherwise: no reports on the use of MLflow to its makers, nothing on standard
#: output, and a server that does not answer is given up within a minute, not within ten.
_DEFAULTS = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


@trackers.register("mlflow")
def mlflow(
    run_dir: Path,
    *,
    uri: str = "",
    experiment: str = "",
    images: Annotated[int, Ge(0), Le(64)] = 8,
) -> Tracker:
    """The numbers of each validation record, adversarial examples and the configuration, as a run of MLflow.

    A resumed run goes on in the same run of MLflow, which `mlflow.json` in the run directory names.

    Args:
        run_dir: the run's directory.
        uri: a folder, `sqlite:///FILE`, or the address of a server. "" means the variable
            MLFLOW_TRACKING_URI, and without it the folder RUN/mlflow.
        experiment: its name. "" means MLFLOW_EXPERIMENT_NAME, else robustcli.
        images: adversarial examples per validation, in [0, 64]; 0 = none.

    Raises:
        ResourceError: E-EXTRA, a package is not installed. UsageError: a password in `uri`.
    """
    place = _place(uri, run_dir)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "robustcli"
    try:
        client = import_module("mlflow.tracking").MlflowClient(tracking_uri=place, registry_uri=place)
        entities = import_module("mlflow.entities")
        store = _Store(_shown(place, run_dir), experiment, _pictures(place))
        return _Run(client, entities, run_dir, store, images)
    except ImportError as error:
        raise _lacking(error) from error


def _lacking(error: ImportError) -> ResourceError:
    """E-EXTRA: MLflow itself is missing, or what it needs for a database."""
    if (error.name or "").partition(".")[0] == "mlflow":
        return lacking("mlflow", error)
    return ResourceError(
        f"this store of MLflow needs a package that is not installed: {error.name or error}",
        where="train.trackers",
        hint="pip install mlflow",
        code="E-EXTRA",
    )


def _place(uri: str, run_dir: Path) -> str:
    """The URI of the store. Raises UsageError for one with a password."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "") or str(run_dir / "mlflow")
    if not re.match(r"[A-Za-z][\w+.-]+:|databricks$", uri):
        uri = Path(uri).absolute().as_uri()
    if urlsplit(uri).scheme == "file":
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions prefer a database
    elif urlsplit(uri).password:
        raise UsageError(
            "the address of the MLflow server holds a password",
            where="train.trackers",
            hint="use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    return uri


def _pictures(place: str) -> str | None:
    """Where a new experiment keeps its pictures; None leaves it to MLflow.

    Beside a database file: MLflow would take the folder in which the command happens to run.
    """
    scheme, _, path, *_ = urlsplit(place)
    if not scheme.startswith("sqlite"):
        return None
    return (Path(path[1:]).absolute().parent / "mlruns").as_uri()


def _shown(place: str, run_dir: Path) -> str:
    """The store as the note names it: that inside the run directory goes where that goes."""
    return "" if place == (run_dir / "mlflow").absolute().as_uri() else place


@dataclass(frozen=True)
class _Store:
    """A store by the name that the note has, the experiment there, and where a new one keeps its pictures."""

    name: str
    experiment: str
    pictures: str | None


class _Run:
    """A `Tracker`.

    Args:
        client, entities: MLflow's client of the store, and its module of values.
        images: as `examples` of a tracker.
    """

    def __init__(self, client: Any, entities: Any, run_dir: Path, store: _Store, images: int) -> None:
        self._client, self._entities, self.examples = client, entities, images
        known = read_note(run_dir / _NOTE)
        self._goes_on = known.get("store") == store.name and self._reopened(known.get("run", ""))
        if self._goes_on:
            self._id = known["run"]
            return
        self._id = self._begun(run_dir, store)
        write_note(run_dir / _NOTE, store=store.name, run=self._id)

    def resume(self, rows: Sequence[TrainRow]) -> None:
        """Where the run of MLflow is new: writes `rows`. It forgets nothing: one that goes on keeps all."""
        for row in [] if self._goes_on else rows:
            self.row(row)

    def row(self, row: TrainRow) -> None:
        """See `Tracker`."""
        now, metric = round(1000 * time.time()), self._entities.Metric
        numbers = [metric(name, value, now, row.step) for name, value in scalars(row).items()]
        self._client.log_batch(self._id, metrics=numbers)

    def images(self, step: int, panels: Panels) -> None:
        """See `Tracker`: one picture, a row per panel, among the artifacts."""
        self._client.log_image(self._id, sheet(panels), artifact_file=f"examples/step-{step:07}.png")

    def close(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id, status="FINISHED")

    def _begun(self, run_dir: Path, store: _Store) -> str:
        """The id of a new run with the configuration as its parameters."""
        run_id = str(self._client.create_run(self._group(store), run_name=run_dir.name).info.run_id)
        self._log_settings(run_id, settings_of(run_dir))
        return run_id

    def _group(self, store: _Store) -> str:
        """The id of the experiment. Of two runs that begin at once, one makes it."""
        known = self._client.get_experiment_by_name(store.experiment)
        if known is None:
            try:
                return str(self._client.create_experiment(store.experiment, store.pictures))
            except Exception:
                known = self._client.get_experiment_by_name(store.experiment)
                if known is None:
                    raise
        return str(known.experiment_id)

    def _log_settings(self, run_id: str, settings: Mapping[str, Any]) -> None:
        params = [self._entities.Param(key, text[:_LONGEST]) for key, text in flat(settings)]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(run_id, params=params[first : first + _AT_ONCE])

    def _reopened(self, run_id: str) -> bool:
        """Whether the store has this run; it is one that runs again."""
        if not run_id:
            return False
        try:
            deleted = self._client.get_run(run_id).info.lifecycle_stage == "deleted"
        except Exception as error:  # noqa: BLE001  (each store has its own)
            if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise
        if not deleted:
            self._client.update_run(run_id, status="RUNNING")
        return not deleted
