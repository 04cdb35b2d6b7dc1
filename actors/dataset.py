"""Datasets of texts: read once, tokenised once, grouped by prompt.

movie reviews | rows of one's own -> DemonstrationGroup      a run's samples -> RolloutGroup
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from actors.config import DatasetConfig, MovieReviewDataset, MovieReviewPrompts, RunDataset
from actors.dataset_formats import ChatTokenizer, Texts, is_begun, read_row
from actors.rows import read_rows, where_of
from actors.run_samples import load_samples
from core.errors import UserError
from core.messages import Demonstration, DemonstrationGroup, Prompt, RolloutGroup
from core.ratings import SPLIT_FRACTIONS, RatedText, first_words, load_ratings, split_ratings

G = TypeVar("G")

TEXT_IDS = "input_ids"
DRAWS_PER_COMPARISON = 8
"""Random groups drawn for each one wanted, since some are rated too much alike."""


def load_dataset(
    config: DatasetConfig,
    tokenizer: ChatTokenizer,
    *,
    data_folder: Path | None,
    max_tokens: int,
    rated_for: str | None = None,
) -> Sequence[DemonstrationGroup | RolloutGroup]:
    """The groups to learn from. Raises `UserError` for data that is missing, malformed or too long, and for
    preferences without ratings where a setting, `rated_for`, needs them."""
    match config:
        case MovieReviewDataset():
            assert data_folder is not None
            texts, where = _movie_reviews(config, data_folder), "the movie reviews"
        case RunDataset():
            return _not_empty(list(load_samples(config, max_tokens=max_tokens)), config.path)
        case _:
            where = where_of(config)
            texts = [read_row(row, place, tokenizer, rated_for=rated_for) for place, row in read_rows(config)]
    groups = _tokenised(texts, tokenizer, where, max_tokens, completion_only=config.completion_only_loss)
    return _not_empty(groups, where)


def comparable(
    groups: Sequence[DemonstrationGroup | RolloutGroup], where: str
) -> Sequence[DemonstrationGroup | RolloutGroup]:
    """The groups that say which of their texts is better. Raises `UserError` if none does."""
    told_apart = [group for group in groups if len(set(_scores(group))) > 1]
    if not told_apart:
        raise UserError(
            f"{where}: none of its {len(groups)} groups holds two texts of different score, and preferences are "
            "learned from such pairs. Give chosen and rejected texts, several ratings that differ, or a run with "
            "rollout.group_size of 2 or more."
        )
    return told_apart


def check_equally_good(groups: Sequence[DemonstrationGroup | RolloutGroup], where: str) -> None:
    """Raises `UserError` if a group says that one of its texts is better: who learns all of them alike learns the
    worse ones as well."""
    told_apart = [group for group in groups if len(set(_scores(group))) > 1]
    if told_apart:
        raise UserError(
            f"{where}: {len(told_apart)} of its {len(groups)} groups hold texts of different score, and sft would "
            "learn the worse ones like the better. Set algorithm.top_k = 1 to learn the best of each group, or "
            'algorithm.kind = "dpo" to learn from the comparison.'
        )


def _not_empty(groups: Sequence[G], where: str) -> Sequence[G]:
    if not groups:
        raise UserError(f"{where}: nothing in it to learn from")
    return groups


def _scores(group: DemonstrationGroup | RolloutGroup) -> list[float]:
    texts = group.rollouts if isinstance(group, RolloutGroup) else group.demonstrations
    return [text.score for text in texts]


def load_heldout_texts(
    prompts: MovieReviewPrompts, tokenizer: ChatTokenizer, *, data_folder: Path, count: int, max_tokens: int
) -> DemonstrationGroup | None:
    """Human-written reviews that nothing is learned from: how well a policy still predicts them is a measure
    of what it forgets. Those that do not fit the context are passed over; None if no review is left."""
    rows, _ = load_ratings(data_folder)
    heldout = split_ratings(rows, seed=prompts.split_seed, fractions=SPLIT_FRACTIONS)["heldout"]
    long_enough = [row for row in heldout if len(row.text.split()) > prompts.first_words]
    texts = [_opening(row, prompts.first_words) for row in long_enough[:count]]
    fitting = [
        group.demonstrations[0]
        for group in _tokenised(texts, tokenizer, "the movie reviews", None)
        if len(group.demonstrations[0].token_ids_T) <= max_tokens
    ]
    if not fitting:
        return None
    return DemonstrationGroup(group_id="heldout-texts", demonstrations=tuple(fitting))


def _movie_reviews(config: MovieReviewDataset, data_folder: Path) -> list[Texts]:
    rows, _ = load_ratings(data_folder)
    train = split_ratings(rows, seed=config.split_seed, fractions=SPLIT_FRACTIONS)["train"]
    if config.content == "demonstrations":
        liked = [
            row
            for row in train
            if row.rating >= config.min_rating and len(row.text.split()) > config.first_words
        ]
        return [_opening(row, config.first_words) for row in liked[: config.max_examples]]
    return list(_comparisons(config, train))


def _opening(row: RatedText, num_words: int) -> Texts:
    prompt = first_words(row.text, num_words)
    rest = " ".join(row.text.split()[num_words:])
    return prompt, [(f" {rest}", row.rating)]


def _comparisons(config: MovieReviewDataset, train: list[RatedText]) -> Iterator[Texts]:
    """Random groups of whole snippets, all after the same prompt. Where some are held out, so are their snippets:
    none is in a group of the other part."""
    fraction = config.heldout_fraction
    of_heldout = max(1, int(config.max_examples * fraction)) if fraction else 0
    # By another seed than the one that has put all of them into this split.
    parts = split_ratings(
        train,
        seed=config.split_seed + 1,
        fractions={"train": 1 - fraction, "heldout": fraction, "prompts": 0.0},
    )
    random = np.random.default_rng(config.split_seed)
    for snippets, wanted in (
        (parts["train"], config.max_examples - of_heldout),
        (parts["heldout"], of_heldout),
    ):
        if wanted and config.group_size > len(snippets):
            raise UserError(
                f"dataset.group_size: {config.group_size}, but there are {len(snippets)} snippets; set at most that"
            )
        yield from _random_groups(config, snippets, wanted, random)


def _random_groups(
    config: MovieReviewDataset, snippets: list[RatedText], wanted: int, random: np.random.Generator
) -> Iterator[Texts]:
    found = 0
    for _ in range(DRAWS_PER_COMPARISON * wanted):
        rows = [snippets[int(i)] for i in random.choice(len(snippets), config.group_size, replace=False)]
        ratings = [row.rating for row in rows]
        if max(ratings) - min(ratings) >= config.min_rating_difference:
            yield config.shared_prompt, [(f" {row.text}", row.rating) for row in rows]
            found += 1
            if found == wanted:
                return


def _tokenised(
    texts: Sequence[Texts],
    tokenizer: ChatTokenizer,
    where: str,
    max_tokens: int | None,
    *,
    completion_only: bool = True,
) -> list[DemonstrationGroup]:
    """With the prompt learned as well, all but its first token, which nothing predicts, counts as completion."""
    end = tokenizer.eos_token_id
    assert end is not None
    groups = []
    for number, (prompt_text, completions) in enumerate(texts):
        begun = is_begun(prompt_text, tokenizer)
        prompt_ids = (
            tokenizer([prompt_text], add_special_tokens=not begun)[TEXT_IDS][0] if prompt_text else [end]
        )
        num_given = len(prompt_ids) if completion_only else 1
        prompt = Prompt(
            prompt_id=f"dataset-{number}",
            text=prompt_text,
            token_ids=np.asarray(prompt_ids[:num_given], dtype=np.int32),
        )
        # A completion begins no text.
        all_ids = tokenizer([text for text, _ in completions], add_special_tokens=False)[TEXT_IDS]
        demonstrations = []
        for (text, score), ids in zip(completions, all_ids, strict=True):
            token_ids_T = np.asarray(
                [*prompt_ids, *ids, *([] if ids[-1:] == [end] else [end])], dtype=np.int32
            )
            if max_tokens is not None and len(token_ids_T) > max_tokens:
                raise UserError(
                    f"{where}: {text!r:.60} has {len(token_ids_T)} tokens with its prompt, and "
                    f"model.max_model_len is {max_tokens}. Drop it, or raise model.max_model_len."
                )
            sampled_T = np.arange(len(token_ids_T)) >= num_given
            demonstrations.append(
                Demonstration(
                    prompt=prompt, token_ids_T=token_ids_T, sampled_T=sampled_T, text=text, score=score
                )
            )
        groups.append(DemonstrationGroup(group_id=f"dataset-{number}", demonstrations=tuple(demonstrations)))
    return groups
