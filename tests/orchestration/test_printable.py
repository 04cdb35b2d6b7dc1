"""What of a text reaches a terminal."""

import pytest

from orchestration.printable import printable


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("two lines\n\tindented", "two lines\n\tindented"),
        ("naïve 很好 👍🏽 👩\u200d🚀 क्\u200cष", "naïve 很好 👍🏽 👩\u200d🚀 क्\u200cष"),
        ("5\u00a0000\u3000円", "5\u00a0000\u3000円"),
        ("\x1b]0;title\x07 \x1b[2J \x9b31m", "]0;title [2J 31m"),
        ("over\rwritten\x08\x7f\x00", "overwritten"),
        ("turned \u202earound\u2066", "turned around"),
        ("half \ud83d", "half "),
    ],
)
def test_text_stays_and_what_steers_a_terminal_goes(text: str, left: str) -> None:
    assert printable(text) == left
