"""How many rollout workers a run needs, from who waits for whom."""

from collections import deque

from actors.autoscale_config import AutoscaleConfig


class Autoscaler:
    """More workers while the learner waits for rollouts, fewer while it hardly does.

    scale_to = autoscaler.after_step(waited_s, step_s)     # None: stay

    Damped: it looks at the mean of the steps since its last change, so that a new worker's effect is seen before
    the next decision, and changes the number by a quarter at most.
    """

    def __init__(self, config: AutoscaleConfig, size: int) -> None:
        self._config = config
        self._size = size
        self._waits: deque[float] = deque(maxlen=config.window_steps)
        self.reason = ""
        """Of the last change, in words."""

    def after_step(self, waited_s: float, step_s: float) -> int | None:
        """The number of workers to have from now on, if another. Of the step's `step_s` seconds the learner waited
        `waited_s` for rollouts."""
        self._waits.append(waited_s / step_s)
        if len(self._waits) < self._config.window_steps:
            return None
        waited = sum(self._waits) / len(self._waits)
        size = min(max(self._wanted(waited), self._config.min_workers), self._config.max_workers)
        if size == self._size:
            return None
        self.reason = (
            f"the learner waited {waited:.0%} of the last {len(self._waits)} steps for rollouts "
            f"(grow above {self._config.grow_above:.0%}, shrink below {self._config.shrink_below:.0%})"
        )
        self._waits.clear()
        self._size = size
        return size

    def set_size(self, size: int) -> None:
        """Somebody else has changed the number: go on from there, and look anew."""
        self._size = size
        self._waits.clear()

    def _wanted(self, waited: float) -> int:
        by = max(1, self._size // 4)
        if waited > self._config.grow_above:
            return self._size + by
        if waited < self._config.shrink_below:
            return self._size - by
        return self._size
