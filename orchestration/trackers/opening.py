"""From [trackers] to a sink that feeds them. A library or a key that is missing is said here, at once."""

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from urllib.parse import urlsplit

from core.errors import UserError
from orchestration.trackers.config import MlflowConfig, TrackersConfig, WandbConfig
from orchestration.trackers.sink import TrackerSink
from orchestration.trackers.tracker import Cell, TrackedRun, Tracker

WANDB_URL = "https://api.wandb.ai"
"""Where wandb sends runs, unless WANDB_BASE_URL says another place."""


def require_trackers(config: TrackersConfig) -> None:
    """`UserError` for a missing library or key."""
    if config.tensorboard:
        _require("tensorboard", "trackers.tensorboard")
    if config.wandb is not None:
        _require("wandb", "trackers.wandb")
        if config.wandb.mode == "online" and not _has_wandb_key():
            raise UserError(
                "trackers.wandb.mode = online: needs a key; run `wandb login`, set the environment variable "
                "WANDB_API_KEY, or offline"
            )
    if config.mlflow is not None:
        _require("mlflow", "trackers.mlflow")


def open_trackers(config: TrackersConfig, run: TrackedRun, *, note: Callable[[str], None]) -> TrackerSink:
    """The trackers of a run, opened in the background; they are there as `require_trackers` asks. `note` is called
    from their threads."""
    openers: dict[str, Callable[[], Tracker]] = {}
    if config.tensorboard:
        openers["tensorboard"] = lambda: _tensorboard(run)
    if (wandb := config.wandb) is not None:
        openers["wandb"] = lambda: _wandb(run, wandb)
    if (mlflow := config.mlflow) is not None:
        openers["mlflow"] = lambda: _mlflow(run, mlflow)
    return TrackerSink(openers, note=note, samples_per_step=config.samples_per_step)


def flat_settings(recipe: Mapping[str, object]) -> dict[str, Cell | None]:
    """A value for every dotted key of a recipe, as `Recipe.model_dump` gives it."""
    flat: dict[str, Cell | None] = {}
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flat_settings(value).items()}
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            flat |= flat_settings({f"{key}.{place}": item for place, item in enumerate(value)})
        else:
            flat[key] = value if value is None or isinstance(value, str | int | float) else str(value)
    return flat


def _require(library: str, key: str) -> None:
    if find_spec(library) is None:
        raise UserError(f"{key}: needs {library}, which is not installed; run `pip install leash[trackers]`")


def _has_wandb_key() -> bool:
    """In the environment, or where `wandb login` leaves it, which wandb itself reads."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or WANDB_URL).hostname
    try:
        return host is not None and netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _tensorboard(run: TrackedRun) -> Tracker:
    # An extra: imported by those who use it.
    from orchestration.trackers.tensorboard_files import TensorBoardTracker

    return TensorBoardTracker(run)


def _wandb(run: TrackedRun, config: WandbConfig) -> Tracker:
    # Reports to its makers; read when it is imported.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # Else it writes into the terminal view where it found its key.
    os.environ.setdefault("WANDB_SILENT", "true")
    # An extra: imported by those who use it.
    from orchestration.trackers.wandb_run import WandbTracker

    return WandbTracker(run, config)


def _mlflow(run: TrackedRun, config: MlflowConfig) -> Tracker:
    # Reports to its makers; read when it is imported.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Else it writes its run's address into the terminal view.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if config.tracking_uri is None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it wants a database
    # An extra: imported by those who use it.
    from orchestration.trackers.mlflow_run import MlflowTracker

    return MlflowTracker(run, config)
