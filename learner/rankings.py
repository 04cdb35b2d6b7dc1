"""Ratings of texts -> which texts are compared: pairs, or rankings of several.

Any two rated snippets can be compared; of completions only those of one prompt.

Dimension key: S texts, P pairs, R rankings, K texts of a ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import UserError
from core.messages import Int32s
from learner.config import MAX_RANKING_SIZE, MIN_RANKING_SIZE, RewardModelConfig

DRAWS_PER_PAIR = 4
"""Random pairs drawn for each one wanted: about half are in the wrong order, some are too close."""
NOBODY = -1
"""In the place of a text, and of its rank, where a ranking has fewer than others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rankings:
    """Texts by number, best first where ranks say so. Pairs are rankings of two, the better one first."""

    members_RK: Tensor
    """[R, K] int64: which texts; -1: none."""
    ranks_RK: Tensor
    """[R, K] int64: 0 is best; equal ranks are ties; -1: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedTexts:
    """Texts, and what people said of them."""

    token_ids: Sequence[Int32s]
    starts: Sequence[int]
    """Of each text the first token whose likelihood counts: 1, or the first behind the prompt."""
    ratings_S: Tensor
    rankings: Rankings


def draw(ratings_S: Tensor, config: RewardModelConfig) -> Rankings:
    """Comparisons of texts that can all be compared. Raises `UserError` if their ratings do not tell them apart."""
    if config.loss == "k-wise":
        members_RK, ranks_RK = draw_rankings(ratings_S, config)
        return Rankings(members_RK=members_RK, ranks_RK=ranks_RK)
    return _of_pairs(torch.stack(draw_pairs(ratings_S, config), dim=1))


def draw_pairs(ratings_S: Tensor, config: RewardModelConfig) -> tuple[Tensor, Tensor]:
    """([P], [P]): the better and the worse rated of each pair. Raises `UserError` if there is none."""
    generator = torch.Generator().manual_seed(config.split_seed)
    drawn = (2, DRAWS_PER_PAIR * config.num_pairs)
    first, second = torch.randint(len(ratings_S), drawn, generator=generator)
    far_apart = ratings_S[first] - ratings_S[second] >= config.min_rating_difference
    chosen_P, rejected_P = first[far_apart][: config.num_pairs], second[far_apart][: config.num_pairs]
    if len(chosen_P) == 0:
        raise _too_close(config)
    return chosen_P, rejected_P


def draw_rankings(ratings_S: Tensor, config: RewardModelConfig) -> tuple[Tensor, Tensor]:
    """([R, K], [R, K]): texts, and their ranks with 0 for the best. Together they have `num_pairs` pairs.

    Texts rated the same share a rank and make no pair; a ranking without any two ranks is left out.
    """
    size = config.ranking_size
    num_rankings = max(1, config.num_pairs // (size * (size - 1) // 2))
    generator = torch.Generator().manual_seed(config.split_seed)
    members_RK = torch.randint(len(ratings_S), (num_rankings, size), generator=generator)
    ranks_RK = _ranks_of(ratings_S[members_RK])
    told_apart_R = (ranks_RK > 0).any(1)
    if not told_apart_R.any():
        raise UserError(
            "reward_model: no ranking tells texts apart; raise num_pairs, or give ratings that differ"
        )
    return members_RK[told_apart_R], ranks_RK[told_apart_R]


def within_groups(ratings_S: Tensor, sizes: Sequence[int], config: RewardModelConfig) -> Rankings:
    """Comparisons within groups that lie side by side: every pair that is rated far enough apart, `num_pairs` of
    them at most, or each whole group as one ranking. Raises `UserError` for a group that the loss has no use for,
    and if none tells its texts apart."""
    groups = torch.arange(len(ratings_S)).split(list(sizes))
    if config.loss == "k-wise":
        return _whole_groups(groups, ratings_S)
    pairs = []
    for members in groups:
        gap_KK = ratings_S[members][:, None] - ratings_S[members][None]
        pairs.append(members[(gap_KK >= config.min_rating_difference).nonzero()])
    pairs_P2 = torch.cat(pairs)
    if len(pairs_P2) == 0:
        raise _too_close(config)
    order = torch.randperm(len(pairs_P2), generator=torch.Generator().manual_seed(config.split_seed))
    return _of_pairs(pairs_P2[order[: config.num_pairs]])


def _whole_groups(groups: Sequence[Tensor], ratings_S: Tensor) -> Rankings:
    for number, members in enumerate(groups):
        if not MIN_RANKING_SIZE <= len(members) <= MAX_RANKING_SIZE:
            raise UserError(
                f'reward_model.loss = "k-wise": ranks {MIN_RANKING_SIZE} to {MAX_RANKING_SIZE} completions of a '
                f"prompt, and group {number} of its datasets has {len(members)}; "
                'set "bradley-terry", or give whole rankings'
            )
    told_apart = [members for members in groups if len(ratings_S[members].unique()) > 1]
    if not told_apart:
        raise UserError("reward_model.datasets: no group tells its texts apart; give ratings that differ")
    shape = (len(told_apart), max(map(len, told_apart)))
    members_RK, ranks_RK = torch.full(shape, NOBODY), torch.full(shape, NOBODY)
    for row, members in enumerate(told_apart):
        members_RK[row, : len(members)] = members
        ranks_RK[row, : len(members)] = _ranks_of(ratings_S[members][None])[0]
    return Rankings(members_RK=members_RK, ranks_RK=ranks_RK)


def _ranks_of(ratings_RK: Tensor) -> Tensor:
    """[R, K]: how many are rated better."""
    return (ratings_RK[:, None, :] > ratings_RK[:, :, None]).sum(2)


def _of_pairs(members_R2: Tensor) -> Rankings:
    return Rankings(members_RK=members_R2, ranks_RK=torch.arange(2).expand_as(members_R2))


def _too_close(config: RewardModelConfig) -> UserError:
    return UserError(
        f"reward_model: no two ratings are {config.min_rating_difference} apart; lower min_rating_difference"
    )
