"""How far a run is, and how long the rest will take."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW_STEPS = 20
"""That the time of a step is estimated from: its median, so that a pause or a checkpoint does not count."""


def progress(records: Sequence[Mapping[str, Any]], steps: int | None) -> dict[str, Any]:
    """Step, number of steps, time since the start without that between two tries, and time that the steps to come
    will take; None for what is not known."""
    seconds = (record.get("seconds_since_start") for record in records)
    times = [float(value) for value in seconds if isinstance(value, int | float)]
    step = int(records[-1]["step"]) if records else 0
    durations = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    recent = durations[1:] or durations  # the first step includes the start
    step_s = statistics.median(recent[-WINDOW_STEPS:]) if recent else None
    return {
        "step": step,
        "steps": steps,
        "elapsed_s": times[-1] if times else None,
        "step_s": step_s,
        "left_s": None if steps is None or step_s is None else max(steps - step, 0) * step_s,
    }
