"""Where the time of a run goes: which phase it is in, and the share that each phase had of the last steps."""

import statistics
import time
from collections.abc import Callable

_RECENT_STEPS = 10
"""Steps that shares and pace are taken from: enough to be steady, few enough to follow a change."""


class PhaseClock:
    """Told at every turn what the run does next; a run does, or waits for, one thing at a time.

    clock.turn_to("sampling"); ...; clock.turn_to("learning"); ...; clock.end_step(step_s)     # each step
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._started_s = self._turned_s = now_s()
        self._phase = "starting"
        self._spans: list[tuple[str, float]] = []
        """Phases since the last step, with their seconds."""
        self._steps: list[dict[str, float]] = []
        """Seconds by phase of each step."""

    @property
    def phase(self) -> str:
        return self._phase

    @property
    def phase_s(self) -> float:
        """Seconds in the current phase."""
        return self._now_s() - self._turned_s

    @property
    def elapsed_s(self) -> float:
        return self._now_s() - self._started_s

    @property
    def pace_s(self) -> float | None:
        """Seconds a step, the median of the last ones; None before the first."""
        recent = self._steps[-_RECENT_STEPS:]
        return statistics.median(sum(step.values()) for step in recent) if recent else None

    def turn_to(self, phase: str) -> None:
        self._spans.append((self._phase, self.phase_s))
        self._phase, self._turned_s = phase, self._now_s()

    def end_step(self, step_s: float | None = None) -> None:
        """A step of `step_s` is done; what came before it, such as starting up, is not counted to it."""
        self.turn_to(self._phase)
        left_s = sum(seconds for _, seconds in self._spans) if step_s is None else step_s
        step: dict[str, float] = {}
        for phase, seconds in reversed(self._spans):
            step[phase] = step.get(phase, 0.0) + min(seconds, left_s)
            left_s -= min(seconds, left_s)
        self._steps.append(step)
        self._spans = []

    def shares(self, steps: int = _RECENT_STEPS) -> dict[str, float]:
        """Share of each phase in the time of the last steps, the largest first."""
        seconds: dict[str, float] = {}
        for step in self._steps[-steps:]:
            for phase, phase_s in step.items():
                seconds[phase] = seconds.get(phase, 0.0) + phase_s
        total_s = sum(seconds.values())
        largest_first = sorted(seconds.items(), key=lambda item: -item[1])
        return {phase: phase_s / total_s for phase, phase_s in largest_first if phase_s > 0}
