"""Up to which token a text is scored, by hand."""

import numpy as np
import pytest

from core.scored_text import scored_text

END = 2


@pytest.mark.parametrize(
    ("token_ids", "scored"),
    [
        ([5, 6, 9, 8], [5, 6, 9, 8]),
        ([5, 6, 9, END, 8, END, END], [5, 6, 9, END, 8]),
        ([5, 6, END], [5, 6]),
        ([5, END, END], [5, END]),  # the prompt is whole, however it ends
        ([5, END], [5, END]),
    ],
)
def test_special_tokens_at_the_end_of_a_completion_are_left_out(
    token_ids: list[int], scored: list[int]
) -> None:
    """Behind a prompt of two tokens."""
    assert scored_text(np.array(token_ids, dtype=np.int32), 2, {END}).tolist() == scored
