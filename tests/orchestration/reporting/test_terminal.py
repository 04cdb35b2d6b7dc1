"""What people see, on a clock that the test turns: plain lines, the live panel, the table at the end."""

import io
import re

import pytest
from rich.console import Console

from orchestration.reporting.terminal import (
    TerminalView,
    before_after_markdown,
    before_after_table,
    sparkline,
)

RECORD = {
    "step": 1.0,
    "score_mean": 1.25,
    "reward_vader": 0.5,
    "reward_human_ratings": 1.25,
    "kl_nats_per_sequence": 3.5,
    "kl_coef": 0.05,
    "completion_tokens": 23.4,
    "tokens_per_second_run": 118.2,
    "step_s": 10.0,
    "push_s": 0.81,
    "logprob_gap_max": 4.6e-5,
}


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def plain() -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=False)


def terminal(encoding: str = "utf-8") -> Console:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    return Console(file=stream, width=100, height=40, force_terminal=True, color_system=None, _environ={})


def shown(console: Console) -> str:
    """All that was written, without the sequences that move the cursor."""
    console.file.seek(0)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.read())


def take_step(view: TerminalView, time: FakeTime, record: dict[str, float]) -> None:
    for phase, seconds in (("sampling", 2.0), ("learning", 7.0), ("pushing weights", 1.0)):
        view.phase(phase)
        time.now_s += seconds
    view.step(record)


def test_without_a_terminal_each_step_is_one_line_of_plain_text() -> None:
    console, time = plain(), FakeTime()
    view = TerminalView(console, time)
    view.start("tiny", 20)
    view.phase("starting workers")
    time.now_s += 30.0
    take_step(view, time, RECORD)
    take_step(view, time, {**RECORD, "step": 2.0, "score_mean": -10.5, "kl_nats_per_sequence": 12.25})
    view.stop()
    lines = shown(console).splitlines()
    assert lines[0] == "tiny: 20 steps"
    assert lines[1:5] == [
        "   0:00  starting workers ...",
        "   0:30  sampling ...",
        "   0:32  learning ...",
        "   0:39  pushing weights ...",
    ]
    assert lines[5] == (
        "   0:40  step  1/20  reward   1.250  KL   3.50 nats x   0.05    23.4 tokens     118 tokens/s"
        "    10.0 s  gap 4.6e-05  left    3:10  learning 70%, sampling 20%, pushing weights 10%"
    )
    assert len(lines) == 7
    assert [column.start() for column in re.finditer("  KL| nats|  gap|  left", lines[6])] == [
        column.start() for column in re.finditer("  KL| nats|  gap|  left", lines[5])
    ]
    assert shown(console).isascii()


def test_a_figure_that_is_missing_is_a_dash() -> None:
    console, time = plain(), FakeTime()
    view = TerminalView(console, time)
    view.start("tiny", 20)
    take_step(view, time, {"step": 1.0})
    line = shown(console).splitlines()[-1]
    assert (
        "reward       -  KL      - nats x      -       - tokens       - tokens/s       - s  gap       -"
        in line
    )
    assert "left    3:10" in line


def test_the_live_panel_shows_the_last_step_and_what_the_run_waits_for() -> None:
    console, time = terminal(), FakeTime()
    view = TerminalView(console, time)
    view.start("tiny", 20)
    try:
        for step in range(1, 4):
            take_step(view, time, {**RECORD, "step": float(step), "score_mean": float(step)})
        view.note("saved [a checkpoint]")
        view.phase("evaluating")
        time.now_s += 5.0
    finally:
        view.stop()
        view.stop()
    text = shown(console)
    panel = text[text.rindex("leash tiny") :]
    assert "saved [a checkpoint]" in text
    assert "step 3 of 20" in panel
    assert "0:35 elapsed, 2:50 left" in panel
    assert "learning 70%  sampling 20%  pushing weights 10%" in panel
    assert "3.000  ▁▄█   first 1.000" in panel
    assert "vader 0.500   human_ratings 1.250" in panel
    assert "3.50 nats a completion   coefficient 0.05" in panel
    assert "log-prob gap 4.6e-05 nats   weight push 0.81 s" in panel


@pytest.mark.parametrize("console", [plain(), terminal()], ids=["plain", "live"])
def test_a_note_moves_no_cursor_and_sets_no_title(console: Console) -> None:
    TerminalView(console, FakeTime()).note("alarm: \x1b]0;title\x07\x1b[2Jso good 很好\nnext")
    console.file.seek(0)
    assert console.file.read().splitlines() == ["alarm: ]0;title[2Jso good 很好", "next"]


def test_the_live_panel_can_be_drawn_before_the_first_step_and_in_ascii() -> None:
    console = terminal("ascii")
    view = TerminalView(console, FakeTime())
    view.start("tiny", 20)
    view.phase("starting workers")
    view.stop()
    text = shown(console)
    assert "step 0 of 20" in text
    assert "0:00 elapsed, - left" in text
    assert text.isascii()


def test_a_resumed_run_counts_only_the_steps_that_are_left() -> None:
    console, time = plain(), FakeTime()
    view = TerminalView(console, time)
    view.start("tiny", 20)
    take_step(view, time, {**RECORD, "step": 18.0})
    assert "left    0:20" in shown(console)


ROW = {
    "prompt": "The film's [bold]",
    "before": "is\na\x1b[2J mess | really",
    "after": "is fun",
    "reward_before": -1,
    "reward_after": 2,
}
SUMMARY = {
    "reward_before": {"mean": -0.04, "std": 1.91, "count": 128},
    "reward_after": {"mean": 2.4, "std": 1.5, "count": 128},
    "reward_at_matched_length": {"before": 0.5, "after": 2.25, "gain_in_std": 1.3},
    "rewards_by_source": {"vader": {"before": 0.25, "after": 0.5}},
    "kl_target": None,
    "kl_nats_per_sequence": 5.43219,
    "weight_push_parts_s": {"load": 0.25, "verify": 0.125},
    "peak_memory_bytes": {"learner-0": 3 * 2**30},
    "seed": 0,
}
FIGURES = [
    ("reward", "-0.040 (sd 1.910, 128) -> 2.400 (sd 1.500, 128)"),
    ("reward at matched length", "0.5 -> 2.25"),
    ("reward at matched length gain in std", "1.3"),
    ("rewards by source vader", "0.25 -> 0.5"),
    ("kl target", "-"),
    ("kl nats per sequence", "5.432"),
    ("weight push parts s", "load 0.25, verify 0.125"),
    ("peak memory bytes", "learner-0 3.00 GiB"),
    ("seed", "0"),
]


def test_before_and_after_stand_side_by_side_with_the_summary_below() -> None:
    console = Console(file=io.StringIO(), width=120)
    before_after_table([ROW], SUMMARY, console)
    text = shown(console)
    assert re.search(r"The film's \[bold\] +is a\[2J mess \| really +is fun +-1.00 -> 2.00", text)
    figures = [re.split("  +", line.strip(), maxsplit=1) for line in text.splitlines()[-len(FIGURES) :]]
    assert figures == [list(figure) for figure in FIGURES]
    assert "\x1b" not in text


def test_the_table_shows_a_screen_of_prompts_and_says_of_how_many() -> None:
    console = Console(file=io.StringIO(), width=120)
    before_after_table([ROW] * 128, {}, console)
    assert shown(console).count("is fun") == 12
    assert "12 of 128 prompts" in shown(console)


def test_before_and_after_as_markdown_keeps_the_text_in_its_cell() -> None:
    lines = before_after_markdown([ROW], SUMMARY).splitlines()
    assert lines[4 : 4 + len(FIGURES)] == [f"| {label} | {text} |" for label, text in FIGURES]
    assert lines[-1] == r"| The film's \[bold\] | is a\[2J mess \| really | is fun | -1.00 -> 2.00 |"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([3.0], "▄"),
        ([1.0, 1.0], "▄▄"),
        ([0.0, 1.0, 2.0, 7.0], "▁▂▃█"),
        ([0.0, float("nan"), 1.0, float("inf")], "▁ █ "),
    ],
)
def test_sparkline(values: list[float], line: str) -> None:
    assert sparkline(values) == line
