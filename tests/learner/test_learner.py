"""The learner's loop over mini-batches, on a policy that is a table; with real engines in test_learner_real.py."""

from typing import Any

import pytest

from core.decoding import UNCHANGED
from core.messages import RolloutGroup
from learner.algorithm_config import DPOConfig
from learner.config import KLConfig, LearnerConfig
from learner.learner import Learner
from tests.fakes import make_completion, make_group, make_prompt, make_rollout
from tests.learner.by_hand import TableEngine

pytestmark = pytest.mark.usefixtures("process_group")


def learner(policy: Any, num_minibatches: int) -> Learner:
    return Learner(
        rank=0,
        world_size=1,
        config=LearnerConfig(learning_rate=0.1),
        algorithm=DPOConfig(kind="dpo", num_minibatches=num_minibatches),
        kl=KLConfig(),
        policy=policy,
        value_model=None,
        decoding=UNCHANGED,
        max_new_tokens=4,
        seed=0,
        num_steps=4,
    )


def groups(*scores: tuple[float, float]) -> list[RolloutGroup]:
    return [
        make_group(
            str(place),
            [
                make_rollout(make_completion(token, prompt=make_prompt(5)), score=score)
                for token, score in enumerate(pair)
            ],
        )
        for place, pair in enumerate(scores)
    ]


def test_every_minibatch_is_an_update() -> None:
    policy = TableEngine(-1.0, -2.0)
    metrics = learner(policy, 2).train_step(groups((1, 0), (0, 1)))
    assert metrics["num_updates"] == 2
    assert len(policy.learning_rates) == 2


@pytest.mark.parametrize("scores", [((1, 0), (3, 3), (2, 2)), ((3, 3), (2, 2), (0, 1))])
def test_a_minibatch_without_a_pair_is_no_update(scores: tuple[tuple[float, float], ...]) -> None:
    """The optimizer's momentum would move the weights all the same."""
    policy = TableEngine(-1.0, -2.0)
    metrics = learner(policy, 3).train_step(groups(*scores))
    assert metrics["num_updates"] == 1
    assert len(policy.learning_rates) == 1
    assert metrics["pair_score_gap"] == 1


def test_a_step_without_a_pair_changes_nothing_and_says_so() -> None:
    policy = TableEngine(-1.0, -2.0)
    trained = learner(policy, 2)
    metrics = trained.train_step(groups((1, 1), (2, 2)))
    assert metrics["num_updates"] == 0
    assert policy.learning_rates == []
    assert "policy_loss" not in metrics
    assert trained.policy_version == 1
