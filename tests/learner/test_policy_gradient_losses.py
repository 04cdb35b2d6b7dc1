"""Gradients and metrics of policy gradient methods on a batch made by hand.

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
    PPOConfig,
    RLOOConfig,
)
from learner.losses import Aggregation, Metrics, combine_metrics
from learner.policy_gradient import PolicyGradient
from tests.learner.by_hand import (
    KL_V,
    ROWS,
    TableEngine,
    batch_by_hand,
    each,
    micro_batch_of,
    objective,
    table_policy,
)

pytestmark = pytest.mark.usefixtures("process_group")


def accumulated(method: PolicyGradient, step: int = 0) -> Metrics:
    """Metrics after forward and backward of the two rows, and of one that counts nothing."""
    batch = batch_by_hand()
    rows = [micro_batch_of(batch, members) for members in (*ROWS, [])]
    targets = method.targets(batch, rows[:2], step=step)
    counts = method.counts(batch, method.members(batch))
    parts = [method.accumulate(row, targets, counts, last=row is rows[-1]) for row in rows]
    return combine_metrics(parts)


def test_counts_by_hand() -> None:
    normalizers: dict[Aggregation, float] = {"token": 5.0, "sequence": 3.0, "constant": 9.0}
    for aggregation, normalizer in normalizers.items():
        method = objective(GRPOConfig(kind="grpo", aggregation=aggregation))
        assert method.members(batch_by_hand()) == [0, 1, 2, 3]
        counts = method.counts(batch_by_hand(), [1, 2, 3])
        assert counts == {"tokens": 5, "normalizer": normalizer}


@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [
        ("token", [1 / 7] * 7),
        ("sequence", [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 12, 1 / 12, 1 / 12]),
        ("constant", [1 / 12] * 7),  # 4 sequences of at most 3 tokens
    ],
)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_on_policy_it_is_the_policy_gradient(aggregation: Any, weights: list[float], ratio: Any) -> None:
    """-w A for every token, and the loss its sum; a ratio of the sequence spreads the same evenly."""
    policy = table_policy(*[1] * 7)
    config = RLOOConfig(kind="rloo", scale_advantages=False, aggregation=aggregation, ratio=ratio)
    metrics = accumulated(objective(config, policy=policy))
    expected = [-weight * value for weight, value in zip(weights, each(2, -2, -4, 4), strict=True)]
    assert policy.gradient() == pytest.approx(expected)
    assert metrics["policy_loss"].item() == pytest.approx(sum(expected))
    assert metrics["ratio_max"] == 1
    assert metrics["logprob_gap_max"] == metrics["approx_kl"] == 0
    assert policy.lasts == [False, False, True]
    assert set(policy.temperatures) == {0.7}


@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [
        ("token", [1 / 7] * 7),
        ("sequence", [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 12, 1 / 12, 1 / 12]),
        ("constant", [1 / 12] * 7),
    ],
)
def test_a2c_is_the_policy_gradient_and_on_policy_ppos(aggregation: Any, weights: list[float]) -> None:
    # Advantages of lam 1/2: 1.25, 1.5 | 0 | 2 | 2.5, 1, 2 (tests/learner/test_policy_gradient.py): -w A a token.
    options: dict[str, Any] = {"aggregation": aggregation, "gae_lambda": 0.5, "whiten_advantages": False}
    expected = [-w * value for w, value in zip(weights, (1.25, 1.5, 0, 2, 2.5, 1, 2), strict=True)]
    for config in (A2CConfig(kind="a2c", **options), PPOConfig(kind="ppo", **options)):
        policy, value_model = table_policy(*[1] * 7), TableEngine(1, 2, 1, 0, 2, 4, 4)
        accumulated(objective(config, policy=policy, value_model=value_model))
        assert policy.gradient() == pytest.approx(expected)
        # Twice the distance to the returns 2.25, 3.5 | 1 | 2 | 4.5, 5, 6, halved, a seventh each; nothing clips.
        assert value_model.gradient() == pytest.approx([-v / 7 for v in (1.25, 1.5, 0, 2, 2.5, 1, 2)])


def test_a2c_takes_no_ratio_and_clips_nothing() -> None:
    """Where the policy is not what sampled, PPO's gradient is scaled by the ratio or cut, and this one is not."""
    policy, value_model = table_policy(1, 0.5, 1, 1, 1, 1, 2), TableEngine(1, 2, 1, 0, 2, 4, 4)
    config = A2CConfig(kind="a2c", gae_lambda=0.5)
    metrics = accumulated(objective(config, policy=policy, value_model=value_model))
    assert policy.gradient() == pytest.approx([-value / 7 for value in (1.25, 1.5, 0, 2, 2.5, 1, 2)])
    assert metrics["logprob_gap_max"].item() == pytest.approx(math.log(2))
    assert "ratio_max" not in metrics


def test_off_policy_metrics_and_clips_by_hand() -> None:
    # Ratios 1, 1/2 | 1 | 1 | 1, 1, 2 with A = 2, 2 | -2 | -4 | 4, 4, 4, bounds 0.8 and 1.2: the last is cut,
    # the second, with A > 0 below, is not. Gap |ln ratio|: ln 2 twice over 7 tokens.
    policy = table_policy(1, 0.5, 1, 1, 1, 1, 2)
    config = RLOOConfig(kind="rloo", scale_advantages=False)
    metrics = accumulated(objective(config, policy=policy))
    assert policy.gradient() == pytest.approx([value / 7 for value in (-2, -1, 2, 4, -4, -4, 0)])
    assert metrics["clip_fraction_high"].item() == pytest.approx(1 / 7)
    assert metrics["clip_fraction_low"].item() == 0
    assert metrics["logprob_gap_mean"].item() == pytest.approx(2 * math.log(2) / 7)
    assert metrics["logprob_gap_max"].item() == pytest.approx(math.log(2))


def test_a_ratio_of_the_sequence_is_cut_as_a_whole() -> None:
    # Ratios of the last rollout 1, 1, 8: geometric mean 2, above 1.2 with A = 4. Its tokens would not all be.
    policy = table_policy(1, 1, 1, 1, 1, 1, 8)
    config = RLOOConfig(kind="rloo", scale_advantages=False, ratio="sequence")
    metrics = accumulated(objective(config, policy=policy))
    assert policy.gradient() == pytest.approx([value / 7 for value in (-2, -2, 2, 4, 0, 0, 0)])
    assert metrics["clip_fraction_high"].item() == pytest.approx(3 / 7)
    assert metrics["logprob_gap_max"].item() == pytest.approx(math.log(8))  # of the token, as sampled
    assert metrics["approx_kl"].item() == pytest.approx((8 - 1 - math.log(8)) / 7)  # of the tokens, too


def test_a_ratio_of_the_sequence_has_narrow_bounds_of_its_own() -> None:
    """A ratio of the last rollout of 1.01 each token is within 0.2 of 1, and beyond 4e-4."""
    for ratio, last in (("token", -4 * 1.01 / 7), ("sequence", 0.0)):
        policy = table_policy(1, 1, 1, 1, 1.01, 1.01, 1.01)
        config = RLOOConfig.model_validate({"kind": "rloo", "scale_advantages": False, "ratio": ratio})
        accumulated(objective(config, policy=policy))
        assert policy.gradient()[4:] == pytest.approx([last] * 3)


def test_bounds_that_are_given_hold_for_either_ratio() -> None:
    for ratio, bounds in (("token", (0.2, 0.2)), ("sequence", (3e-4, 4e-4))):
        config = RLOOConfig.model_validate({"kind": "rloo", "ratio": ratio})
        assert config.clip_range == bounds
        given = {"clip_range_low": 0.1, "clip_range_high": 0.3}
        assert config.model_copy(update=given).clip_range == (0.1, 0.3)
        assert config.model_copy(update={"clip_range_high": 0.3}).clip_range == (bounds[0], 0.3)


def test_importance_sampling_starts_at_ratio_1() -> None:
    """However far the policy is from what sampled, the first gradient is -w A, and nothing is cut."""
    policy = table_policy(0.5, 3, 1, 1, 0.5, 0.5, 2)
    config = RLOOConfig(kind="rloo", scale_advantages=False, importance_sampling="token")
    metrics = accumulated(objective(config, policy=policy))
    expected = [-value / 7 for value in (0.5 * 2, 2 * 2, -2, -4, 0.5 * 4, 0.5 * 4, 2 * 4)]
    assert policy.gradient() == pytest.approx(expected, rel=1e-5)
    assert metrics["ratio_max"] == 1
    assert metrics["clip_fraction_high"] == 0


def test_kl_in_the_loss_adds_its_gradient() -> None:
    # The slope of k2, (policy - reference)^2 / 2, is the log-ratio: 1/2 * KL_V / 7 beside -A / 7
    policy = table_policy(*[1] * 7)
    config = RLOOConfig(kind="rloo", scale_advantages=False)
    metrics = accumulated(objective(config, policy=policy, placement="loss", estimator="k2"))
    values = zip(each(3, -3, -3, 3), KL_V, strict=True)
    assert policy.gradient() == pytest.approx([(-advantage + 0.5 * kl) / 7 for advantage, kl in values])
    assert metrics["kl_loss"].item() == pytest.approx((0.5 + 0.5 + 2) / 7)  # before the coefficient
    assert "kl_loss" not in accumulated(objective(config, policy=table_policy(*[1] * 7)))


def test_the_entropy_bonus_by_hand() -> None:
    """The same distribution at every position: 1/2, and six times 1/12. H = ln 2 / 2 + ln 12 / 2 = 1.589027.

    Its slope by the table (logits before temperature 0.7) is -p (ln p + H) / 0.7: by the first
    -0.5 * 0.895880 / 0.7 = -0.639914, by the others 0.895880 / 12 / 0.7 = 0.106652. The loss has minus the
    coefficient times that, so 0.2 more of it changes the gradient by 0.127983 and -0.021330.
    """
    gradients = []
    for entropy_coef in (0.1, 0.3):
        policy = TableEngine(*(0.7 * math.log(p) for p in (1 / 2, *[1 / 12] * 6)))
        config = RLOOConfig(kind="rloo", entropy_coef=entropy_coef)
        metrics = accumulated(objective(config, policy=policy))
        assert metrics["entropy"].item() == pytest.approx(1.589027, abs=1e-5)
        # Log-probs come from the logits: the likeliest token has ln(1/2), the behavior policy gave it -1.
        assert metrics["logprob_gap_max"].item() == pytest.approx(math.log(12) - 1, rel=1e-5)
        gradients.append(torch.tensor(policy.gradient()))
    expected = [0.127983] + [-0.021330] * 6
    assert (gradients[1] - gradients[0]).tolist() == pytest.approx(expected, abs=2e-6)


VALUES_V = (1, 2, 1, 0, 2, 4, 4)
GAE_V = (1.25, 1.5, 0, 2, 2.5, 1, 2)
"""As `test_policy_gradient.test_ppo_by_hand` works them out."""


def test_ppo_trains_both_networks() -> None:
    """At the start values are the old ones, so half the mean square has slope V - return = -A."""
    policy, value_model = table_policy(*[1] * 7), TableEngine(*VALUES_V)
    config = PPOConfig(kind="ppo", gae_lambda=0.5, whiten_advantages=False, value_learning_rate=0.01)
    method = objective(config, policy=policy, value_model=value_model)
    metrics = accumulated(method)
    assert policy.gradient() == pytest.approx([-value / 7 for value in GAE_V])
    assert value_model.gradient() == pytest.approx([-value / 7 for value in GAE_V])
    assert metrics["value_loss"].item() == pytest.approx(19.0625 / 14)
    assert method.update(lambda peak: peak / 2) == {"gradient_norm": 2.5, "value_gradient_norm": 2.5}
    assert (policy.learning_rates, value_model.learning_rates) == ([0.05], [0.005])


def test_value_warmup_leaves_the_policy_alone() -> None:
    policy, value_model = table_policy(*[1] * 7), TableEngine(*VALUES_V)
    config = PPOConfig(kind="ppo", gae_lambda=0.5, whiten_advantages=False, value_warmup_steps=2)
    method = objective(config, policy=policy, value_model=value_model)
    accumulated(method, step=1)
    assert policy.gradient() == [0] * 7
    assert value_model.gradient() == pytest.approx([-value / 7 for value in GAE_V])
    assert method.update(lambda peak: peak) == {"value_gradient_norm": 2.5}
    accumulated(method, step=2)
    assert policy.gradient() == pytest.approx([-value / 7 for value in GAE_V])
    assert method.update(lambda peak: peak) == {"gradient_norm": 2.5, "value_gradient_norm": 2.5}
