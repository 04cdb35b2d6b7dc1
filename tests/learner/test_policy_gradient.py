"""Advantages of PPO, GRPO, RLOO and REINFORCE++, and the log-probs of their ratios, on a batch made by hand.

The policy is a table and every token has an id of its own (`tests/learner/by_hand.py`), so that what a token
gets can be read off.

Dimension key: B rollouts, T completion tokens (padded), V vocabulary.
"""

import math
from typing import Any

import pytest
import torch

from learner.algorithm_config import (
    A2CConfig,
    GRPOConfig,
    PolicyGradientAlgorithm,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
)
from tests.learner.by_hand import (
    ROWS,
    TableEngine,
    batch_by_hand,
    by_token,
    each,
    micro_batch_of,
    objective,
    table_policy,
)

pytestmark = pytest.mark.usefixtures("process_group")


def advantages(config: PolicyGradientAlgorithm, **options: Any) -> list[float]:
    batch = batch_by_hand()
    targets = objective(config, **options).targets(batch, [], step=0)
    assert targets["ratio_logprobs"] is batch.behavior_logprobs_BT
    return by_token(batch, targets["advantages"])


# --- advantages -----------------------------------------------------------------------------------------

# Scores 4, 1 | 3, 6 less half the KL of 2, 0 | 2, 0: 3, 1 | 2, 6


def test_rloo_by_hand() -> None:
    # Against the other one: 2, -2 | -4, 4. Their deviation over the batch: sqrt((4 + 4 + 16 + 16) / 4)
    plain = RLOOConfig(kind="rloo", scale_advantages=False)
    assert advantages(plain) == pytest.approx(each(2, -2, -4, 4))
    scaled = each(*(value / 10**0.5 for value in (2, -2, -4, 4)))
    assert advantages(RLOOConfig(kind="rloo")) == pytest.approx(scaled, rel=1e-5)


def test_grpo_by_hand() -> None:
    # Against the mean: 1, -1 | -2, 2. Deviations of two, n - 1: sqrt 2 and sqrt 8; either way 1 / sqrt 2
    unscaled = GRPOConfig(kind="grpo", scale_by_std=False)
    assert advantages(unscaled) == pytest.approx(each(1, -1, -2, 2))
    half = 0.5**0.5
    assert advantages(GRPOConfig(kind="grpo")) == pytest.approx(each(half, -half, -half, half), rel=1e-5)


def test_reinforce_by_hand() -> None:
    # Rewards -1/2, 7/2 | 1 | 2 | 0, 0, 6; to go: 3, 7/2 | 1 | 2 | 6, 6, 6.
    # Over the 7 tokens: sum 27.5, squares 9 + 12.25 + 1 + 4 + 108 = 134.25
    mean = 27.5 / 7
    std = math.sqrt(134.25 / 7 - mean**2)
    expected = [(value - mean) / std for value in (3, 3.5, 1, 2, 6, 6, 6)]
    assert advantages(ReinforceConfig(kind="reinforce++")) == pytest.approx(expected, rel=1e-5)


def test_kl_in_the_loss_is_not_in_the_reward() -> None:
    # Scores alone: 4, 1 | 3, 6
    options = {"placement": "loss", "estimator": "k3"}
    assert advantages(RLOOConfig(kind="rloo", scale_advantages=False), **options) == pytest.approx(
        each(3, -3, -3, 3)
    )
    assert advantages(GRPOConfig(kind="grpo", scale_by_std=False), **options) == pytest.approx(
        each(1.5, -1.5, -1.5, 1.5)
    )


def test_the_estimator_of_the_reward_by_hand() -> None:
    # k2 is half the square: 1/2 + 1/2 and 2, so 4 - 1/2, 1 | 3 - 1, 6
    config = RLOOConfig(kind="rloo", scale_advantages=False)
    assert advantages(config, estimator="k2") == pytest.approx(each(2.5, -2.5, -4, 4))
    assert advantages(config, kl_coef=0.0) == pytest.approx(each(3, -3, -3, 3))


def test_overlong_completions_lose_score() -> None:
    # Of at most 3 tokens the last 2 cost 1/2 each: lengths 2, 1 | 1, 3 lose 1/2, 0 | 0, 1: 3.5, 1 | 3, 5
    config = GRPOConfig(kind="grpo", scale_by_std=False, overlong_buffer_tokens=2)
    assert advantages(config, kl_coef=0.0) == pytest.approx(each(1.25, -1.25, -1, 1))
    # With a limit of 5 they are all short enough.
    assert advantages(config, kl_coef=0.0, max_new_tokens=5) == pytest.approx(each(1.5, -1.5, -1.5, 1.5))


def test_ppo_by_hand() -> None:
    # gamma 1, lam 1/2; rewards -1/2, 7/2 | 1 | 2 | 0, 0, 6; values 1, 2 | 1 | 0 | 2, 4, 4
    #   3.5 - 2 = 1.5; -0.5 + 2 - 1 + 1.5 / 2 = 1.25 | 0 | 2 | 6 - 4 = 2; 0 + 4 - 4 + 2/2 = 1; 4 - 2 + 1/2 = 2.5
    batch, value_model = batch_by_hand(), TableEngine(1, 2, 1, 0, 2, 4, 4)
    config = PPOConfig(kind="ppo", gae_lambda=0.5, whiten_advantages=False)
    rows = [micro_batch_of(batch, members) for members in ROWS]
    targets = objective(config, value_model=value_model).targets(batch, rows, step=0)
    assert by_token(batch, targets["advantages"]) == pytest.approx([1.25, 1.5, 0, 2, 2.5, 1, 2])
    assert by_token(batch, targets["old_values"]) == [1, 2, 1, 0, 2, 4, 4]
    assert by_token(batch, targets["returns"]) == pytest.approx([2.25, 3.5, 1, 2, 4.5, 5, 6])
    assert not any(target.requires_grad for target in targets.values())
    # Whitened over the 7 tokens: sum 10.25, squares 1.5625 + 2.25 + 4 + 6.25 + 1 + 4 = 19.0625. Returns stay.
    config = PPOConfig(kind="ppo", gae_lambda=0.5)
    whitened = objective(config, value_model=value_model).targets(batch, rows, step=0)
    mean = 10.25 / 7
    std = math.sqrt(19.0625 / 7 - mean**2)
    expected = [(value - mean) / std for value in (1.25, 1.5, 0, 2, 2.5, 1, 2)]
    assert by_token(batch, whitened["advantages"]) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(whitened["returns"], targets["returns"])


def test_a2c_looks_to_the_end_and_does_not_whiten() -> None:
    # Rewards to go 3, 7/2 | 1 | 2 | 6, 6, 6 less the values 1, 2 | 1 | 0 | 2, 4, 4
    batch, value_model = batch_by_hand(), TableEngine(1, 2, 1, 0, 2, 4, 4)
    rows = [micro_batch_of(batch, members) for members in ROWS]
    targets = objective(A2CConfig(kind="a2c"), value_model=value_model).targets(batch, rows, step=0)
    assert by_token(batch, targets["advantages"]) == pytest.approx([2, 1.5, 0, 2, 4, 2, 2])


@pytest.mark.parametrize(
    ("level", "weights"),
    [("token", [0.5, 2, 1, 1, 0.5, 0.5, 2]), ("sequence", [1.5, 1.5, 1, 1, 0.5, 0.5, 0.5])],
)
def test_importance_sampling_weighs_advantages_and_moves_the_ratio(level: Any, weights: list[float]) -> None:
    # Policy / behavior 1/2, 3 | 1 | 1 | 1/2, 1/2, 2; of sequences 3/2, 1, 1, 1/2; at most 2
    policy = table_policy(0.5, 3, 1, 1, 0.5, 0.5, 2)
    batch = batch_by_hand()
    rows = [micro_batch_of(batch, members) for members in ROWS]
    config = RLOOConfig(kind="rloo", scale_advantages=False, importance_sampling=level)
    targets = objective(config, policy=policy).targets(batch, rows, step=0)
    plain = each(2, -2, -4, 4)
    expected = [weight * advantage for weight, advantage in zip(weights, plain, strict=True)]
    assert by_token(batch, targets["advantages"]) == pytest.approx(expected, rel=1e-5)
    assert by_token(batch, targets["ratio_logprobs"]) == pytest.approx(policy.table_V.tolist())
    assert not any(target.requires_grad for target in targets.values())
    assert policy.temperatures == [0.7, 0.7]
