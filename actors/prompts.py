"""Prompts: read once, tokenised once, split into those to train on and those held out."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from actors.config import MovieReviewPrompts, PromptsConfig, RowsConfig
from actors.dataset_formats import ChatTokenizer, is_begun, read_prompt
from actors.rows import read_rows, where_of
from core.errors import UserError
from core.messages import Prompt
from core.ratings import SPLIT_FRACTIONS, first_words, load_ratings, split_ratings

TEXT_IDS = "input_ids"


def load_prompts(
    config: PromptsConfig,
    tokenizer: ChatTokenizer,
    *,
    data_folder: Path | None,
    num_heldout: int,
    max_prompt_tokens: int,
) -> tuple[list[Prompt], list[Prompt]]:
    """(training prompts, held-out prompts), no text in both, in an order that only their texts decide.

    Raises `UserError` for data that is missing, malformed, too little, or too long for the context.
    """
    match config:
        case MovieReviewPrompts():
            assert data_folder is not None
            columns = _movie_review_openings(config, data_folder)
            where = "the movie reviews"
        case _:
            where = where_of(config)
            columns = _own_rows(config, config.column, tokenizer)
    texts = sorted(columns, key=_text_digest)
    if len(texts) < 2:
        raise UserError(
            f"{where}: {len(texts)} different prompts; at least 2 are needed, one to train on and one held out"
        )
    if not isinstance(config, MovieReviewPrompts):
        num_heldout = min(num_heldout, max(1, int(len(texts) * config.heldout_fraction)))
    if num_heldout >= len(texts):
        raise UserError(
            f"{where}: trainer.heldout_prompts={num_heldout} leaves none of its {len(texts)} different prompts to "
            f"train on; set it below {len(texts)}"
        )
    prompts = _tokenised(texts, columns, tokenizer)
    _check_lengths(prompts, max_prompt_tokens, where)
    return prompts[num_heldout:], prompts[:num_heldout]


def _movie_review_openings(config: MovieReviewPrompts, data_folder: Path) -> dict[str, dict[str, Any]]:
    """First words of the snippets that were kept for prompts, with the snippet's human rating as a column."""
    rows, _ = load_ratings(data_folder)
    split = split_ratings(rows, seed=config.split_seed, fractions=SPLIT_FRACTIONS)
    long_enough = (row for row in split["prompts"] if len(row.text.split()) > config.first_words)
    return {first_words(row.text, config.first_words): {"human_rating": row.rating} for row in long_enough}


def _own_rows(config: RowsConfig, column: str, tokenizer: ChatTokenizer) -> dict[str, dict[str, Any]]:
    """Text of each prompt -> the row's other columns. A row that is there twice is one prompt."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for place, row in read_rows(config, (column,)):
        text = read_prompt(row[column], place, column, tokenizer)
        others = {name: value for name, value in row.items() if name != column}
        first_place, first = found.setdefault(text, (place, others))
        if others != first:
            differing = next(
                name
                for name in first | others
                if name not in first or name not in others or first[name] != others[name]
            )
            raise UserError(
                f"{place}: the same prompt as in {first_place}, but not the same {differing!r}. Rewards would be "
                "given the columns of one row for both: keep one of them, or leave the column out."
            )
    return {text: others for text, (_, others) in found.items()}


def _tokenised(
    texts: list[str], columns: dict[str, dict[str, Any]], tokenizer: ChatTokenizer
) -> list[Prompt]:
    token_ids: dict[str, list[int]] = {}
    for begun in (False, True):
        batch = [text for text in texts if is_begun(text, tokenizer) == begun]
        if batch:
            all_ids = tokenizer(batch, add_special_tokens=not begun)[TEXT_IDS]
            token_ids |= zip(batch, all_ids, strict=True)
    return [
        Prompt(
            prompt_id=_text_digest(text)[:12],
            text=text,
            token_ids=np.asarray(token_ids[text], dtype=np.int32),
            columns=columns[text],
        )
        for text in texts
    ]


def _check_lengths(prompts: list[Prompt], max_prompt_tokens: int, where: str) -> None:
    for prompt in prompts:
        if not 1 <= len(prompt.token_ids) <= max_prompt_tokens:
            raise UserError(
                f"{where}: prompt {prompt.text!r:.60} has {len(prompt.token_ids)} tokens; between 1 and "
                f"{max_prompt_tokens} fit beside rollout.max_new_tokens. Drop it, or raise model.max_model_len."
            )


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
