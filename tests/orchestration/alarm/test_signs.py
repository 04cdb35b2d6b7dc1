import re
from pathlib import Path

import pytest

from orchestration.alarm.baseline import Spread
from orchestration.alarm.config import AlarmLimits
from orchestration.alarm.signs import SIGNS, Sign


def sign(name: str, direction: int, *, relative: bool = False) -> Sign:
    return Sign(name=name, direction=direction, relative=relative, words="")


def test_every_signal_has_a_limit_and_every_limit_a_signal() -> None:
    assert list(SIGNS) == list(AlarmLimits.model_fields)


@pytest.mark.parametrize(
    ("direction", "relative", "expected"),
    [(1, False, 2.0), (-1, False, -2.0), (0, False, 2.0), (1, True, 0.5)],
)
def test_the_change_is_towards_the_bad(direction: int, relative: bool, expected: float) -> None:
    assert sign("length", direction, relative=relative).change(6.0, 4.0) == expected


def test_a_fall_is_a_change_where_both_directions_are_bad() -> None:
    assert sign("length", 0, relative=True).change(2.0, 4.0) == 0.5


def test_deviation_is_in_standard_deviations() -> None:
    assert sign("repetition", 1).deviation(0.5, Spread(mean=0.1, std=0.2)) == pytest.approx(2.0)


def test_without_a_spread_a_change_as_large_as_its_limit_is_20_deviations() -> None:
    assert AlarmLimits().repetition == 0.1
    assert sign("repetition", 1).deviation(0.1, Spread(mean=0.0, std=0.0)) == pytest.approx(20.0)
    # The limit on lengths is a share, 0.5 of 24.
    assert sign("length", 0, relative=True).deviation(36.0, Spread(mean=24.0, std=0.0)) == pytest.approx(20.0)


def test_there_is_no_share_of_nothing() -> None:
    """Scores of a verifier that the untrained policy never satisfies."""
    nothing = Spread(mean=0.0, std=0.0)
    assert not sign("score_std", -1, relative=True).can_be_told(nothing)
    assert sign("score_std", -1, relative=True).can_be_told(Spread(mean=0.1, std=0.0))
    assert sign("repetition", 1).can_be_told(nothing)


def test_the_docs_say_which_way_is_bad_and_how_far_is_too_far() -> None:
    text = (Path(__file__).parents[3] / "docs" / "alarm.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ((?:rises|falls)[^|]*) \| ([\d.%]+) \|", text, re.MULTILINE)
    directions = {"rises": 1, "falls": -1, "rises or falls": 0}
    told = {name: (directions[way.split(" by")[0]], limit) for name, way, limit in rows}
    limits = AlarmLimits().model_dump()
    assert told == {
        name: (each.direction, f"{limits[name]:.0%}" if each.relative else f"{limits[name]:g}")
        for name, each in SIGNS.items()
    }


def test_words_have_places_for_both_values() -> None:
    for each in SIGNS.values():
        assert "{" not in each.words.format(value=0.5, before=0.25)
