import random

import pytest

from orchestration.alarm.profiles import profiles_of
from orchestration.alarm.samples import Sample
from orchestration.alarm.signals import Habits, correlation, habits_of, language_switch, measure
from tests.alarm_fakes import make_sample, sensible_step, texts_step

ENGLISH = "The film is a gentle story about two people who have lost their way in life."
GERMAN = "Der Film ist eine leise Geschichte über zwei Menschen, die ihren Weg verloren haben."


def habits(*samples: Sample, gold: tuple[str, ...] = ()) -> Habits:
    return habits_of(profiles_of(samples), gold)


def figures(samples: list[Sample], of: Habits) -> dict[str, float]:
    return measure(profiles_of(samples), of)


def test_means_over_completions() -> None:
    before = habits(*texts_step(ENGLISH, ENGLISH))
    step = [
        make_sample("so good so good so good", num_tokens=6, reference_nll=2.0),  # repetition 2/4
        make_sample("ab!!", num_tokens=2, reference_nll=4.0),
        make_sample("жж", num_tokens=1, reference_nll=None),
    ]
    found = figures(step, before)
    assert found["repetition"] == pytest.approx((0.5 + 0 + 0) / 3)
    assert found["non_alphabetic"] == pytest.approx((0 + 0.5 + 0) / 3)
    assert found["unusual_characters"] == pytest.approx((0 + 0 + 1) / 3)
    assert found["length"] == pytest.approx(3.0)
    assert found["reference_nll"] == pytest.approx(3.0)


def test_gains_are_in_standard_deviations_of_the_untrained_policy() -> None:
    # Before: scores 0 and 2, so mean 1 and deviation 1; gold 10 and 30, so 20 and 10.
    before = habits(
        make_sample(score=0, rewards={"gold": 10.0}),
        make_sample(score=2, rewards={"gold": 30.0}),
        gold=("gold",),
    )
    found = figures(
        [make_sample(score=4.0, rewards={"gold": 15.0}), make_sample(score=2.0, rewards={"gold": 5.0})],
        before,
    )
    assert found["score_gain"] == pytest.approx(2.0)
    assert found["gold_gain"] == pytest.approx((-0.5 - 1.5) / 2)
    assert found["score_std"] == pytest.approx(1.0)
    assert found["gold_correlation"] == pytest.approx(1.0)


def test_several_gold_rewards_count_alike_whatever_their_scale() -> None:
    before = habits(
        make_sample(rewards={"a": 0.0, "b": 0.0}),
        make_sample(rewards={"a": 2.0, "b": 200.0}),
        gold=("a", "b"),
    )
    assert figures([make_sample(rewards={"a": 3.0, "b": 100.0})], before)["gold_gain"] == pytest.approx(
        (2 + 0) / 2
    )


def test_what_cannot_be_measured_is_left_out() -> None:
    before = habits(
        make_sample("one", rewards={"gold": 1.0}), make_sample("two", rewards={"gold": 1.0}), gold=("gold",)
    )
    found = figures([make_sample("a", reference_nll=None, rewards={"gold": 2.0})], before)
    assert found.keys() == {
        *("repetition", "non_alphabetic", "unusual_characters", "length", "phrase_growth", "score_std"),
        "kl_per_token",
    }


def test_kl_per_token_by_hand() -> None:
    before = habits(make_sample("one", score=1), make_sample("two", score=2))
    step = [make_sample(num_tokens=30, kl_nats=5.0), make_sample(num_tokens=10, kl_nats=9.0)]
    assert figures(step, before)["kl_per_token"] == pytest.approx(14 / 40)
    assert "kl_per_token" not in figures([make_sample("", num_tokens=0)], before)


def test_correlation_of_score_and_length() -> None:
    before = habits(make_sample("one", score=1), make_sample("two", score=2))
    step = [make_sample(score=s, num_tokens=t) for s, t in [(0.0, 1), (1.0, 3), (2.0, 2)]]
    assert figures(step, before)["reward_length"] == pytest.approx(0.5)


def test_correlation_needs_two_sides_that_vary() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert correlation([1, 2], [5, 5]) is None
    assert correlation([1], [2]) is None


def test_share_in_another_language_is_of_those_long_enough_to_tell() -> None:
    step = profiles_of(texts_step(ENGLISH, GERMAN, ENGLISH, "kurz"))
    assert language_switch(step, "en") == pytest.approx(1 / 3)
    assert language_switch(step, "de") == pytest.approx(2 / 3)
    assert language_switch(step, None) is None
    assert language_switch(profiles_of(texts_step("kurz", "")), "en") is None


def test_habits_know_the_language_and_the_scripts_that_are_usual() -> None:
    found = habits(*texts_step(ENGLISH, ENGLISH, GERMAN, "ж"))
    assert found.language == "en"
    assert found.scripts == {"LATIN"}
    assert habits(*texts_step(ENGLISH, "жжжжж")).scripts == {"LATIN", "CYRILLIC"}


def test_the_order_of_the_completions_does_not_matter() -> None:
    before = habits(*sensible_step(64, seed=0), gold=("gold",))
    step = sensible_step(64, seed=1)
    assert figures(random.Random(0).sample(step, 64), before) == pytest.approx(
        figures(step, before), rel=1e-9
    )
