"""Which texts are compared: pairs and rankings of texts that all can be, and within groups.

Dimension key: S texts, P pairs, R rankings, K texts of a ranking.
"""

from typing import Any

import pytest
import torch

from core.errors import UserError
from learner.config import RewardModelConfig
from learner.rankings import draw_pairs, draw_rankings, within_groups


def config(**options: Any) -> RewardModelConfig:
    return RewardModelConfig(**{"num_pairs": 3000, **options})


# --- pairs ----------------------------------------------------------------------------------------------


def test_pairs_have_the_better_one_first_and_are_far_enough_apart() -> None:
    ratings_S = torch.tensor([0.0, 0.25, 0.5, 3.0])
    chosen_P, rejected_P = draw_pairs(ratings_S, config(min_rating_difference=0.5))
    # 0.25 is too close to both its neighbours; exactly 0.5 apart is enough.
    assert set(zip(chosen_P.tolist(), rejected_P.tolist(), strict=True)) == {(2, 0), (3, 0), (3, 1), (3, 2)}


def test_as_many_pairs_as_wanted_and_the_seed_decides_which() -> None:
    ratings_S = torch.arange(50.0)
    draws = [torch.stack(draw_pairs(ratings_S, config(split_seed=seed))).tolist() for seed in (1, 1, 2)]
    assert len(draws[0][0]) == len(draws[0][1]) == 3000
    assert draws[0] == draws[1] != draws[2]


def test_ratings_too_close_to_make_a_pair_are_refused() -> None:
    with pytest.raises(UserError, match="no two ratings are 0.5 apart; lower min_rating_difference"):
        draw_pairs(torch.tensor([1.0, 1.25, 1.4]), config(min_rating_difference=0.5))


# --- rankings -------------------------------------------------------------------------------------------


def test_ranks_count_the_better_ones_and_ties_share_a_rank() -> None:
    """Texts 0 and 1 are rated 1, text 2 is rated 3, text 3 is rated 2."""
    ratings_S = torch.tensor([1.0, 1.0, 3.0, 2.0])
    members_RK, ranks_RK = draw_rankings(ratings_S, config(num_pairs=60000))
    assert members_RK.shape == ranks_RK.shape
    seen = dict(zip(map(tuple, members_RK.tolist()), ranks_RK.tolist(), strict=True))
    by_hand = {
        (0, 1, 2, 3): [2, 2, 0, 1],
        (2, 3, 1, 0): [0, 1, 2, 2],
        (3, 3, 0, 1): [0, 0, 2, 2],
        (2, 1, 1, 0): [0, 1, 1, 1],
        (3, 0, 2, 2): [2, 3, 0, 0],
        (0, 0, 0, 3): [1, 1, 1, 0],
    }
    assert {members: seen[members] for members in by_hand} == by_hand
    assert (ranks_RK.min(1).values == 0).all()


def test_a_ranking_without_two_ranks_is_left_out() -> None:
    """Two ratings: 1 of 8 rankings of four is all of one. 6 pairs a ranking: 100 are drawn."""
    members_RK, ranks_RK = draw_rankings(torch.tensor([1.0, 2.0]), config(num_pairs=600))
    assert 70 < len(members_RK) < 100
    assert (ranks_RK.max(1).values > 0).all()
    for members, ranks in zip(members_RK.tolist(), ranks_RK.tolist(), strict=True):
        num_best = sum(members)  # text 1 is the better one
        assert ranks == [0 if member else num_best for member in members]


@pytest.mark.parametrize(("size", "num_rankings"), [(4, 100), (5, 60), (9, 16)])
def test_rankings_hold_the_wanted_pairs_together(size: int, num_rankings: int) -> None:
    members_RK, _ = draw_rankings(torch.arange(1e6), config(num_pairs=600, ranking_size=size))
    assert members_RK.shape == (num_rankings, size)  # 600 over 6, 10 and 36 pairs a ranking


def test_at_least_one_ranking_is_drawn() -> None:
    assert len(draw_rankings(torch.arange(1e6), config(num_pairs=1))[0]) == 1


def test_ratings_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(UserError, match="no ranking tells texts apart"):
        draw_rankings(torch.ones(5), config())


# --- within groups --------------------------------------------------------------------------------------

RATINGS_S = torch.tensor([1.0, 0.0, 5.0, 5.0, 2.0, 5.1])
"""Of two groups: texts 0 and 1, and texts 2 to 5."""


def test_pairs_are_of_one_group_the_better_first_and_far_enough_apart() -> None:
    rankings = within_groups(RATINGS_S, [2, 4], config(min_rating_difference=0.5))
    assert sorted(rankings.members_RK.tolist()) == [[0, 1], [2, 4], [3, 4], [5, 4]]
    assert rankings.ranks_RK.tolist() == [[0, 1]] * 4


def test_at_most_as_many_pairs_as_wanted_by_the_seed() -> None:
    draws = [
        within_groups(RATINGS_S, [2, 4], config(num_pairs=2, split_seed=seed)).members_RK.tolist()
        for seed in (1, 1, 2, 3)
    ]
    assert [len(pairs) for pairs in draws] == [2] * 4
    assert draws[0] == draws[1]
    assert len({str(pairs) for pairs in draws}) > 1


def test_a_whole_group_is_one_ranking_and_smaller_ones_are_filled_up() -> None:
    ratings_S = torch.tensor([1.0, 3.0, 2.0, 3.0, 7.0, 7.0, 7.0, 7.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    rankings = within_groups(ratings_S, [4, 4, 5], config(loss="k-wise"))  # of the second nothing is told
    assert rankings.members_RK.tolist() == [[0, 1, 2, 3, -1], [8, 9, 10, 11, 12]]
    assert rankings.ranks_RK.tolist() == [[3, 0, 2, 0, -1], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("sizes", [[2, 4], [4, 2], [10]])
def test_groups_that_are_no_rankings_are_refused(sizes: list[int]) -> None:
    ratings_S = torch.arange(float(sum(sizes)))
    with pytest.raises(
        UserError, match=r'"k-wise": ranks 4 to 9 completions of a prompt, and group \d .* has'
    ):
        within_groups(ratings_S, sizes, config(loss="k-wise"))


@pytest.mark.parametrize(("loss", "said"), [("k-wise", "no group tells"), ("margin", "no two ratings")])
def test_ties_alone_are_refused(loss: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        within_groups(torch.ones(8), [4, 4], config(loss=loss))
