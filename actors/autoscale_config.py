"""Recipe table `[rollout.autoscale]`."""

from pydantic import Field

from core.config import Section


class AutoscaleConfig(Section):
    """How the number of rollout workers follows what waits for what."""

    min_workers: int = Field(default=1, ge=1)
    """Never fewer."""
    max_workers: int = Field(ge=1)
    """Never more."""
    grow_above: float = Field(default=0.5, gt=0, lt=1)
    """More workers when the learner waits a larger share of the step for rollouts."""
    shrink_below: float = Field(default=0.1, ge=0, lt=1)
    """Fewer workers when it waits a smaller share."""
    window_steps: int = Field(default=3, ge=1)
    """Steps that a decision looks at, all of them since the last change."""
