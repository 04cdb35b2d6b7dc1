"""What is kept back of the datasets that a policy learns from."""

from collections.abc import Sequence

import numpy as np
import pytest

from actors.config import JsonLinesDataset, RunDataset
from core.errors import UserError
from core.messages import Demonstration, DemonstrationGroup
from orchestration.heldout_texts import Learned, hold_out
from orchestration.reward_data import Group
from tests.fakes import make_prompt


def group(number: int, prompt_text: str | None = None) -> DemonstrationGroup:
    """Two texts of a prompt, the second the better one."""
    prompt = make_prompt(1, 2, text=prompt_text or f"prompt {number}")
    texts = [
        Demonstration(
            prompt=prompt,
            token_ids_T=np.array([1, 2, 3], dtype=np.int32),
            sampled_T=np.array([False, False, True]),
            text=text,
            score=score,
        )
        for text, score in ((f"worse {number}", 0.0), (f"better {number}", 1.0))
    ]
    return DemonstrationGroup(group_id=str(number), demonstrations=tuple(texts))


def prompts(groups: Sequence[Group]) -> set[str]:
    return {one.demonstrations[0].prompt.text for one in groups if isinstance(one, DemonstrationGroup)}


def rows(heldout_fraction: float) -> JsonLinesDataset:
    return JsonLinesDataset(kind="jsonl", path="x", heldout_fraction=heldout_fraction)


def test_a_share_of_each_dataset_is_kept_back_and_the_rest_is_learned_from() -> None:
    first, second = [group(number) for number in range(10)], [group(number) for number in range(10, 40)]
    learned, kept_back = hold_out([first, second], [rows(0.2), rows(0.0)])
    assert [len(groups) for groups in learned.datasets] == [8, 30]
    assert kept_back is not None
    assert [text.text.split()[0] for text in kept_back.demonstrations] == ["better"] * 2
    assert not prompts(learned.datasets[0]) & {text.prompt.text for text in kept_back.demonstrations}


def test_nothing_is_kept_back_unless_it_is_asked_for() -> None:
    datasets: list[Sequence[Group]] = [[group(0)], [group(1)]]
    run = RunDataset(kind="run", path="x")
    assert hold_out(datasets, [rows(0.0), run]) == (Learned(datasets=datasets, mixed_in=[]), None)


def test_no_more_texts_than_a_measurement_needs() -> None:
    _, kept_back = hold_out([[group(number) for number in range(300)]], [rows(0.5)])
    assert kept_back is not None
    assert len(kept_back.demonstrations) == 64


def test_what_one_dataset_holds_out_is_learned_from_in_none() -> None:
    """The same prompts are in both, and among the texts that are mixed in."""
    first, second, mixed_in = (
        [group(number) for number in numbers] for numbers in (range(10), range(5, 40), range(20))
    )
    learned, kept_back = hold_out([first, second], [rows(0.5), rows(0.0)], [mixed_in])
    assert kept_back is not None
    heldout = {text.prompt.text for text in kept_back.demonstrations}
    assert len(heldout) == 5
    for groups, before in zip([*learned.datasets, *learned.mixed_in], (first, second, mixed_in), strict=True):
        assert prompts(groups) == prompts(before) - heldout


def test_a_prompt_that_is_held_out_is_learned_with_no_other_texts_either() -> None:
    """As in what a run has sampled on the prompts of a dataset."""
    first = [group(number) for number in range(10)]
    sampled = [group(number + 1000, f"prompt {number}") for number in range(10)]
    learned, kept_back = hold_out([first, sampled], [rows(0.5), RunDataset(kind="run", path="x")])
    assert kept_back is not None
    assert len(learned.datasets[1]) == 5
    assert not prompts(learned.datasets[1]) & {text.prompt.text for text in kept_back.demonstrations}


def test_of_one_prompt_the_texts_are_what_is_held_out() -> None:
    """Or else nothing would be left of another dataset with the same prompt."""
    first, second = (
        [group(number, "Review:") for number in numbers] for numbers in (range(10), range(5, 40))
    )
    learned, kept_back = hold_out([first, second], [rows(0.5), rows(0.0)])
    assert kept_back is not None
    heldout = {int(text.text.split()[1]) for text in kept_back.demonstrations}
    assert len(learned.datasets[1]) == 35 - len(heldout & set(range(5, 40)))
    assert len(learned.datasets[0]) == 5


def test_every_dataset_is_measured_on() -> None:
    numbers = (range(200), range(200, 400), range(400, 410))
    _, kept_back = hold_out([[group(number) for number in some] for some in numbers], [rows(0.5)] * 3)
    assert kept_back is not None
    of = [int(text.text.split()[1]) // 200 for text in kept_back.demonstrations]
    assert [of.count(place) for place in range(3)] == [30, 29, 5]


def test_something_must_be_left() -> None:
    with pytest.raises(UserError, match=r"datasets.0.heldout_fraction: leaves nothing to learn from"):
        hold_out([[group(0)]], [rows(0.5)])
    with pytest.raises(
        UserError, match=r"datasets.[12]: nothing is left to learn from, for all of it is held out of"
    ):
        hold_out([[group(0), group(1)], [group(0)], [group(1)]], [rows(0.5), rows(0.0), rows(0.0)])
