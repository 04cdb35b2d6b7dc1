"""Where a reward model scores a text: at its last token that is text, in learning as in serving."""

from collections.abc import Set
from pathlib import Path

from core.messages import Int32s
from core.pretrained import load_tokenizer


def special_token_ids(folder: Path) -> frozenset[int]:
    """Of the tokenizer in a model's folder."""
    return frozenset(load_tokenizer(folder).all_special_ids)


def scored_text(token_ids_T: Int32s, num_prompt_tokens: int, special_ids: Set[int]) -> Int32s:
    """The prompt and its completion without the special tokens at the completion's end, such as the end of text.

    Whether a completion ended by itself or at the token limit, its score is of what it says.
    """
    stop = len(token_ids_T)
    while stop > num_prompt_tokens and int(token_ids_T[stop - 1]) in special_ids:
        stop -= 1
    return token_ids_T[:stop]
