"""Datasets: which texts come out, with which tokens and scores, and what is said of bad ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.config import JsonLinesDataset, MovieReviewDataset, MovieReviewPrompts, RunDataset
from actors.dataset import comparable, load_dataset, load_heldout_texts
from actors.prompts import load_prompts
from actors.run_samples import rows_of
from core.errors import UserError
from core.messages import DemonstrationGroup, Prompt, RolloutGroup
from core.ratings import RATINGS_FILE, TEXTS_FILE
from tests.fakes import FakeChatTokenizer, make_completion, make_group, make_rollout

Examples = list[tuple[str, list[tuple[str, float]]]]


def load(config: Any, *, data_folder: Path | None = None, max_tokens: int = 100) -> list[DemonstrationGroup]:
    groups = load_dataset(config, FakeChatTokenizer(), data_folder=data_folder, max_tokens=max_tokens)
    return [group for group in groups if isinstance(group, DemonstrationGroup)]


def examples(groups: list[DemonstrationGroup]) -> Examples:
    """Prompt, and texts with their scores, of each group."""
    return [
        (group.demonstrations[0].prompt.text, [(text.text, text.score) for text in group.demonstrations])
        for group in groups
    ]


def json_lines(folder: Path, *rows: Any) -> JsonLinesDataset:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return JsonLinesDataset(kind="jsonl", path=str(file))


def test_json_lines_become_tokens_with_the_completion_to_learn(tmp_path: Path) -> None:
    config = json_lines(
        tmp_path,
        {"prompt": "a good", "completion": " film ends"},
        {"text": "no prompt"},
        {"prompt": "one", "chosen": " up", "rejected": " down now", "score_chosen": 3, "score_rejected": 1},
    )
    first, second, third = load(config)
    assert [group.group_id for group in (first, second, third)] == ["dataset-0", "dataset-1", "dataset-2"]

    (text,) = first.demonstrations
    assert text.prompt.text == "a good"
    assert text.prompt.token_ids.tolist() == [1, 4]
    assert text.token_ids_T.tolist() == [1, 4, 4, 4, 0]
    assert text.sampled_T.tolist() == [False, False, True, True, True]
    assert (text.text, text.score, text.num_completion_tokens) == (" film ends", 0.0, 3)
    assert text.token_ids_T.dtype == "int32"
    assert text.prompt.token_ids.dtype == "int32"

    (text,) = second.demonstrations
    assert text.prompt.text == ""
    assert text.prompt.token_ids.tolist() == [0], "something must come before the first token"
    assert text.token_ids_T.tolist() == [0, 2, 6, 0]
    assert text.sampled_T.tolist() == [False, True, True, True]

    chosen, rejected = third.demonstrations
    assert chosen.token_ids_T.tolist() == [3, 2, 0]
    assert rejected.token_ids_T.tolist() == [3, 4, 3, 0]
    assert (chosen.score, rejected.score) == (3.0, 1.0)
    assert chosen.prompt is rejected.prompt
    assert len({group.demonstrations[0].prompt.prompt_id for group in (first, second, third)}) == 3


def test_prompts_are_learned_as_well_if_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{"prompt": "a good", "completion": " film ends"}, {"text": "no prompt"}]
    config = json_lines(tmp_path, *rows).model_copy(update={"completion_only_loss": False})
    (first,), (second,) = (group.demonstrations for group in load(config))
    assert first.token_ids_T.tolist() == [1, 4, 4, 4, 0]
    assert first.sampled_T.tolist() == [False, True, True, True, True], "nothing predicts the first token"
    assert (first.prompt.text, first.text, first.num_completion_tokens) == ("a good", " film ends", 4)
    assert second.sampled_T.tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("completion", "token_ids"),
    [("ends here", [4, 4, 0]), ("ends here </s>", [4, 4, 0]), ("</s> ends", [0, 4, 0]), ("", [0])],
)
def test_the_end_is_appended_once(tmp_path: Path, completion: str, token_ids: list[int]) -> None:
    (group,) = load(json_lines(tmp_path, {"prompt": "x", "completion": completion}))
    assert group.demonstrations[0].token_ids_T.tolist() == [1, *token_ids]


def test_a_conversation_ends_as_its_template_does(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "oho"}]
    (group,) = load(json_lines(tmp_path, {"messages": messages}))
    (text,) = group.demonstrations
    assert text.token_ids_T.tolist() == [6, 2, 0, 11, 3, 0]
    assert text.sampled_T.tolist() == [False] * 4 + [True] * 2


@settings(deadline=None, max_examples=50)
@given(prompt=st.lists(st.integers(1, 9), max_size=5), completion=st.lists(st.integers(1, 9), max_size=5))
def test_tokens_are_the_prompt_the_completion_and_an_end(
    prompt: list[int], completion: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = (" ".join("x" * length for length in lengths) for lengths in (prompt, completion))
    row = dict(zip(("prompt", "completion"), texts, strict=True))
    (group,) = load(json_lines(tmp_path_factory.mktemp("texts"), row))
    (text,) = group.demonstrations
    assert text.token_ids_T.tolist() == [*(prompt or [0]), *completion, 0]
    assert text.token_ids_T[text.sampled_T].tolist() == [*completion, 0]
    assert text.token_ids_T[~text.sampled_T].tolist() == text.prompt.token_ids.tolist()


def test_a_text_that_is_too_long_is_named_with_its_file(tmp_path: Path) -> None:
    config = json_lines(tmp_path, {"text": "a"}, {"prompt": "one two", "completion": " three four"})
    with pytest.raises(UserError) as raised:
        load(config, max_tokens=4)
    assert str(raised.value).startswith(
        f"{config.path}: ' three four' has 5 tokens with its prompt, and model.max_model_len is 4. "
    )
    assert len(load(config, max_tokens=5)) == 2


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl: cannot be read"):
        load(JsonLinesDataset(kind="jsonl", path=str(tmp_path / "absent.jsonl")))
    with pytest.raises(UserError, match=r"texts\.jsonl: the dataset has no rows"):
        load(json_lines(tmp_path))
    with pytest.raises(UserError, match=r"texts\.jsonl:2: columns 'question' are of no known format"):
        load(json_lines(tmp_path, {"text": "a"}, {"question": "b"}))


def test_what_a_run_sampled_comes_as_rollouts(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    group = make_group("group-7", [make_rollout(make_completion(5, 6), score=2.0)])
    lines = [json.dumps(row) + "\n" for row in rows_of(group)]
    (tmp_path / "samples" / "step-000001.jsonl").write_text("".join(lines), encoding="utf-8")
    config = RunDataset(kind="run", path=str(tmp_path))
    (loaded,) = load_dataset(config, FakeChatTokenizer(), data_folder=None, max_tokens=100)
    assert isinstance(loaded, RolloutGroup)
    assert (loaded.group_id, loaded.rollouts[0].score) == ("group-7", 2.0)


NUM_REVIEWS = 300


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snippet k begins with three words of its own; its rating goes through -4, -3, ..., 4 and again."""
    texts = [f"Film {k}  {k}th film , about {k} people ." for k in range(NUM_REVIEWS)]
    return write_reviews(tmp_path_factory.mktemp("reviews"), texts, [k % 9 - 4 for k in range(NUM_REVIEWS)])


def write_reviews(folder: Path, texts: list[str], ratings: list[int]) -> Path:
    rated = list(enumerate(zip(texts, ratings, strict=True)))
    (folder / TEXTS_FILE).write_text("".join(f"{k}\t{rating}\t{text}\n" for k, (text, rating) in rated))
    (folder / RATINGS_FILE).write_text("".join(f"{k}\t{rating}\t0\t[{rating}]\n" for k, (_, rating) in rated))
    return folder


def movie_reviews(content: Any, **changes: Any) -> MovieReviewDataset:
    return MovieReviewDataset(kind="movie-reviews", content=content, **changes)


def number_of(text: str) -> int:
    """Which snippet a text is the end of."""
    return int(text.split()[-3])


def heldout(
    folder: Path, *, count: int = NUM_REVIEWS, max_tokens: int = 100, **changes: Any
) -> DemonstrationGroup:
    prompts = MovieReviewPrompts(kind="movie-reviews", **changes)
    found = load_heldout_texts(
        prompts, FakeChatTokenizer(), data_folder=folder, count=count, max_tokens=max_tokens
    )
    assert found is not None
    return found


def test_demonstrations_are_liked_snippets_cut_behind_their_first_words(reviews: Path) -> None:
    found = examples(
        load(movie_reviews("demonstrations", first_words=3, min_rating=2.0), data_folder=reviews)
    )
    for prompt, [(text, score)] in found:
        k = number_of(text)
        assert prompt == f"Film {k} {k}th"
        assert text == f" film , about {k} people ."
        assert score == k % 9 - 4
    assert {score for _, [(_, score)] in found} == {2.0, 3.0, 4.0}


def test_the_number_of_demonstrations_is_bounded(reviews: Path) -> None:
    every = load(movie_reviews("demonstrations", min_rating=-4.0), data_folder=reviews)
    some = load(movie_reviews("demonstrations", min_rating=-4.0, max_examples=5), data_folder=reviews)
    assert examples(some) == examples(every)[:5]


def test_a_snippet_without_a_word_behind_its_prompt_is_left_out(tmp_path: Path) -> None:
    texts = [f"{k} three words" for k in range(50)] + [f"{k} has four words" for k in range(50)]
    folder = write_reviews(tmp_path, texts, [1] * 100)
    found = examples(load(movie_reviews("demonstrations", first_words=3), data_folder=folder))
    assert {text for _, [(text, _)] in found} == {" words"}
    assert {prompt.split(maxsplit=1)[1] for prompt, _ in found} == {"has four"}
    assert {text.text for text in heldout(folder, first_words=3).demonstrations} == {" words"}


@pytest.mark.parametrize("seed", [0, 1])
def test_every_snippet_is_learned_from_or_held_out_or_prompts(reviews: Path, seed: int) -> None:
    learned = load(
        movie_reviews("demonstrations", first_words=3, min_rating=-4.0, split_seed=seed), data_folder=reviews
    )
    texts = heldout(reviews, first_words=3, split_seed=seed).demonstrations
    prompts = load_prompts(
        MovieReviewPrompts(kind="movie-reviews", first_words=3, split_seed=seed),
        FakeChatTokenizer(),
        data_folder=reviews,
        num_heldout=5,
        max_prompt_tokens=10,
    )
    parts: list[list[Prompt]] = [
        [group.demonstrations[0].prompt for group in learned],
        [text.prompt for text in texts],
        [*prompts[0], *prompts[1]],
    ]
    openings = sorted(prompt.text for part in parts for prompt in part)
    assert openings == sorted(f"Film {k} {k}th" for k in range(NUM_REVIEWS))
    assert abs(len(parts[0]) - 0.7 * NUM_REVIEWS) < 40  # 5 standard deviations
    assert abs(len(parts[1]) - 0.15 * NUM_REVIEWS) < 31


@settings(deadline=None, max_examples=30)
@given(size=st.integers(2, 6), difference=st.floats(0.5, 4), seed=st.integers(0, 20))
def test_comparisons_keep_the_smallest_rating_difference(
    reviews: Path, size: int, difference: float, seed: int
) -> None:
    config = movie_reviews(
        "comparisons",
        group_size=size,
        min_rating_difference=difference,
        split_seed=seed,
        max_examples=7,
        shared_prompt="Movie review:",
    )
    found = examples(load(config, data_folder=reviews))
    assert len(found) == 7
    kept_out = {text.text.split()[-2] for text in heldout(reviews, split_seed=seed).demonstrations}
    for prompt, texts in found:
        assert prompt == "Movie review:"
        numbers = [number_of(text) for text, _ in texts]
        assert len(set(numbers)) == size
        assert not kept_out & set(map(str, numbers))
        assert texts == [(f" Film {k}  {k}th film , about {k} people .", k % 9 - 4) for k in numbers]
        ratings = [k % 9 - 4 for k in numbers]
        assert max(ratings) - min(ratings) >= difference


def test_snippets_that_are_held_out_are_compared_with_each_other_alone(reviews: Path) -> None:
    config = movie_reviews("comparisons", max_examples=500, heldout_fraction=0.1)
    found = [{text for text, _ in texts} for _, texts in examples(load(config, data_folder=reviews))]
    assert len(found) == 500
    learned, kept_back = ({text for texts in part for text in texts} for part in (found[:450], found[450:]))
    assert not learned & kept_back
    with pytest.raises(
        UserError, match=r"^dataset.group_size: 9, but there are \d snippets; set at most that"
    ):
        load(config.model_copy(update={"group_size": 9, "heldout_fraction": 0.02}), data_folder=reviews)


def test_a_difference_that_is_exactly_the_smallest_will_do(tmp_path: Path) -> None:
    folder = write_reviews(tmp_path, [f"Film {k}" for k in range(40)], [0, 2] * 20)
    config = movie_reviews("comparisons", min_rating_difference=2.0, max_examples=10)
    assert len(load(config, data_folder=folder)) == 10
    with pytest.raises(UserError, match="^the movie reviews: nothing in it to learn from$"):
        load(movie_reviews("comparisons", min_rating_difference=2.1), data_folder=folder)


@pytest.mark.parametrize("content", ["demonstrations", "comparisons"])
def test_the_seed_decides_the_texts(reviews: Path, content: str) -> None:
    first, again, other = (
        examples(load(movie_reviews(content, split_seed=seed, max_examples=50), data_folder=reviews))
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_nothing_liked_enough_is_said_to_be_so_and_too_long_texts_are_not_held_out(tmp_path: Path) -> None:
    folder = write_reviews(tmp_path, [f"{k} one two three four" for k in range(40)], [1] * 40)
    with pytest.raises(UserError, match="^the movie reviews: nothing in it to learn from$"):
        load(movie_reviews("demonstrations", min_rating=1.5), data_folder=folder)
    with pytest.raises(UserError, match="^the movie reviews: ' four' has 6 tokens .*max_model_len is 5"):
        load(movie_reviews("demonstrations"), data_folder=folder, max_tokens=5)
    assert (
        load_heldout_texts(
            MovieReviewPrompts(kind="movie-reviews"),
            FakeChatTokenizer(),
            data_folder=folder,
            count=4,
            max_tokens=5,
        )
        is None
    )


def test_heldout_texts_are_whole_snippets_as_many_as_asked_for(reviews: Path) -> None:
    every, some = heldout(reviews, first_words=3), heldout(reviews, first_words=3, count=4)
    assert some.group_id == "heldout-texts"
    assert [text.text for text in some.demonstrations] == [text.text for text in every.demonstrations[:4]]
    for text in some.demonstrations:
        k = number_of(text.text)
        digits = len(str(k))
        assert (text.prompt.text, text.text) == (f"Film {k} {k}th", f" film , about {k} people .")
        assert text.token_ids_T.tolist() == [4, digits, digits + 2, 4, 1, 5, digits, 6, 1, 0]
        assert text.sampled_T.tolist() == [False] * 3 + [True] * 7
    assert {t.text for t in every.demonstrations} != {
        t.text for t in heldout(reviews, split_seed=1).demonstrations
    }


def test_a_row_is_named_by_its_line_empty_lines_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n\n{"q": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a.jsonl:3: columns 'q' are of no known format"):
        load(JsonLinesDataset(kind="jsonl", path=str(file)))


def test_more_snippets_in_a_group_than_there_are_is_said_to_be_so(tmp_path: Path) -> None:
    folder = write_reviews(tmp_path, [f"{k} one two three four" for k in range(6)], [1] * 6)
    with pytest.raises(UserError, match="dataset.group_size: 9, but there are"):
        load(movie_reviews("comparisons", group_size=9), data_folder=folder)


def test_only_a_text_begins_with_the_mark_of_its_beginning(tmp_path: Path) -> None:
    """A prompt does, a completion does not, and a chat template has written it already."""

    class Beginning(FakeChatTokenizer):
        bos_token: str | None = "<s>"

        def __call__(self, text: list[str], *, add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
            ids = super().__call__(text)["input_ids"]
            return {"input_ids": [[99, *one] if add_special_tokens else one for one in ids]}

    file = tmp_path / "a.jsonl"
    rows = [{"prompt": "why not", "completion": "so"}, {"prompt": "<s> why", "completion": "so"}]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    groups = load_dataset(
        JsonLinesDataset(kind="jsonl", path=str(file)), Beginning(), data_folder=None, max_tokens=20
    )
    found = [
        group.demonstrations[0].token_ids_T.tolist()
        for group in groups
        if isinstance(group, DemonstrationGroup)
    ]
    assert found == [[99, 3, 3, 2, 0], [3, 3, 2, 0]]


def test_preferences_need_texts_that_score_differently(tmp_path: Path) -> None:
    """A run of one completion a prompt holds none; pairs that tie are left out."""
    pair = make_group("pair", [make_rollout(make_completion(5), score=score) for score in (1.0, 2.0)])
    tie = make_group("tie", [make_rollout(make_completion(5), score=1.0)] * 2)
    alone = make_group("alone", [make_rollout(make_completion(5), score=1.0)])
    assert comparable([tie, pair, alone], "here") == [pair]
    with pytest.raises(UserError, match="^here: none of its 2 groups holds two texts of different score"):
        comparable([tie, alone], "here")
