"""From rollout groups to a batch, shares of ranks, minibatches, and packed rows and back.

Dimension key: B rollouts, T completion tokens (padded), N trained tokens of a packed row.
"""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.messages import RolloutGroup
from core.packing import pack_row
from learner.batch import MicroBatch, deal_minibatches, make_batch, share_of_rank
from tests.fakes import make_completion, make_group, make_prompt, make_rollout

SIZES = st.lists(
    st.lists(st.one_of(st.integers(1, 6), st.just(60)), min_size=1, max_size=4), min_size=1, max_size=8
)
"""Completion lengths of the rollouts of each group."""


def make_groups(sizes: list[list[int]]) -> list[RolloutGroup]:
    """Every completion token has an id, behavior and reference log-prob of its own."""
    groups, token = [], 0
    for number, lengths in enumerate(sizes):
        prompt = make_prompt(*range(900, 901 + number % 3))
        rollouts = []
        for length in lengths:
            ids = range(token, token + length)
            completion = make_completion(*ids, prompt=prompt, behavior=[-float(i) for i in ids])
            rollouts.append(make_rollout(completion, score=token + 0.5, reference=[-2.0 * i for i in ids]))
            token += length
        groups.append(make_group(str(number), rollouts))
    return groups


def test_a_batch_worked_out_by_hand() -> None:
    batch = make_batch(make_groups([[1, 3], [2]]))
    assert len(batch) == 3
    assert batch.group_ids_B.tolist() == [0, 0, 1]
    assert batch.scores_B.tolist() == [0.5, 1.5, 4.5]
    assert batch.mask_BT.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert batch.behavior_logprobs_BT.tolist() == [[0, 0, 0], [-1, -2, -3], [-4, -5, 0]]
    assert batch.reference_logprobs_BT.tolist() == [[0, 0, 0], [-2, -4, -6], [-8, -10, 0]]
    assert [ids.tolist() for ids, _ in batch.sequences] == [[900, 0], [900, 1, 2, 3], [900, 901, 4, 5]]


def test_a_completion_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="no completion token"):
        make_batch(make_groups([[2, 0]]))


@settings(deadline=None)
@given(SIZES, st.integers(8, 100), st.booleans(), st.randoms(use_true_random=False))
def test_packed_rows_hold_what_the_batch_holds_and_give_it_back(
    sizes: list[list[int]], token_budget: int, keep_groups: bool, random: Random
) -> None:
    batch = make_batch(make_groups(sizes))
    members = list(range(len(batch)))
    random.shuffle(members)
    kept = members[: max(1, len(members) - 1)]
    rebuilt_BT = torch.full(batch.mask_BT.shape, 77.0)
    seen = []
    rows = batch.plan(kept, token_budget, keep_groups=keep_groups)
    for row_members in rows:
        row = pack_row([batch.sequences[member] for member in row_members])
        seen += row_members
        behavior_N = batch.select(batch.behavior_logprobs_BT, row_members)
        assert behavior_N.tolist() == [-float(token) for token in row.target_ids_N]
        batch.scatter(behavior_N, row_members, rebuilt_BT)
    assert sorted(seen) == sorted(kept)
    if keep_groups:
        assert sum(len(set(batch.group_ids_B[row].tolist())) for row in rows) == len(
            set(batch.group_ids_B[kept].tolist())
        )
    assert torch.equal(rebuilt_BT[sorted(kept)], batch.behavior_logprobs_BT[sorted(kept)])
    for left_out in set(members) - set(kept):
        assert (rebuilt_BT[left_out] == 77.0).all()


def test_scatter_takes_the_type_of_its_target() -> None:
    batch = make_batch(make_groups([[2, 1]]))
    into_BT = torch.zeros(batch.mask_BT.shape)
    batch.scatter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16), [1, 0], into_BT)
    assert into_BT.tolist() == [[2.0, 3.0], [1.0, 0.0]]


@settings(deadline=None)
@given(SIZES, st.integers(1, 4), st.data())
def test_every_group_goes_whole_to_one_rank(
    sizes: list[list[int]], world_size: int, data: st.DataObject
) -> None:
    groups = make_groups(sizes)
    minibatches = deal_minibatches(len(groups), data.draw(st.integers(1, len(groups))), seed=(0, 0))
    shares = [share_of_rank(groups, minibatches, rank, world_size) for rank in range(world_size)]
    assert sorted(place for share in shares for place in share) == list(range(len(groups)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(groups[place].num_tokens for place in share) for share in shares]
    # Greedy: a rank got its last group when it was the lightest.
    assert max(loads) - min(loads) <= max(group.num_tokens for group in groups)
    if len(groups) >= world_size:
        assert min(loads) > 0


def test_shares_worked_out_by_hand() -> None:
    """Groups of 4, 10, 3 and 4 tokens for two ranks: the long one alone, the others together. In two mini-batches,
    of 4 and 10 and of 3 and 4, each rank gets one of the first, and the rank with 4 both of the second."""
    groups = [
        make_group(str(place), [make_rollout(make_completion(*range(tokens), prompt=make_prompt(1)))])
        for place, tokens in enumerate((3, 9, 2, 3))
    ]
    assert [group.num_tokens for group in groups] == [4, 10, 3, 4]
    assert [share_of_rank(groups, [[3, 1, 0, 2]], rank, 2) for rank in (0, 1)] == [[1], [0, 2, 3]]
    assert [share_of_rank(groups, [[0, 1], [2, 3]], rank, 2) for rank in (0, 1)] == [[1], [0, 2, 3]]
    assert [share_of_rank(groups, [[0, 3], [1, 2]], rank, 2) for rank in (0, 1)] == [[0, 1], [2, 3]]


@settings(deadline=None)
@given(st.integers(1, 12), st.data(), st.integers(0, 2**32))
def test_minibatches_hold_every_group_once_and_are_alike(
    num_groups: int, data: st.DataObject, seed: int
) -> None:
    count = data.draw(st.integers(1, num_groups))
    parts = deal_minibatches(num_groups, count, seed=(seed, 1))
    assert len(parts) == count
    assert sorted(place for part in parts for place in part) == list(range(num_groups))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert deal_minibatches(num_groups, count, seed=(seed, 1)) == parts


def test_every_epoch_has_an_order_of_its_own() -> None:
    orders = {str(deal_minibatches(20, 4, seed=(0, 0, epoch))) for epoch in range(5)}
    assert len(orders) == 5


def test_groups_are_named_by_their_place_in_the_step() -> None:
    batch = make_batch(make_groups([[1, 3], [2]]), [4, 7])
    assert batch.group_ids_B.tolist() == [4, 4, 7]
    assert batch.members_of_groups() == [[0, 1], [2]]


def test_padding_is_never_selected() -> None:
    batch = make_batch(make_groups([[1, 4]]))
    poisoned_BT = torch.where(batch.mask_BT, batch.behavior_logprobs_BT, torch.nan)
    assert not np.isnan(batch.select(poisoned_BT, [1, 0]).numpy()).any()


# --- packed rows ----------------------------------------------------------------------------------------


def test_groups_worked_out_by_hand() -> None:
    batch = make_batch(make_groups([[1, 3], [2], [1, 1, 1]]))
    assert batch.members_of_groups() == [[0, 1], [2], [3, 4, 5]]


def test_a_plan_worked_out_by_hand() -> None:
    """Sequences of 2 and 4, of 4, and of 4 and 4 tokens (prompts of 1, 2 and 3): rows of at most 10."""
    batch = make_batch(make_groups([[1, 3], [2], [1, 1]]))
    assert [len(ids) for ids, _ in batch.sequences] == [2, 4, 4, 4, 4]
    # Longest first, each in the first row with room: 4 + 4 of members 1 and 2 leave room for member 0.
    assert batch.plan(range(5), 10, keep_groups=False) == [[0, 1, 2], [3, 4]]
    # Groups whole: 8 of members 3 and 4 first; 6 and 4 of the others fill the second row.
    assert batch.plan(range(5), 10, keep_groups=True) == [[3, 4], [0, 1, 2]]
    # Over the budget: a row of its own, still whole. Members left out stay out.
    assert batch.plan(range(5), 5, keep_groups=True) == [[3, 4], [0, 1], [2]]
    assert batch.plan([4, 1, 0], 7, keep_groups=True) == [[1, 0], [4]]
    assert batch.plan([], 7, keep_groups=True) == batch.plan([], 7, keep_groups=False) == []


def test_a_micro_batch_worked_out_by_hand() -> None:
    batch = make_batch(make_groups([[1, 3], [2]]))
    members = [2, 1]
    micro_batch = MicroBatch(
        batch=batch, members=members, row=pack_row([batch.sequences[m] for m in members])
    )
    assert micro_batch.row.target_ids_N.tolist() == [4, 5, 1, 2, 3]
    assert micro_batch.mask_N.tolist() == [True] * 5
    assert micro_batch.sequence_ids_N.tolist() == [0, 0, 1, 1, 1]
    assert micro_batch.select(batch.reference_logprobs_BT).tolist() == [-8, -10, -2, -4, -6]
    into_BT = torch.full((3, 3), 77.0)
    micro_batch.scatter(torch.tensor([10.0, 20, 30, 40, 50]), into_BT)
    assert into_BT[0].tolist() == [77, 77, 77]
    assert into_BT[1].tolist() == [30, 40, 50]
    assert into_BT[2, :2].tolist() == [10, 20]


def test_an_idle_row_counts_nothing() -> None:
    batch = make_batch(make_groups([[2, 3]]))
    idle = MicroBatch(batch=batch, members=[], row=pack_row([batch.sequences[0]]))
    assert idle.mask_N.tolist() == [False, False]
    assert idle.sequence_ids_N.tolist() == [0, 0]
    assert idle.select(batch.behavior_logprobs_BT).tolist() == [0, 0]
    into_BT = torch.full((2, 3), 77.0)
    idle.scatter(torch.ones(2), into_BT)
    assert (into_BT == 77).all()
