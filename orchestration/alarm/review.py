"""A run's folder, seen step by step by the monitor: what it has measured, or would have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.sample_files import step_files
from orchestration.alarm.baseline import Baseline, baseline_of
from orchestration.alarm.monitor import Alarm, Monitor, gold_of, monitor_of
from orchestration.alarm.samples import heldout_samples, samples_of_step
from orchestration.alarm.signs import SIGNS
from orchestration.recipe.config import Recipe
from orchestration.recipe.loading import load_recipe
from orchestration.run_folder import AFTER_FILE, BEFORE_FILE

HELDOUT = "held-out"
MAX_COLUMNS = 8
"""Steps that fit beside each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A run as the monitor sees it."""

    baseline: Baseline
    records: dict[str, dict[str, float]]
    """By step."""
    alarms: list[tuple[str, Alarm]]
    """With the step."""


def review(folder: Path) -> Review:
    """Step by step; of a run that learns from a dataset, the held-out prompts after training. Raises `UserError`
    where there is nothing to look at."""
    if not (folder / "recipe.toml").is_file():
        raise UserError(f"{folder}: no run (no recipe.toml in it); give the folder of one, such as runs/a")
    recipe = load_recipe(folder / "recipe.toml")
    return _review_heldout(folder, recipe) if recipe.datasets else _review_steps(folder, recipe)


def _review_steps(folder: Path, recipe: Recipe) -> Review:
    monitor = monitor_of(recipe, folder)
    records, alarms = {}, []
    for step, file in step_files(folder).items():
        seen = monitor.look(samples_of_step(file))
        records[str(step)] = seen.record
        alarms += [(str(step), alarm) for alarm in seen.alarms]
    return Review(baseline=monitor.baseline, records=records, alarms=alarms)


def _review_heldout(folder: Path, recipe: Recipe) -> Review:
    files = [folder / BEFORE_FILE, folder / AFTER_FILE]
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{file}: missing, and only the held-out completions of a run that learns from a dataset show its "
                "policy; let it finish"
            )
    before, after = (list(heldout_samples(file)) for file in files)
    baseline = baseline_of(before, gold_of(recipe), step_size=len(after))
    # One look is all there is. Learning to write as people do is a KL that is wanted, and it has bought no reward.
    limits = recipe.alarm.limits.model_copy(update={"gain_per_sqrt_kl": None, "kl_per_token": None})
    once = recipe.alarm.model_copy(update={"patience_steps": 1, "limits": limits})
    seen = Monitor(once, lambda: baseline).look(after)
    return Review(
        baseline=baseline, records={HELDOUT: seen.record}, alarms=[(HELDOUT, alarm) for alarm in seen.alarms]
    )


def review_lines(review: Review) -> Iterator[str]:
    """For people: every signal before training and on the way, and the alarms in words."""
    steps = _evenly(list(review.records))
    rows = [["signal", "untrained", "+-", *steps, "furthest"]]
    for name in SIGNS:
        spread = review.baseline.spreads.get(name)
        values = [review.records[step].get(f"signal_{name}") for step in steps]
        numbers = [spread.mean if spread else None, spread.std if spread else None, *values]
        strays = [
            record[f"deviation_{name}"] for record in review.records.values() if f"deviation_{name}" in record
        ]
        furthest = f"{max(strays, key=abs):+.1f}" if strays else "-"
        rows.append([name, *("-" if number is None else f"{number:.3f}" for number in numbers), furthest])
    yield from _columns(rows)
    yield ""
    if not review.alarms:
        yield "no alarm"
    for step, alarm in review.alarms:
        yield f"step {step}: {alarm.signal}, {alarm.deviation:+.1f} standard deviations: {alarm.sentence}"


def _evenly(steps: list[str]) -> list[str]:
    """So many of the steps as the table has columns for, the first and the last among them."""
    if len(steps) <= MAX_COLUMNS:
        return steps
    return [steps[round(place * (len(steps) - 1) / (MAX_COLUMNS - 1))] for place in range(MAX_COLUMNS)]


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])
