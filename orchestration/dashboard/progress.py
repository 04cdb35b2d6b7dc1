"""How far a run is, and how long the rest will take."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW_STEPS = 20
"""That the time of a step is estimated from: its median, so that a pause or a checkpoint does not count."""


def progress(records: Sequence[Mapping[str, Any]], steps: int | None) -> dict[str, Any]:
    """Step, number of steps, time spent in finished steps and time that the others will take; None for what is
    not known.

    `seconds_since_start` begins at 0 again when a run is resumed.
    """
    seconds = (record.get("seconds_since_start") for record in records)
    times = [float(value) for value in seconds if isinstance(value, int | float)]
    step = int(records[-1]["step"]) if records else 0
    durations = [_since(before, after) for before, after in zip([0.0, *times], times, strict=False)]
    whole = [duration for index, duration in enumerate(durations) if not _is_first(times, index)]
    recent = whole or durations
    step_s = statistics.median(recent[-WINDOW_STEPS:]) if recent else None
    return {
        "step": step,
        "steps": steps,
        "elapsed_s": sum(durations) if durations else None,
        "step_s": step_s,
        "left_s": None if steps is None or step_s is None else max(steps - step, 0) * step_s,
    }


def _since(before: float, after: float) -> float:
    return after - before if after >= before else after


def _is_first(times: Sequence[float], index: int) -> bool:
    """Whether the step is the first one since the run was started or resumed: it includes the start."""
    return index == 0 or times[index] < times[index - 1]
