"""Every tracker keeps the same contract: what goes in is there when its own reader looks, also after a resume."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestration.trackers.config import MlflowConfig, TrackersConfig, WandbConfig
from orchestration.trackers.opening import open_trackers
from orchestration.trackers.sink import TrackerSink
from orchestration.trackers.tracker import TrackedRun
from tests.orchestration.trackers.tracker_readers import Written, read_mlflow, read_tensorboard, read_wandb

KEY = "0123456789abcdef" * 2 + "01234567"
"""Of the form that W&B gives out."""
MLFLOW_SERVER = os.environ.get("LEASH_MLFLOW_SERVER")
"""Address of a tracking server of MLflow to test against; docs/trackers.md says how to get one."""
SECRETS = {
    "WANDB_API_KEY": KEY,
    "MLFLOW_TRACKING_TOKEN": "token-of-mlflow",
    "MLFLOW_TRACKING_PASSWORD": "pass-word",
}


@dataclass
class Tracked:
    """One kind of tracker, on a run folder."""

    config: TrackersConfig
    read_folder: Callable[[Path], Written]
    folder: Path
    notes: list[str]

    def open(self, **settings: Any) -> TrackerSink:
        run = TrackedRun(name=self.folder.name, folder=self.folder, settings={"seed": 3} | settings)
        return open_trackers(self.config, run, note=self.notes.append)

    def read(self) -> Written:
        return self.read_folder(self.folder)


@pytest.fixture(
    params=[
        *("tensorboard", "wandb", "mlflow"),
        pytest.param(
            "mlflow-server", marks=pytest.mark.skipif(not MLFLOW_SERVER, reason="no LEASH_MLFLOW_SERVER")
        ),
    ]
)
def tracked(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Tracked]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    # A server is not emptied between tests, and forgets no experiment.
    experiment = f"{tmp_path.name}-{time.time_ns()}" if request.param == "mlflow-server" else "movies"
    at_server = MlflowConfig(tracking_uri=MLFLOW_SERVER, experiment=experiment)
    kinds: dict[str, tuple[TrackersConfig, Callable[[Path], Written]]] = {
        "tensorboard": (TrackersConfig(tensorboard=True, samples_per_step=2), read_tensorboard),
        "wandb": (TrackersConfig(wandb=WandbConfig(project="movies"), samples_per_step=2), read_wandb),
        "mlflow": (TrackersConfig(mlflow=MlflowConfig(experiment="movies"), samples_per_step=2), read_mlflow),
        "mlflow-server": (
            TrackersConfig(mlflow=at_server, samples_per_step=2),
            lambda folder: read_mlflow(folder, MLFLOW_SERVER, experiment),
        ),
    }
    config, reader = kinds[request.param]
    tracked = Tracked(config, reader, tmp_path, [])
    yield tracked
    assert tracked.notes == []


def row(completion: str, score: float) -> dict[str, Any]:
    return {
        "prompt": "It is",
        "completion": completion,
        "score": score,
        "rewards": {"human": score / 2},
        "kl_nats": 0.125,
    }


def test_a_tracker_writes_nothing_into_the_terminal_view(
    tracked: Tracked, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = tracked.open()
    sink.step({"step": 1, "lag": 0}, [row("x", 1.0)])
    sink.close({})
    assert capfd.readouterr() == ("", "")


def test_figures_samples_events_settings_and_the_end_can_be_read_back(tracked: Tracked) -> None:
    sink = tracked.open()
    sink.step({"step": 1, "reward_human": 0.25, "lag": 0, "file": "a", "unheard_of": 7.0}, [row("fine", 1.0)])
    sink.event("worker", "rollout-0 died")
    sink.step({"step": 2, "reward_human": 0.5, "lag": 1}, [row("a | b\n<b>c</b>", 2.0), row("", 0.5)])
    sink.close({"steps": 2, "score": {"before": 0.25}})
    assert list(sink.lost.values()) == [0]
    written = tracked.read()
    assert written.figures["learning/reward/human"] == {1: 0.25, 2: 0.5}
    assert written.figures["throughput/lag"] == {1: 0.0, 2: 1.0}
    assert not any("unheard_of" in name or "file" in name for name in written.figures)
    assert [list(map(str, cells)) for cells in written.samples[2]] == [
        ["It is", "a | b\n<b>c</b>", *map(as_written(written, 2), (2.0, 1.0, 0.125))],
        ["It is", "", *map(as_written(written, 2), (0.5, 0.25, 0.125))],
    ]
    assert len(written.samples[1]) == 1
    assert [text for text in written.events if "rollout-0 died" in text] == written.events
    assert len(written.events) == 1
    assert written.settings == {"seed": "3"}
    assert written.finished


def test_rollouts_that_were_rated_by_different_sources_are_one_table(tracked: Tracked) -> None:
    sink = tracked.open()
    sink.step({"step": 1, "lag": 0}, [row("x", 1.0), row("y", 2.0) | {"rewards": {"dataset": 2.0}}])
    sink.close({})
    assert list(sink.lost.values()) == [0]
    (_, _, _, *first), (_, _, _, *second) = tracked.read().samples[1]
    assert [cell in (None, "") for cell in first] == [False, True, False]
    assert [cell in (None, "") for cell in second] == [True, False, False]


def as_written(written: Written, step: int) -> Callable[[float], str]:
    """Numbers stay numbers, but for TensorBoard, whose tables are text."""
    is_text = isinstance(written.samples[step][0][2], str)
    return lambda number: f"{number:.4g}" if is_text else str(number)


def test_a_resumed_run_goes_on_in_the_same_one_and_writes_its_steps_again(tracked: Tracked) -> None:
    """Stopped after step 4, resumed from a checkpoint of step 2, on more workers."""
    sink = tracked.open(workers=1)
    for step in range(1, 5):
        sink.step({"step": step, "score_mean": float(step)}, [row(f"first course {step}", 1.0)])
    sink.close(None)
    assert not tracked.read().finished
    ids = {file: file.read_text() for file in tracked.folder.glob("*/run-id.txt")}
    sink = tracked.open(workers=2)
    for step in (3, 4, 5):
        sink.step({"step": step, "score_mean": 10.0 * step}, [row(f"second course {step}", 1.0)])
    sink.close({})
    written = tracked.read()
    assert written.figures["learning/score_mean"] == {1: 1.0, 2: 2.0, 3: 30.0, 4: 40.0, 5: 50.0}
    assert {step: rows[0][1] for step, rows in written.samples.items()} == {
        **{step: f"first course {step}" for step in (1, 2)},
        **{step: f"second course {step}" for step in (3, 4, 5)},
    }
    assert {file: file.read_text() for file in tracked.folder.glob("*/run-id.txt")} == ids
    assert written.finished


def test_steps_that_a_live_run_writes_again_replace_those_before(tracked: Tracked) -> None:
    """The learner died, and the run went back to a checkpoint without ending."""
    sink = tracked.open()
    for step, value in [(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0), (3, 30.0)]:
        sink.step({"step": step, "score_mean": value}, [])
    sink.close({})
    assert tracked.read().figures["learning/score_mean"] == {1: 1.0, 2: 20.0, 3: 30.0}


def test_a_figure_that_is_not_finite_does_not_hide_the_others(tracked: Tracked) -> None:
    sink = tracked.open()
    record = {"step": 1, "score_mean": math.nan, "score_std": math.inf, "lag": 2}
    sink.step(record, [row("x", math.nan)])
    sink.close({"score": math.nan})
    written = tracked.read()
    assert written.figures["throughput/lag"] == {1: 2.0}
    assert math.isnan(written.figures["learning/score_mean"][1])


def test_everything_stays_in_the_run_folder_and_no_key_is_in_it(
    tracked: Tracked, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("working-folder")
    monkeypatch.chdir(elsewhere)
    sink = tracked.open()
    sink.step({"step": 1, "lag": 0}, [row("x", 1.0)])
    sink.close({})
    assert list(elsewhere.iterdir()) == []
    files = [path for path in tracked.folder.rglob("*") if path.is_file()]
    assert files
    for file in files:
        for secret in SECRETS.values():
            assert secret.encode() not in file.read_bytes(), file


def test_libraries_are_told_not_to_report_to_their_makers_nor_to_the_terminal(tmp_path: Path) -> None:
    """In a process of its own: they decide while they are imported."""
    program = """
import sys
from pathlib import Path
from orchestration.trackers.config import *
from orchestration.trackers.opening import *
config = TrackersConfig(wandb=WandbConfig(), mlflow=MlflowConfig())
sink = open_trackers(config, TrackedRun(name="a", folder=Path(sys.argv[1]), settings={}), note=lambda text: None)
sink.close({})
import mlflow.telemetry.utils
import wandb.env
print(mlflow.telemetry.utils.is_telemetry_disabled(), wandb.env.error_reporting_enabled())
print(mlflow.environment_variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get(), wandb.env.is_silent())
"""
    unset = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "WANDB_SILENT"}
    unset |= {
        "MLFLOW_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
        "WANDB_ERROR_REPORTING",
        "CI",
        "PYTEST_CURRENT_TEST",
    }
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    repository = Path(__file__).parents[3]
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert result.stdout == "True False\nTrue True\n", result.stderr
