"""What the benchmarks share: the workers' environment, interleaved rounds, and a plain table.

Absolute times of a shared machine mean little, so the sides of a comparison take turns within one process:
a round times each side once, and a ratio is taken within a round.
"""

import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

from actors.config import RolloutConfig
from actors.engine_options import engine_environment
from core.config import Resources
from core.remote import actor_options

Round = dict[str, float]
"""What one round measured: seconds, or rates, by name."""

_MARK = "LEASH_BENCHMARK_ENVIRONMENT"


def enter_worker_environment() -> None:
    """Start this program anew with the variables that Ray workers get, unless it already has them.

    OpenMP and the allocator read theirs when a process starts, so setting them here would be too late.
    """
    if _MARK in os.environ:
        return
    variables = actor_options("benchmark", Resources(), engine_environment(RolloutConfig()))["runtime_env"][
        "env_vars"
    ]
    os.execve(
        sys.executable,
        [sys.executable, *sys.orig_argv[1:]],
        {**os.environ, "DS_ACCELERATOR": "cpu", **variables, _MARK: "1"},
    )


def interleave(sides: Sequence[Callable[[], Round]], *, rounds: int, warmup: int = 1) -> list[Round]:
    """Run the sides in turn, A B A B ..., and give what each round measured after the warm-up."""
    measured: list[Round] = []
    for index in range(warmup + rounds):
        merged: Round = {}
        for side in sides:
            merged |= side()
        if index >= warmup:
            measured.append(merged)
    return measured


def summary(rounds: Sequence[Round], value: Callable[[Round], float], digits: int = 2) -> list[str]:
    """Median, least and greatest of a value over the rounds, as table cells."""
    values = [value(measured) for measured in rounds]
    return [f"{number:.{digits}f}" for number in (statistics.median(values), min(values), max(values))]


def print_table(title: str, header: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """First column to the left, numbers to the right."""
    lines = [list(header), *([name, *cells] for name, cells in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    print(f"\n{title}")
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        print("  ".join(cells))
    sys.stdout.flush()
