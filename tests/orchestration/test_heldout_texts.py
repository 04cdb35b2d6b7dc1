"""What is kept back of the datasets that a policy learns from."""

import numpy as np
import pytest

from actors.config import JsonLinesDataset, RunDataset
from core.errors import UserError
from core.messages import Demonstration, DemonstrationGroup
from orchestration.heldout_texts import hold_out
from tests.fakes import make_prompt


def group(number: int) -> DemonstrationGroup:
    """Two texts of a prompt, the second the better one."""
    prompt = make_prompt(1, 2, text=f"prompt {number}")
    texts = [
        Demonstration(
            prompt=prompt,
            token_ids_T=np.array([1, 2, 3], dtype=np.int32),
            sampled_T=np.array([False, False, True]),
            text=text,
            score=score,
        )
        for text, score in (("worse", 0.0), ("better", 1.0))
    ]
    return DemonstrationGroup(group_id=str(number), demonstrations=tuple(texts))


def rows(heldout_fraction: float) -> JsonLinesDataset:
    return JsonLinesDataset(kind="jsonl", path="x", heldout_fraction=heldout_fraction)


def test_a_share_of_each_dataset_is_kept_back_and_the_rest_is_learned_from() -> None:
    first, second = [group(number) for number in range(10)], [group(number) for number in range(10, 40)]
    left, kept_back = hold_out([first, second], [rows(0.2), rows(0.0)])
    assert [len(groups) for groups in left] == [8, 30]
    assert kept_back is not None
    assert [text.text for text in kept_back.demonstrations] == ["better"] * 2
    learned = {one.demonstrations[0].prompt.text for one in left[0] if isinstance(one, DemonstrationGroup)}
    assert not learned & {text.prompt.text for text in kept_back.demonstrations}


def test_nothing_is_kept_back_unless_it_is_asked_for() -> None:
    datasets = [[group(0)], [group(1)]]
    assert hold_out(datasets, [rows(0.0), RunDataset(kind="run", path="x")]) == (datasets, None)


def test_no_more_texts_than_a_measurement_needs() -> None:
    _, kept_back = hold_out([[group(number) for number in range(300)]], [rows(0.5)])
    assert kept_back is not None
    assert len(kept_back.demonstrations) == 64


def test_something_must_be_left() -> None:
    with pytest.raises(UserError, match=r"datasets.0.heldout_fraction: leaves nothing to learn from"):
        hold_out([[group(0)]], [rows(0.5)])
