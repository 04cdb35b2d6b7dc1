"""What a run shows while it runs: a live panel on a terminal, one aligned line a step elsewhere.

Knows nothing of the run but what it is told: `phase` when the loop turns to something else, `step` with the
figures of a finished step, where a figure that is missing is shown as a dash.
"""

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestration.loop.phase_clock import PhaseClock
from orchestration.printable import printable

_DASH = "-"
_SPARKLINE, _ASCII_SPARKLINE = "▁▂▃▄▅▆▇█", "_.-=+*#@"
_BAR_WIDTH = 40
"""Characters of the progress bar, of the bar of phases and, one a step, of the sparkline."""
_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "white")
_TABLE_ROWS = 12
"""Prompts that the table at the end shows: about a screen of them."""
_PANEL_WIDTH = 100
_PLAIN_WIDTH = 120
"""Columns of tables where there is no terminal to ask."""


class TerminalView:
    """The run as people watch it.

    view.start(recipe.name, steps)
    view.phase("sampling"); ...; view.phase("learning"); ...; view.step(record)     # each step
    view.stop()                                                                     # also when it fails
    """

    def __init__(self, console: Console | None = None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._console = console or _console()
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._ascii_only = not self._console.encoding.lower().startswith("utf")
        self._live: Live | None = None
        self._lock = threading.Lock()  # a thread of its own draws the panel
        self._now_s = now_s
        self._clock = PhaseClock(now_s)
        self._name, self._num_steps = "", 0
        self._phases_seen: set[str] = set()
        self._records: list[dict[str, Any]] = []

    def start(self, recipe_name: str, steps: int) -> None:
        """Begin to show a run whose last step has the number `steps`."""
        self._name, self._num_steps = recipe_name, steps
        self._clock = PhaseClock(self._now_s)
        if self._is_live:
            self._live = Live(get_renderable=self._panel, console=self._console, refresh_per_second=4)
            self._live.start()
        else:
            self._print(f"{recipe_name}: {steps} steps")

    def last_step(self, steps: int) -> None:
        """The run now ends with this step."""
        self._num_steps = steps

    def phase(self, name: str) -> None:
        """The run now does this, or waits for it."""
        with self._lock:
            self._clock.turn_to(name)
        if not self._is_live and name not in self._phases_seen:  # each once: the steps' lines tell the rest
            self._print(f"{self._elapsed():>7}  {name} ...")
        self._phases_seen.add(name)

    def step(self, record: Mapping[str, Any]) -> None:
        """The figures of one finished step, as they are written to metrics.jsonl."""
        with self._lock:
            self._records.append(dict(record))
            self._clock.end_step(record.get("step_s"))
        if not self._is_live:
            self._print(self._line())

    def note(self, text: str) -> None:
        """A line that stays, above the panel."""
        self._print(text)

    def stop(self) -> None:
        """Show the last state and give the terminal back. May be called more than once, or before `start`."""
        if self._live is not None:
            with self._lock:
                self._clock.turn_to("stopped")
            self._live.stop()
            self._live = None

    def _line(self) -> str:
        figure = partial(_figure, self._records[-1])
        step = f"{figure('step', '.0f'):>{len(str(self._num_steps))}}/{self._num_steps}"
        shares = ", ".join(f"{phase} {share:.0%}" for phase, share in self._clock.shares(1).items())
        return (
            f"{self._elapsed():>7}  step {step}"
            f"  reward {figure('score_mean', '.3f'):>7}"
            f"  KL {figure('kl_nats_per_sequence', '.2f'):>6} nats x {figure('kl_coef', '.3g'):>6}"
            f"  {figure('completion_tokens', '.1f'):>6} tokens"
            f"  {figure('tokens_per_second_run', '.0f'):>6} tokens/s"
            f"  {figure('step_s', '.1f'):>6} s"
            f"  gap {figure('logprob_gap_max', '.1e'):>7}"
            f"  left {self._left():>7}  {shares}"
        ).rstrip()

    def _panel(self) -> RenderableType:
        with self._lock:
            done = self._steps_done()
            head = Table.grid(padding=(0, 2))
            head.add_row(
                ProgressBar(total=self._num_steps, completed=done, width=_BAR_WIDTH),
                Text(f"step {done} of {self._num_steps}", style="bold"),
                f"{self._elapsed()} elapsed, {self._left()} left",
            )
            grid = Table.grid(padding=(0, 2))
            for label, content in self._rows(self._records[-1] if self._records else {}):
                grid.add_row(Text(label, style="dim"), content)
            title = Text(f"leash {self._name}", style="bold")
            return Panel(Group(head, "", grid), title=title, width=min(_PANEL_WIDTH, self._console.width))

    def _rows(self, record: Mapping[str, Any]) -> Iterator[tuple[str, Text]]:
        figure = partial(_figure, record)
        rewards = [each["score_mean"] for each in self._records if "score_mean" in each]
        line = sparkline(rewards[-_BAR_WIDTH:], ascii_only=self._ascii_only)
        first = f"   first {rewards[0]:.3f}" if rewards else ""
        sources = [key for key in record if key.startswith("reward_")]
        kl, coefficient = figure("kl_nats_per_sequence", ".2f"), figure("kl_coef", ".3g")
        gap, push = figure("logprob_gap_max", ".1e"), figure("push_s", ".2f")
        speed = f"{figure('tokens_per_second_run', '.0f')} tokens/s   {figure('step_s', '.1f')} s a step"
        yield "now", Text.assemble((self._clock.phase, "bold cyan"), f"  {self._clock.phase_s:.0f} s")
        yield "time", _stacked_bar(self._clock.shares(), ascii_only=self._ascii_only)
        yield (
            "reward",
            Text.assemble((figure("score_mean", ".3f"), "bold green"), "  ", (line, "green"), first),
        )
        yield "", Text("   ".join(f"{key.removeprefix('reward_')} {figure(key, '.3f')}" for key in sources))
        yield "KL", Text.assemble((kl, "bold"), f" nats a completion   coefficient {coefficient}")
        yield "length", Text(f"{figure('completion_tokens', '.1f')} tokens a completion")
        yield "speed", Text(speed)
        yield "checks", Text(f"log-prob gap {gap} nats   weight push {push} s")

    def _steps_done(self) -> int:
        return int(self._records[-1].get("step", len(self._records))) if self._records else 0

    def _elapsed(self) -> str:
        return _duration(self._clock.elapsed_s)

    def _left(self) -> str:
        """Time left at the pace of the last steps; what the run does after the last step is not counted."""
        pace_s = self._clock.pace_s
        return _DASH if pace_s is None else _duration(pace_s * max(self._num_steps - self._steps_done(), 0))

    def _print(self, line: str) -> None:
        self._console.print(Text(printable(line)), soft_wrap=True)


def before_after_table(
    rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], console: Console | None = None
) -> None:
    """Print the first completions side by side, then the summary.

    A row has `prompt`, `before`, `after`, `reward_before` and `reward_after`.
    """
    console = console or _console()
    table = Table(box=box.SIMPLE_HEAD)
    for column, ratio in (("prompt", 2), ("before", 4), ("after", 4)):
        table.add_column(column, ratio=ratio)
    table.add_column("reward", justify="right", no_wrap=True)
    for row in rows[:_TABLE_ROWS]:
        rose = row["reward_after"] > row["reward_before"]
        texts = [Text(_clean(row[column])) for column in ("prompt", "before", "after")]
        table.add_row(*texts, Text(_change(row), style="green" if rose else "red"))
    figures = Table.grid(padding=(0, 2))
    for label, text in _summary_lines(summary):
        figures.add_row(Text(label, style="dim"), Text(text))
    if rows[_TABLE_ROWS:]:
        table.caption = f"{_TABLE_ROWS} of {len(rows)} prompts"
    console.print(table, figures)


def before_after_markdown(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """The same as a Markdown document."""
    lines = ["# Before and after", "", "| figure | |", "| --- | --- |"]
    lines += [f"| {label} | {text} |" for label, text in _summary_lines(summary)]
    lines += ["", "| prompt | before | after | reward |", "| --- | --- | --- | ---: |"]
    for row in rows:
        texts = [_escape_markdown(_clean(row[column])) for column in ("prompt", "before", "after")]
        lines.append(f"| {' | '.join(texts)} | {_change(row)} |")
    return "\n".join(lines) + "\n"


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def sparkline(values: Sequence[float], *, ascii_only: bool = False) -> str:
    """One character a value, from the lowest to the highest; a gap for what is not finite."""
    blocks = _ASCII_SPARKLINE if ascii_only else _SPARKLINE
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    levels = ((value - low) / (high - low) if high > low else value * 0 + 0.5 for value in values)
    return "".join(
        blocks[int(level * (len(blocks) - 1))] if math.isfinite(level) else " " for level in levels
    )


def _stacked_bar(shares: Mapping[str, float], *, ascii_only: bool) -> Text:
    """The shares as one bar, with a legend on the line below."""
    bar, legend = Text(), []
    for index, (phase, share) in enumerate(shares.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        bar.append(("#" if ascii_only else "█") * round(share * _BAR_WIDTH), style=colour)
        legend.append(Text(f"{phase} {share:.0%}", style=colour))
    return Text("\n").join([bar, Text("  ").join(legend)]) if shares else Text(_DASH)


def _figure(record: Mapping[str, Any], key: str, spec: str) -> str:
    return format(record[key], spec) if record.get(key) is not None else _DASH


def _change(row: Mapping[str, Any]) -> str:
    return f"{row['reward_before']:.2f} -> {row['reward_after']:.2f}"


def _summary_lines(summary: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Label and text of each figure; those before and after stand in one line."""
    for name, value in summary.items():
        stem = name.removesuffix("_before")
        label = f"{above} {stem}".strip().replace("_", " ")
        if name.endswith("_after") and f"{name.removesuffix('_after')}_before" in summary:
            continue
        if f"{stem}_after" in summary:
            yield label, f"{_value(name, value)} -> {_value(name, summary[f'{stem}_after'])}"
        elif isinstance(value, Mapping) and {"before", "after"} <= value.keys():
            yield label, f"{_value(name, value['before'])} -> {_value(name, value['after'])}"
            rest = {key: inner for key, inner in value.items() if key not in ("before", "after")}
            yield from _summary_lines(rest, label)
        elif isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values()):
            yield from _summary_lines(value, label)
        else:
            yield label, _value(name, value)


def _value(name: str, value: Any) -> str:
    match value:
        case None:
            return _DASH
        case Mapping() if value.keys() == {"mean", "std", "count"}:
            return f"{value['mean']:.3f} (sd {value['std']:.3f}, {value['count']})"
        case Mapping():
            return ", ".join(f"{key} {_value(name, inner)}" for key, inner in value.items())
        case int() | float() if name.endswith("_bytes"):
            return f"{value / 2**30:.2f} GiB"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _clean(text: str) -> str:
    """A model's text on one line, without anything that moves the cursor."""
    return printable(" ".join(text.split()))


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", text)
