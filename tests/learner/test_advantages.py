"""Rewards, GAE and group baselines against numbers worked out by hand, and their rules.

Dimension key: B sequences, T token positions.
"""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.advantages import (
    gae,
    group_advantages,
    kl_penalized_rewards,
    leave_one_out_advantages,
    overlong_penalty,
)

NAN = float("nan")


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def bools(*rows: list[int]) -> Tensor:
    return torch.tensor(rows).bool()


def random_runs(seed: int, num_rows: int = 4, length: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and a mask whose True positions are one run a row, anywhere, perhaps empty."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, length + 1, (2, num_rows), generator=generator).sort(dim=0).values
    t = torch.arange(length)
    mask_BT = (t >= ends[0][:, None]) & (t < ends[1][:, None])
    rewards_BT, values_BT = torch.randn(2, num_rows, length, generator=generator, dtype=torch.float64)
    return rewards_BT, values_BT, mask_BT


# --- token rewards --------------------------------------------------------------------------------------


def test_kl_penalized_rewards_by_hand() -> None:
    # kl_coef 0.5. Row 0: prompt at 0, tokens 1-2, padding 3: -0.5*2 = -1; last -0.5*4 + 10 = 8
    # Row 1: one token, at 3: -0.5*1 - 1 = -1.5.  Row 2: a gap (a tool's reply) at 1: -0.5*1; 0; -0.5*3 + 7
    rewards_BT = kl_penalized_rewards(
        torch.tensor([10.0, -1.0, 7.0], dtype=torch.float64),
        tensor([NAN, 2, 4, 9], [9, 9, 9, 1], [1, 9, 3, 9]),
        bools([0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 1, 0]),
        kl_coef=0.5,
    )
    torch.testing.assert_close(rewards_BT, tensor([0, -1, 8, 0], [0, 0, 0, -1.5], [-0.5, 0, 5.5, 0]))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(0, 2))
def test_token_rewards_sum_to_score_minus_the_penalty(seed: int, kl_coef: float) -> None:
    kl_BT, _, mask_BT = random_runs(seed)
    mask_BT[:, 2] |= ~mask_BT.any(1)
    scores_B = torch.arange(4, dtype=torch.float64)
    rewards_BT = kl_penalized_rewards(scores_B, kl_BT, mask_BT, kl_coef=kl_coef)
    torch.testing.assert_close(rewards_BT.sum(1), scores_B - kl_coef * (kl_BT * mask_BT).sum(1))
    assert (rewards_BT[~mask_BT] == 0).all()


def test_overlong_penalty_by_hand() -> None:
    # Limit 20, the last 5 cost: nothing up to 15, then a fifth a token, all of it at 20 and beyond.
    lengths_B = torch.tensor([1, 15, 16, 18, 20, 30])
    penalty_B = overlong_penalty(lengths_B, max_tokens=20, buffer_tokens=5)
    torch.testing.assert_close(penalty_B, torch.tensor([0, 0, 0.2, 0.6, 1, 1]))
    penalty_B = overlong_penalty(torch.tensor([0, 5, 20]), max_tokens=20, buffer_tokens=20)
    torch.testing.assert_close(penalty_B, torch.tensor([0, 0.25, 1]))
    assert overlong_penalty(torch.tensor([19, 20]), max_tokens=20, buffer_tokens=1).tolist() == [0, 1]


# --- GAE ------------------------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    # gamma 0.5, lam 0.5, gamma lam = 0.25; prompt at 0, tokens 1-3, padding 4. r = (1, 0, 4), V = (2, 4, 2)
    #   delta_3 = 4 + 0.5*0 - 2 = 2       A_3 = 2
    #   delta_2 = 0 + 0.5*2 - 4 = -3      A_2 = -3 + 0.25*2 = -2.5
    #   delta_1 = 1 + 0.5*4 - 2 = 1       A_1 = 1 - 0.25*2.5 = 0.375
    # returns A + V: 2.375, 1.5, 4.  What stands in prompt and padding must not matter, even NaN.
    advantages_BT, returns_BT = gae(
        tensor([NAN, 1, 0, 4, 100]), tensor([100, 2, 4, 2, NAN]), bools([0, 1, 1, 1, 0]), gamma=0.5, lam=0.5
    )
    torch.testing.assert_close(advantages_BT, tensor([0, 0.375, -2.5, 2, 0]))
    torch.testing.assert_close(returns_BT, tensor([0, 2.375, 1.5, 4, 0]))


def test_score_at_the_end_reaches_every_token_as_in_the_source() -> None:
    # Source 003: reward 100 on the last token alone, values 0, gamma lam = 0.95: A_t = 100 * 0.95^(2 - t)
    advantages_BT, _ = gae(
        tensor([0, 0, 100]), torch.zeros(1, 3, dtype=torch.float64), bools([1, 1, 1]), gamma=1.0, lam=0.95
    )
    torch.testing.assert_close(advantages_BT, tensor([90.25, 95, 100]))


def test_gae_stops_where_a_packed_row_goes_on_to_the_next_sequence() -> None:
    # gamma 0.5, lam 0.5; sequence 8: a prompt token, then r = (1, 2), V = (2, 4); sequence 3: r = (4), V = (1)
    #   A = 2 - 4 = -2;  1 + 0.5*4 - 2 + 0.25*-2 = 0.5   |   A = 4 - 1 = 3, which sequence 8 must not hear of
    row = tensor([NAN, 1, 2, 4], [NAN, 2, 4, 1])
    advantages, returns = gae(
        row[0], row[1], bools([0, 1, 1, 1])[0], gamma=0.5, lam=0.5, sequence_ids=torch.tensor([8, 8, 8, 3])
    )
    torch.testing.assert_close(advantages, tensor([0, 0.5, -2, 3])[0])
    torch.testing.assert_close(returns, tensor([0, 2.5, 2, 4])[0])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_gae_of_a_packed_row_is_that_of_padded_ones(seed: int, keep_masked_out: bool) -> None:
    rewards_BT, values_BT, mask_BT = random_runs(seed)
    kept_BT = torch.ones_like(mask_BT) if keep_masked_out else mask_BT
    expected = gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.8)
    ids_BT = torch.tensor([5, 2, 9, 4])[:, None].expand_as(mask_BT)
    packed = gae(
        rewards_BT[kept_BT],
        values_BT[kept_BT],
        mask_BT[kept_BT],
        gamma=0.9,
        lam=0.8,
        sequence_ids=ids_BT[kept_BT],
    )
    for packed_N, padded_BT in zip(packed, expected, strict=True):
        torch.testing.assert_close(packed_N, padded_BT[kept_BT])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_discounted_sum_of_deltas(seed: int, gamma: float, lam: float) -> None:
    """The definition (arXiv:1506.02438, eq. 16), on each run alone, cut out of its row."""
    rewards_BT, values_BT, mask_BT = random_runs(seed)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=gamma, lam=lam)
    assert (torch.stack([advantages_BT, returns_BT])[:, ~mask_BT] == 0).all()
    for row, mask_T in enumerate(mask_BT):
        rewards, values = rewards_BT[row, mask_T], values_BT[row, mask_T]
        after = torch.cat([values, values.new_zeros(1)])[1:]
        deltas = rewards + gamma * after - values
        for t in range(len(deltas)):
            expected = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:].tolist()))
            assert advantages_BT[row, mask_T][t].item() == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_gae_at_its_two_ends(seed: int, gamma: float) -> None:
    rewards_BT, values_BT, mask_BT = random_runs(seed)
    _, monte_carlo_BT = gae(rewards_BT, values_BT, mask_BT, gamma=gamma, lam=1.0)
    # lam = 1: the return is the discounted sum of rewards; the values cancel.
    other_values_BT = torch.randn(values_BT.shape, generator=torch.Generator().manual_seed(seed)).double()
    torch.testing.assert_close(
        gae(rewards_BT, other_values_BT, mask_BT, gamma=gamma, lam=1.0)[1], monte_carlo_BT
    )
    # lam = 0: the advantage is the one-step error; exact values (here the returns) leave none.
    advantages_BT, _ = gae(rewards_BT, monte_carlo_BT, mask_BT, gamma=gamma, lam=0.0)
    torch.testing.assert_close(advantages_BT, torch.zeros_like(advantages_BT))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_gae_does_not_see_padding(seed: int) -> None:
    rewards_BT, values_BT, mask_BT = random_runs(seed)
    expected = gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.8)
    junk = torch.full((4, 3), 7.0, dtype=torch.float64)
    padded = gae(
        torch.cat([junk, rewards_BT, junk], 1),
        torch.cat([junk, values_BT, junk], 1),
        torch.cat([junk < 0, mask_BT, junk < 0], 1),
        gamma=0.9,
        lam=0.8,
    )
    for one, other in zip(expected, padded, strict=True):
        assert torch.equal(one, other[:, 3:-3])


def test_gae_works_in_float32_and_carries_no_gradient() -> None:
    values_BT = torch.zeros(1, 2, requires_grad=True)
    advantages_BT, returns_BT = gae(torch.ones(1, 2), values_BT, bools([1, 1]), gamma=1.0, lam=1.0)
    assert advantages_BT.dtype == returns_BT.dtype == torch.float32
    assert not advantages_BT.requires_grad
    assert not returns_BT.requires_grad
    torch.testing.assert_close(advantages_BT, torch.tensor([[2.0, 1.0]]))


# --- groups ---------------------------------------------------------------------------------------------

SCORES_B = torch.tensor([1.0, 10.0, 2.0, 10.0, 6.0], dtype=torch.float64)
GROUP_IDS_B = torch.tensor([7, 3, 7, 3, 7])


def test_group_advantages_by_hand() -> None:
    # Group 7: scores 1, 2, 6, mean 3: -2, -1, 3; sample variance (4 + 1 + 9) / 2 = 7. Group 3: 10, 10: 0, 0
    centered_B = torch.tensor([-2.0, 0, -1, 0, 3], dtype=torch.float64)
    advantages_B = group_advantages(SCORES_B, GROUP_IDS_B, scale_by_std=False)
    torch.testing.assert_close(advantages_B, centered_B)
    advantages_B = group_advantages(SCORES_B, GROUP_IDS_B, scale_by_std=True)
    torch.testing.assert_close(advantages_B, centered_B / 7**0.5, rtol=1e-5, atol=0)


def test_leave_one_out_by_hand() -> None:
    # Group 7: 1 - (2 + 6) / 2 = -3;  2 - (1 + 6) / 2 = -1.5;  6 - (1 + 2) / 2 = 4.5
    expected_B = torch.tensor([-3.0, 0, -1.5, 0, 4.5], dtype=torch.float64)
    torch.testing.assert_close(leave_one_out_advantages(SCORES_B, GROUP_IDS_B), expected_B)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(0, 2)), max_size=12),
    st.floats(-50, 50),
    st.randoms(use_true_random=False),
)
def test_group_rules(samples: list[tuple[float, int]], shift: float, random: Random) -> None:
    """A shift of all rewards of a prompt changes nothing; order does not matter; each group sums to 0."""
    samples = [*samples, (0.5, 0), (1.5, 0), (0.0, 1), (0.0, 1), (3.0, 2), (1.0, 2)]  # at least 2 a group
    scores_B = torch.tensor([score for score, _ in samples], dtype=torch.float64)
    ids_B = torch.tensor([group for _, group in samples])
    order = torch.tensor(random.sample(range(len(samples)), len(samples)))
    for advantages in (
        leave_one_out_advantages,
        lambda s, g: group_advantages(s, g, scale_by_std=False),
        lambda s, g: group_advantages(s, g, scale_by_std=True),
    ):
        expected_B = advantages(scores_B, ids_B)
        torch.testing.assert_close(
            advantages(scores_B + shift * ids_B, ids_B), expected_B, atol=1e-6, rtol=1e-6
        )
        torch.testing.assert_close(
            advantages(scores_B[order], ids_B[order]), expected_B[order], atol=1e-9, rtol=0
        )
        for group in range(3):
            assert expected_B[ids_B == group].sum().abs() < 1e-6


def test_equal_scores_teach_nothing_in_float32() -> None:
    """0.1 and 10.1 are not exact in float32, nor is their naive mean: no noise may be blown up to +-1."""
    for score in (0.1, 10.1, -1e4 / 3):
        scores_B = torch.full((7,), score)
        assert (group_advantages(scores_B, torch.zeros(7, dtype=torch.int64), scale_by_std=True) == 0).all()


def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks() -> None:
    """Two actions with p(1) = 0.3 and reward 1 for action 1, groups of 3: enumerate all 8 groups.

    The true gradient of the mean reward by the logit of action 1 is p (1 - p) = 0.21; the score of action
    a is a - p. Leave-one-out gives 0.21; the mean of all three gives (n - 1) / n = 2/3 of it, 0.14.
    """
    p, gradients = 0.3, {"loo": 0.0, "mean": 0.0}
    for number in range(8):
        actions_B = torch.tensor([(number >> i) & 1 for i in range(3)], dtype=torch.float64)
        probability = torch.where(actions_B == 1, p, 1 - p).prod().item()
        ids_B = torch.zeros(3, dtype=torch.int64)
        loo_B = leave_one_out_advantages(actions_B, ids_B)
        mean_B = group_advantages(actions_B, ids_B, scale_by_std=False)
        gradients["loo"] += probability * ((actions_B - p) * loo_B).mean().item()
        gradients["mean"] += probability * ((actions_B - p) * mean_B).mean().item()
    assert gradients == pytest.approx({"loo": 0.21, "mean": 0.14})


# --- errors ---------------------------------------------------------------------------------------------


def test_errors_say_what_to_do() -> None:
    ones = torch.ones(1, 3)
    with pytest.raises(ValueError, match="row of its own"):
        gae(ones, ones, bools([1, 0, 1]), gamma=1, lam=1)
    with pytest.raises(ValueError, match=r"gamma is 1\.5"):
        gae(ones, ones, bools([1, 1, 1]), gamma=1.5, lam=1)
    with pytest.raises(ValueError, match=r"mask\.bool"):
        gae(ones, ones, ones, gamma=1, lam=1)
    with pytest.raises(ValueError, match=r"rewards \[1, 3\], values \[3\]"):
        gae(ones, ones[0], bools([1, 1, 1]), gamma=1, lam=1)
    with pytest.raises(ValueError, match="drop such rollouts"):
        kl_penalized_rewards(torch.ones(1), ones, bools([0, 0, 0]), kl_coef=0.1)
    for buffer_tokens in (0, 21):
        with pytest.raises(
            ValueError, match=f"buffer_tokens is {buffer_tokens}; set it from 1 to the limit, 20"
        ):
            overlong_penalty(torch.ones(1), max_tokens=20, buffer_tokens=buffer_tokens)
    for advantages in (leave_one_out_advantages, lambda s, g: group_advantages(s, g, scale_by_std=True)):
        with pytest.raises(ValueError, match=r"groups \[5\] have one sample.*group_size"):
            advantages(torch.ones(3), torch.tensor([4, 4, 5]))
