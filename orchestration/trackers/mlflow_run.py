"""The door to MLflow: one run of theirs for one of ours, in files of the run folder or on a tracking server."""

import time
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from orchestration.run_folder import write_atomically
from orchestration.trackers.config import MlflowConfig
from orchestration.trackers.tracker import Table, TrackedRun, numbers_of

PARAMS_PER_CALL = 100
"""What MLflow takes."""


class MlflowTracker:
    """Figures as metrics, samples as tables among the artifacts, events as tags."""

    def __init__(self, run: TrackedRun, config: MlflowConfig) -> None:
        folder = (run.folder / "mlflow").absolute()
        folder.mkdir(exist_ok=True)
        id_file = folder / "run-id.txt"
        self._client = MlflowClient(tracking_uri=config.tracking_uri or folder.as_uri())
        if id_file.exists():
            self._run_id = id_file.read_text(encoding="utf-8")
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            experiment = self._experiment(config.experiment)
            self._run_id = self._client.create_run(experiment, run_name=run.name).info.run_id
            write_atomically(id_file, self._run_id)
            self._write_settings(run)

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        self._write(step, figures)

    def samples(self, step: int, table: Table) -> None:
        content = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
        self._client.log_dict(self._run_id, content, f"samples/step-{step:06d}.json")

    def event(self, step: int, kind: str, text: str) -> None:
        self._client.set_tag(self._run_id, f"event/{time.time_ns()}", f"step {step}, {kind}: {text}")

    def close(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._write(0, numbers_of(summary))
        self._client.set_terminated(self._run_id, "KILLED" if summary is None else "FINISHED")

    def _write(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _write_settings(self, run: TrackedRun) -> None:
        params = [Param(key, str(value)) for key, value in run.settings.items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(self._run_id, params=params[start : start + PARAMS_PER_CALL])

    def _experiment(self, name: str) -> str:
        """Its id; it is made if there is none."""
        try:
            return str(self._client.create_experiment(name))
        except MlflowException as error:
            found = self._client.get_experiment_by_name(name)
            if found is None or error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
            return str(found.experiment_id)
