"""Rows without padding: nothing lost, nothing over the budget, and every position where it says it is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.messages import Bools, Int32s
from core.packing import pack_row, plan_rows
from tests.fakes import int32s

LENGTHS = st.lists(st.one_of(st.integers(1, 12), st.integers(100, 300)), max_size=30)
"""Many short sequences and a few long ones."""


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 400))
def test_rows_hold_every_sequence_once_and_keep_to_the_budget(lengths: list[int], token_budget: int) -> None:
    rows = plan_rows(lengths, token_budget)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert row == sorted(row)
        assert len(row) == 1 or sum(lengths[index] for index in row) <= token_budget
    filled = sorted(sum(lengths[index] for index in row) for row in rows)
    if len(filled) > 1:  # first-fit: two rows that fit into one would have been one
        assert filled[0] + filled[1] > token_budget


def test_a_plan_worked_out_by_hand() -> None:
    """Longest first into the first row with room: 6 and 4; 5, 3 and 2; and 1 is left over."""
    assert plan_rows([3, 6, 1, 4, 5, 2], 10) == [[1, 3], [0, 4, 5], [2]]


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[Int32s, Bools]]:
    """Token ids and masks, the first token never trained."""
    drawn = []
    for length in draw(st.lists(st.one_of(st.integers(1, 10), st.integers(30, 70)), min_size=1, max_size=8)):
        seed = draw(st.integers(0, 2**16))
        random = np.random.default_rng(seed)
        mask = random.random(length) < 0.5
        mask[0] = False
        drawn.append((random.integers(0, 100, length).astype(np.int32), mask))
    return drawn


@settings(deadline=None)
@given(sequences())
def test_a_row_can_be_taken_apart_again(parts: list[tuple[Int32s, Bools]]) -> None:
    row = pack_row(parts)
    starts = np.cumsum([0, *(len(ids) for ids, _ in parts)])
    targets = torch.split(row.target_ids_N, list(row.trained_lengths))
    predicting = torch.split(row.predicting_N, list(row.trained_lengths))
    for index, (ids, mask) in enumerate(parts):
        inside = slice(starts[index], starts[index + 1])
        assert np.array_equal(row.token_ids_T[inside], ids)
        assert np.array_equal(row.position_ids_T[inside], np.arange(len(ids)))
        assert np.array_equal(targets[index], ids[mask])
        assert np.array_equal(predicting[index] - starts[index], np.flatnonzero(mask) - 1)
        assert row.last_S[index] == starts[index + 1] - 1
    assert len(row.token_ids_T) == starts[-1]


@settings(deadline=None)
@given(sequences())
def test_attention_sees_each_sequence_whole_and_alone(parts: list[tuple[Int32s, Bools]]) -> None:
    """Buckets hold each sequence in one line, in order, and `place_T` finds every token again."""
    row = pack_row(parts)
    attention = row.attention
    starts = np.cumsum([0, *(len(ids) for ids, _ in parts)])
    wanted = {tuple(range(starts[i], starts[i + 1])) for i in range(len(parts))}
    assert torch.equal(attention.gather_P[attention.place_T], torch.arange(starts[-1]))
    valid_P = torch.zeros(len(attention.gather_P), dtype=torch.bool)
    valid_P[attention.place_T] = True
    sizes = [sequences * length for sequences, length in attention.buckets]
    seen = []
    for shape, gather, valid in zip(
        attention.buckets, attention.gather_P.split(sizes), valid_P.split(sizes), strict=True
    ):
        lines = list(zip(gather.view(shape), valid.view(shape), strict=True))
        seen += [tuple(line[chosen].tolist()) for line, chosen in lines]
        lengths = [int(chosen.sum()) for _, chosen in lines]
        assert max(lengths) == shape[1]
        assert max(lengths) <= max(8, 2 * min(lengths))
        assert all(bool(chosen[: int(chosen.sum())].all()) for _, chosen in lines)  # padding comes last
    assert len(seen) == len(parts)
    assert set(seen) == wanted


def test_a_row_worked_out_by_hand() -> None:
    row = pack_row(
        [
            (int32s(11, 12, 13, 14), np.array([False, False, True, True])),
            (int32s(21, 22), np.array([False, True])),
        ]
    )
    assert row.token_ids_T.tolist() == [11, 12, 13, 14, 21, 22]
    assert row.position_ids_T.tolist() == [0, 1, 2, 3, 0, 1]
    assert row.predicting_N.tolist() == [1, 2, 4]
    assert row.target_ids_N.tolist() == [13, 14, 22]
    assert row.last_S.tolist() == [3, 5]
    assert row.trained_lengths == (2, 1)


def test_nothing_predicts_the_first_token() -> None:
    """Trained on, it would be predicted by the last token of its neighbour."""
    with pytest.raises(AssertionError):
        pack_row([(int32s(1, 2), np.array([False, True])), (int32s(3, 4), np.array([True, False]))])
