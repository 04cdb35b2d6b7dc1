"""Which groups of its datasets a reward model learns from, and what is wrong with others."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from core.errors import UserError
from core.messages import DemonstrationGroup
from core.ratings import RATINGS_FILE, TEXTS_FILE
from orchestration.recipe.config import Recipe
from orchestration.recipe.loading import load_recipe
from orchestration.reward_data import Group, Groups, digest_of, load_reward_groups, split_groups, texts_of
from tests.fakes import FakeChatTokenizer
from tests.recipes import MINIMAL


def no_ratings() -> NoReturn:
    raise AssertionError("the movie reviews are not asked for")


def write(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> Recipe:
    (folder / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "tiny.toml").write_text(
        MINIMAL + '[[reward_model.datasets]]\nkind = "jsonl"\npath = "rated.jsonl"\n', encoding="utf-8"
    )
    return load_recipe(folder / "tiny.toml", overrides)


def load(recipe: Recipe) -> Groups:
    tokenizer: Any = FakeChatTokenizer()
    return load_reward_groups(recipe, tokenizer, no_ratings)


def pair(prompt: str, **others: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": " good film", "rejected": " bad film", **others}


def test_a_prompt_is_in_one_part_alone(tmp_path: Path) -> None:
    rows = [pair(f"p {'x' * (number % 10)}", chosen=f" film {number}") for number in range(40)]
    train, heldout = load(write(tmp_path, rows, "reward_model.heldout_fraction=0.3"))
    prompts = [
        {group.demonstrations[0].prompt.text for group in part if isinstance(group, DemonstrationGroup)}
        for part in (train, heldout)
    ]
    assert (len(prompts[0]), len(prompts[1])) == (7, 3)
    assert not prompts[0] & prompts[1]
    assert (len(train), len(heldout)) == (28, 12)
    again = split_groups([*heldout, *train], 0.3)
    assert {id(group) for group in again[1]} == {id(group) for group in heldout}, "the order does not matter"


def one_prompt(number: int, other: int | str) -> dict[str, Any]:
    return pair("p", chosen=f" good film {number}", rejected=f" bad film {other}")


def texts(groups: Sequence[Group]) -> set[str]:
    return {text for group in groups for text, _ in texts_of(group)}


def test_groups_of_one_prompt_are_split_all_the_same(tmp_path: Path) -> None:
    train, heldout = load(write(tmp_path, [one_prompt(n, n) for n in range(20)]))
    assert (len(train), len(heldout)) == (18, 2)
    assert not texts(train) & texts(heldout)


def test_of_one_prompt_no_text_is_in_both_parts(tmp_path: Path) -> None:
    """Groups 0 and 1 share a text, 1 and 2 another one, and so on to 6; the 7 others stand alone."""
    rows = [one_prompt(n - n % 2, n - 1 + n % 2) for n in range(7)] + [one_prompt(n, n) for n in range(7, 14)]
    groups = [*(parts := load(write(tmp_path, rows)))[0], *parts[1]]
    for fraction in (0.1, 0.3, 0.5):
        train, heldout = split_groups(groups, fraction)
        assert not texts(train) & texts(heldout)
        assert len(heldout) == int(14 * fraction)


def test_texts_that_are_in_all_groups_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its 20 groups have a prompt and texts in common, so that none can"):
        load(write(tmp_path, [one_prompt(n, "again") for n in range(20)]))


def test_snippets_that_are_held_out_are_in_no_group_to_learn_from(tmp_path: Path) -> None:
    """Of 20 groups a snippet: whole groups alone would leave hardly a held-out text that is not learned from."""
    rated = [(k, k % 9 - 4) for k in range(400)]
    (tmp_path / TEXTS_FILE).write_text("".join(f"{k}\t{rating}\tA film {k} .\n" for k, rating in rated))
    (tmp_path / RATINGS_FILE).write_text("".join(f"{k}\t{rating}\t0\t[{rating}]\n" for k, rating in rated))
    table = '{kind="movie-reviews", content="comparisons", max_examples=3000}'
    recipe = write(tmp_path, [], f"reward_model.datasets=[{table}]", "reward_model.heldout_fraction=0.2")
    tokenizer: Any = FakeChatTokenizer()
    train, heldout = load_reward_groups(recipe, tokenizer, lambda: tmp_path)
    assert (len(train), len(heldout)) == (2400, 600)
    assert not texts(train) & texts(heldout)
    assert len(texts(train)) > 4 * len(texts(heldout)) / 2 > 40


def test_other_ratings_in_the_same_file_make_another_model(tmp_path: Path) -> None:
    rows = [pair("a", score_chosen=2, score_rejected=1), pair("b", score_chosen=2, score_rejected=1)]
    digest = digest_of(load(write(tmp_path, rows)))
    assert digest_of(load(write(tmp_path, rows))) == digest
    rows[0]["score_chosen"] = 3
    assert digest_of(load(write(tmp_path, rows))) != digest


def test_ties_are_left_out_and_nothing_but_ties_is_refused(tmp_path: Path) -> None:
    tie = {"prompt": "t", "completions": [" a", " b"], "ratings": [1, 1]}
    train, heldout = load(write(tmp_path, [pair("a"), pair("b"), tie]))
    assert len(train) + len(heldout) == 2
    with pytest.raises(
        UserError, match=r"reward_model.datasets.0 \(jsonl\): none of its 1 groups holds two texts"
    ):
        load(write(tmp_path, [tie]))


def test_a_margin_needs_ratings(tmp_path: Path) -> None:
    override = 'reward_model.loss="margin"'
    load(
        write(
            tmp_path,
            [pair("a", score_chosen=2, score_rejected=1), pair("b", score_chosen=2, score_rejected=1)],
            override,
        )
    )
    with pytest.raises(UserError, match=r"rated.jsonl:2: says which text is better but not by how much"):
        load(write(tmp_path, [pair("a", score_chosen=2, score_rejected=1), pair("b")], override))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward_model.cut_copies=1", "only the demo's snippets are cut"),
        ("reward_model.datasets.0.weight=2.0", "no mixture to weigh"),
        ("reward_model.datasets.0.completion_only_loss=false", "all of a group have the prompt in common"),
        ("reward_model.datasets.0.heldout_fraction=0.2", "set reward_model.heldout_fraction = 0.2 instead"),
        (
            'pretraining={coef=1.0, datasets=[{kind="jsonl", path="x", heldout_fraction=0.1}]}',
            "the texts that are mixed in are all learned from",
        ),
        (
            'reward_model.datasets=[{kind="movie-reviews", content="demonstrations"}]',
            "a demonstration stands alone",
        ),
        (
            'reward_model.datasets=[{kind="movie-reviews", content="comparisons", split_seed=3}]',
            "with another seed than the prompts'",
        ),
    ],
)
def test_what_a_reward_model_cannot_learn_from_is_refused_with_the_recipe(
    tmp_path: Path, override: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        write(tmp_path, [pair("a")], override)
