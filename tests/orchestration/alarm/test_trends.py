import pytest

from orchestration.alarm.baseline import Spread
from orchestration.alarm.trends import gain_per_sqrt_kl, gold_drawdown, trends_of

SPREADS = {"score_gain": Spread(mean=0.0, std=0.2), "gold_gain": Spread(mean=0.0, std=0.15)}


def steps(golds: list[float], scores: list[float]) -> list[dict[str, float]]:
    return [
        {"signal_gold_gain": gold, "signal_score_gain": score}
        for gold, score in zip(golds, scores, strict=True)
    ]


def test_four_nats_that_bought_one_deviation() -> None:
    assert gain_per_sqrt_kl(1.0, 4.0) == pytest.approx(0.5)


def test_what_was_bought_is_compared_with_an_ordinary_run_from_a_nat_on() -> None:
    history = steps([0.0], [1.0])
    value, spread = trends_of(history, 4.0, SPREADS)["gain_per_sqrt_kl"]
    assert (value, spread.mean, spread.std) == (0.5, 0.35, 0.1)
    assert "gain_per_sqrt_kl" not in trends_of(history, 0.9, SPREADS)
    assert "gain_per_sqrt_kl" not in trends_of([{}], 4.0, SPREADS)


def test_gold_that_falls_while_the_score_rises() -> None:
    golds, scores = [0.0, 0.9, 0.9, 0.9, 0.6, 0.3, 0.0], [0.0, 1.0, 1.0, 1.0, 1.5, 1.5, 1.5]
    # Windows of three end at steps 3 to 7; the best of those before the last three, steps 3 and 4, is 0.9.
    assert gold_drawdown(steps(golds, scores)) == pytest.approx(0.9 - 0.3)
    _, spread = trends_of(steps(golds, scores), 0.0, SPREADS)["gold_drawdown"]
    assert spread.mean == 0
    assert spread.std == pytest.approx(0.15 * (2 / 3) ** 0.5)


def test_gold_that_falls_with_the_score_is_no_drawdown() -> None:
    assert gold_drawdown(steps([1, 1, 1, 0, 0, 0], [2, 2, 2, 0, 0, 0])) == 0


def test_gold_that_rises_is_no_drawdown() -> None:
    assert gold_drawdown(steps([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1])) == 0


def test_two_windows_that_do_not_touch_are_needed() -> None:
    assert gold_drawdown(steps([1, 1, 1, 0, 0], [0] * 5)) is None
    assert gold_drawdown(steps([1, 1, 1, 0, 0, 0], [0] * 6)) == pytest.approx(1.0)
    assert gold_drawdown([{}] * 9) is None
