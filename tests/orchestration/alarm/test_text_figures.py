import pytest

from orchestration.alarm.text_figures import (
    kinds_of_characters,
    ngrams,
    non_alphabetic,
    num_letters,
    phrases_of,
    repetition,
    unusual_characters,
    words_of,
)

LATIN = frozenset({"LATIN"})


def test_words_are_in_lower_case_and_every_punctuation_mark_is_one() -> None:
    assert words_of("It's  GREAT!!\nNo, really.") == ["it's", "great", "!", "!", "no", ",", "really", "."]


def test_a_sign_of_chinese_is_a_word() -> None:
    assert words_of("好电影 ok") == ["好", "电", "影", "ok"]


def test_ngrams_are_all_runs() -> None:
    assert ngrams(["a", "b", "c"], 2) == ["a b", "b c"]
    assert ngrams(["a"], 2) == []


def test_phrases_have_one_to_four_words() -> None:
    assert phrases_of(["a", "b", "a"]) == {"a", "b", "a b", "b a", "a b a"}
    assert "a b c d" in phrases_of(list("abcde"))
    assert "a b c d e" not in phrases_of(list("abcde"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so good so good so good", 2 / 4),  # of 4 runs of three, the last two have occurred
        ("one two three four", 0.0),
        ("!!!!!", 2 / 3),
        ("too short", 0.0),
        ("", 0.0),
    ],
)
def test_repetition(text: str, expected: float) -> None:
    assert repetition(words_of(text)) == pytest.approx(expected)


def test_characters_are_told_apart_by_kind() -> None:
    assert kinds_of_characters("Ab 1!é\nж\u200b") == {
        "LATIN": 3,
        "space": 2,
        "other": 2,
        "CYRILLIC": 1,
        "control": 1,
    }


def test_vowel_signs_and_signs_of_chinese_are_letters() -> None:
    assert kinds_of_characters("हिंदी") == {"DEVANAGARI": 5}
    assert kinds_of_characters("电影") == {"CJK": 2}
    assert num_letters(kinds_of_characters("हिंदी a1")) == 6


@pytest.mark.parametrize(
    ("text", "expected"), [("ab!! ", 0.5), ("ab c", 0.0), ("12", 1.0), ("  ", 0.0), ("", 0.0)]
)
def test_share_of_what_is_no_letter_leaves_spaces_out(text: str, expected: float) -> None:
    assert non_alphabetic(kinds_of_characters(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("abcd", 0.0), ("abж\x00", 0.5), ("a\ufffd", 0.5), ("a !", 0.0), ("a\n\t", 0.0), ("", 0.0)],
)
def test_unusual_are_control_characters_and_other_scripts(text: str, expected: float) -> None:
    assert unusual_characters(kinds_of_characters(text), LATIN) == expected


def test_a_script_that_is_usual_is_not_unusual() -> None:
    assert unusual_characters(kinds_of_characters("abжж"), frozenset({"LATIN", "CYRILLIC"})) == 0
