"""What every tracker is given, and under which names: figures and tables are made here, once for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from core.metrics.contract import PREFIX, metric_of
from core.metrics.registry import METRICS

Cell = str | float | int | bool


@dataclass(frozen=True, slots=True)
class Table:
    """Samples of one step: the same columns in every row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell | None, ...], ...]
    """None: a rollout that this reward has not scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """The run that a tracker is opened for. Opened again after a resume, it goes on with the same run."""

    name: str
    folder: Path
    """The run folder. A tracker keeps to a folder of its own in it."""
    settings: Mapping[str, Cell | None]
    """The recipe: a value for every dotted key."""


class Tracker(Protocol):
    """Where a run is followed. Every call may block or raise: `TrackerSink` keeps both from the run.

    tracker.step(8, figures)      # steps rise by one; after a resume they start again behind the checkpoint
    tracker.samples(8, table)     # of the same step, after its figures
    tracker.close(summary)        # last
    """

    def step(self, step: int, figures: Mapping[str, float]) -> None: ...

    def samples(self, step: int, table: Table) -> None: ...

    def event(self, step: int, kind: str, text: str) -> None:
        """Something happened after this step: a worker died, a setting changed."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Write out what is left. No summary: the run ended before its last step."""


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a step's record, under their names in every tracker; what is no metric stays out."""
    return {
        name: float(value)
        for key, value in record.items()
        if isinstance(value, int | float) and (name := _name_of(key)) is not None
    }


def table_of(rows: Sequence[Mapping[str, Any]], count: int) -> Table:
    """So many of a step's rows as `actors/run_samples.py` makes them, spread evenly over the step."""
    count = min(count, len(rows))
    chosen = [rows[place * len(rows) // count] for place in range(count)]
    sources = tuple(dict.fromkeys(source for row in chosen for source in row["rewards"]))
    return Table(
        columns=("prompt", "completion", "score", *(f"reward/{source}" for source in sources), "kl_nats"),
        rows=tuple(
            (
                row["prompt"],
                row["completion"],
                row["score"],
                *(row["rewards"].get(source) for source in sources),
                row["kl_nats"],
            )
            for row in chosen
        ),
    )


def numbers_of(summary: Mapping[str, Any], prefix: str = "summary") -> dict[str, float]:
    """Every number of a summary, however deep, under its path."""
    found: dict[str, float] = {}
    for key, value in summary.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            found |= numbers_of(value, name)
        elif isinstance(value, int | float):
            found[name] = float(value)
    return found


@cache
def _name_of(key: str) -> str | None:
    """`learning/reward/human_ratings` for `reward_human_ratings`: dashboard, metric, labels.

    Trackers group by what stands before the first slash, so the groups are Leash's dashboards.
    """
    found = metric_of(key, METRICS)
    if found is None:
        return None
    metric, labels = found
    return "/".join((metric.panel.dashboard, metric.name.removeprefix(PREFIX), *labels.values()))
