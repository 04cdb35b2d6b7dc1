"""Recipe table [trackers]: where else a run's figures are written, for people who already watch runs there."""

from typing import Literal

from pydantic import Field

from core.config import Section


class WandbConfig(Section):
    """Weights & Biases. The key comes from WANDB_API_KEY or `wandb login`, another server from WANDB_BASE_URL."""

    project: str = Field(default="leash", min_length=1)
    """Project of the run."""
    entity: str | None = None
    """Team or user that the project belongs to; left out: the key's own."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` writes files that `wandb sync` uploads later; `online` sends figures and samples as they come."""


class MlflowConfig(Section):
    """MLflow. Credentials come from MLFLOW_TRACKING_USERNAME and _PASSWORD, or from MLFLOW_TRACKING_TOKEN."""

    tracking_uri: str | None = None
    """Address of the tracking server; left out: files in the run folder."""
    experiment: str = Field(default="leash", min_length=1)
    """Experiment of the run; it is made if there is none of this name."""


class TrackersConfig(Section):
    """Trackers that a run reports to, beside metrics.jsonl and /metrics. None of them can hold up or end a run."""

    tensorboard: bool = False
    """Write event files into the run folder."""
    wandb: WandbConfig | None = None
    """Report to Weights & Biases."""
    mlflow: MlflowConfig | None = None
    """Report to MLflow."""
    samples_per_step: int = Field(default=8, ge=0)
    """Completions of each step that trackers show with their rewards, spread evenly over the step; 0: none."""
