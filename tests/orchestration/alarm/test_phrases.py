import pytest

from orchestration.alarm.phrases import count_phrases, grown_phrases, phrase_growth
from orchestration.alarm.profiles import Profile, profiles_of
from tests.alarm_fakes import make_sample, texts_step

BEFORE = count_phrases(profiles_of(texts_step(*["the cat"] * 5, *["a dog"] * 95)))
"""100 completions: "the" and "cat" in 5%, "a" and "dog" in 95%."""


def step(*texts: str) -> list[Profile]:
    return profiles_of(texts_step(*texts))


def test_growth_is_the_largest_rise_of_a_share() -> None:
    now = count_phrases(step("the cat", "the end", "so what", "so be it"))
    # "the": from 0.05 to 2/4; "so": from 0 to 2/4.
    assert phrase_growth(now, BEFORE) == pytest.approx(0.5)


def test_a_phrase_that_was_frequent_before_does_not_count() -> None:
    assert phrase_growth(count_phrases(step("a dog", "a dog")), BEFORE) == 0


def test_a_phrase_counts_once_in_a_completion() -> None:
    assert phrase_growth(count_phrases(step("so so so so", "a dog")), BEFORE) == pytest.approx(0.5)


def test_the_longest_of_the_phrases_that_grew_alike_is_shown() -> None:
    shown = grown_phrases(step("it is a masterpiece", "what is a masterpiece", "no"), BEFORE)
    assert [phrase.text for phrase in shown][:1] == ["is a masterpiece"]
    assert not any(phrase.text in "is a masterpiece" for phrase in shown[1:])


def test_a_phrase_says_its_shares_and_whether_it_pays() -> None:
    paid = [make_sample("so what", group=str(i), score=2.0) for i in range(3)]
    unpaid = [make_sample("a dog", group="unpaid", score=0.5)]
    (phrase,) = grown_phrases(profiles_of([*paid, *unpaid]), BEFORE)
    assert (phrase.share, phrase.share_before, phrase.score_gain) == (0.75, 0.0, 1.5)
    assert str(phrase) == '"so what" is in 75% of the completions (before: 0%), which score +1.50'


def test_a_phrase_that_all_have_has_no_others_to_score_more_than() -> None:
    (phrase,) = grown_phrases(step("so what", "so what"), BEFORE)
    assert phrase.score_gain is None
    assert str(phrase) == '"so what" is in 100% of the completions (before: 0%)'
