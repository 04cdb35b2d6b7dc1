import random
from collections.abc import Callable, Sequence

import pytest

from orchestration.alarm.diversity import NUM_DRAWS, compression, distinct_2, self_overlap
from orchestration.alarm.profiles import Profile, profiles_of
from tests.alarm_fakes import make_sample, sensible_step, texts_step

Figure = Callable[[Sequence[Profile]], float | None]


def profiles(*texts: str, groups: list[str] | None = None) -> list[Profile]:
    return profiles_of(texts_step(*texts, groups=groups))


def numbered(count: int) -> str:
    return " ".join(f"w{index}" for index in range(count))


def test_pairs_that_are_all_different_are_all_distinct() -> None:
    assert distinct_2(profiles(numbered(2 * NUM_DRAWS))) == pytest.approx(1.0)


def test_distinct_pairs_of_two_completions_that_are_the_same() -> None:
    # 200 pairs, each twice: 200 of 400 are drawn. A pair is missed with probability (200/400)(199/399).
    text = numbered(NUM_DRAWS + 1)
    assert distinct_2(profiles(text, text)) == pytest.approx(1 - (200 / 400) * (199 / 399))


def test_a_step_with_fewer_pairs_than_are_drawn_has_no_distinct_2() -> None:
    assert distinct_2(profiles(numbered(NUM_DRAWS))) is None


def test_what_a_completion_repeats_itself_is_left_to_repetition() -> None:
    once = profiles(numbered(2 * NUM_DRAWS))
    assert distinct_2(profiles(numbered(2 * NUM_DRAWS) + " w0 w1" * 50)) == pytest.approx(
        distinct_2(once), abs=0.01
    )


def test_overlap_counts_other_prompts_only() -> None:
    # Pairs: {a b, b c}, {a b}, {x y}. Of the first, a b is in 1 of 2 others and b c in 0: 1/4. Of the second, a b
    # is in 1 of 2: 1/2. Of the third: 0.
    assert self_overlap(profiles("a b c", "a b", "x y")) == pytest.approx((1 / 4 + 1 / 2 + 0) / 3)
    # The first two now belong together: only the third is another prompt's.
    assert self_overlap(profiles("a b c", "a b", "x y", groups=["one", "one", "two"])) == 0


def test_overlap_of_the_same_text_for_all_prompts_is_1_and_of_one_prompt_unknown() -> None:
    assert self_overlap(profiles("a b c", "a b c")) == pytest.approx(1.0)
    assert self_overlap(profiles("a b c", "a b c", groups=["one", "one"])) is None


def test_compression_sees_texts_that_are_all_alike() -> None:
    varied = compression(profiles_of(sensible_step(64, seed=0)))
    alike = compression(profiles(*["The same old words, again and again, for every single prompt."] * 64))
    assert varied is not None
    assert alike is not None
    assert alike < 0.05 < 0.3 < varied < 0.6
    assert compression(profiles("short")) is None


@pytest.mark.parametrize("figure", [distinct_2, self_overlap, compression])
def test_the_number_and_order_of_completions_do_not_matter(figure: Figure) -> None:
    many = profiles_of(sensible_step(256, seed=0))
    few = [figure(profiles_of(sensible_step(64, seed=seed))) or 0.0 for seed in range(1, 5)]
    assert sum(few) / 4 == pytest.approx(figure(many), rel=0.05)
    shuffled = random.Random(0).sample(many, len(many))
    assert figure(shuffled) == pytest.approx(figure(many), rel=1e-12)


def test_an_empty_completion_is_no_obstacle() -> None:
    step = profiles_of([*sensible_step(64, seed=0), make_sample("", group="empty")])
    assert None not in (distinct_2(step), self_overlap(step), compression(step))
