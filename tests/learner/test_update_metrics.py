"""A step's metrics from its updates: what is per token is so under every aggregation."""

import pytest
import torch

from learner.losses import Aggregation, combine_metrics, ppo_policy_loss
from learner.update_metrics import metrics_of_step


def test_means_but_of_a_largest_the_largest_and_of_the_gap_the_first() -> None:
    updates = [
        {"policy_loss": 1.0, "ratio_max": 1.0, "logprob_gap_mean": 0.1, "logprob_gap_max": 0.2},
        {"policy_loss": 3.0, "ratio_max": 9.0, "logprob_gap_mean": 5.0, "logprob_gap_max": 7.0},
    ]
    assert metrics_of_step(updates) == {
        "policy_loss": 2.0,
        "ratio_max": 9.0,
        "logprob_gap_mean": 0.1,
        "logprob_gap_max": 0.2,
    }


@pytest.mark.parametrize(("aggregation", "normalizer"), [("token", None), ("constant", 40.0)])
def test_a_clip_fraction_is_of_the_tokens_whatever_the_loss_divides_by(
    aggregation: Aggregation, normalizer: float | None
) -> None:
    """Two of four tokens have twice their old probability and a positive advantage; Dr. GRPO would have let both
    sequences grow to 20 tokens."""
    ratio_BT = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    _, metrics = ppo_policy_loss(
        ratio_BT.log(),
        torch.zeros(2, 2),
        torch.ones(2, 2),
        torch.ones(2, 2, dtype=torch.bool),
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=None,
        aggregation=aggregation,
        normalizer=normalizer,
    )
    update = {name: float(value) for name, value in combine_metrics([metrics]).items()}
    step = metrics_of_step([update])
    assert step["clip_fraction_high"] == pytest.approx(0.5)
    # k3 of a log-ratio x is e^x - 1 - x: half the tokens have 2 - 1 - ln 2.
    assert step["approx_kl"] == pytest.approx((1 - 0.6931472) / 2)


def test_an_update_on_nothing_is_no_division_by_zero() -> None:
    assert metrics_of_step([{"approx_kl": 0.0, "loss_weight": 0.0}])["approx_kl"] == 0.0
