"""What a learner is told between two steps."""

from typing import Any, cast

import pytest

from core.decoding import Decoding
from learner.algorithm_config import RLOOConfig
from learner.config import KLConfig, LearnerConfig, LiveLearnerConfig
from learner.kl_controllers import AdaptiveKLController
from learner.learner import Learner


def make_learner(kl: KLConfig) -> Learner:
    return Learner(
        rank=0,
        world_size=1,
        config=LearnerConfig(learning_rate=1e-3, lr_schedule="linear"),
        algorithm=RLOOConfig(kind="rloo"),
        kl=kl,
        policy=cast(Any, object()),
        value_model=None,
        decoding=Decoding(temperature=1.0),
        max_new_tokens=8,
        seed=0,
        num_steps=10,
    )


def told(kl_coef: float | None, **settings: Any) -> LiveLearnerConfig:
    return LiveLearnerConfig(
        **{"kl_coef": kl_coef, "kl_target": 6.0, "learning_rate": 1e-3, "num_steps": 10} | settings
    )


def test_the_schedule_ends_at_the_new_last_step_and_starts_from_the_new_peak() -> None:
    learner = make_learner(KLConfig())
    learner.policy_version = 5
    assert learner._scheduled(learner._objective.learning_rate) == pytest.approx(1e-3 * 5 / 10)
    learner.configure(told(None, learning_rate=2e-3, num_steps=20))
    assert learner._scheduled(learner._objective.learning_rate) == pytest.approx(2e-3 * 15 / 20)


def test_the_coefficient_changes_when_it_is_set_and_is_else_where_its_controller_has_brought_it() -> None:
    learner = make_learner(KLConfig(kl_coef=0.1, controller="adaptive", kl_target=6.0, horizon=1000))
    controller = learner.kl_controller
    assert isinstance(controller, AdaptiveKLController)
    controller.update(12.0, num_sequences=100)  # twice the target, clipped to a fifth: 0.1 (1 + 0.2 / 10)
    learner.configure(told(None, kl_target=3.0))
    assert controller.kl_coef == pytest.approx(0.102)
    assert controller.target == 3.0
    learner.configure(told(0.4))
    assert (controller.kl_coef, controller.target) == (0.4, 6.0)


def test_a_fixed_coefficient_can_be_set_too() -> None:
    learner = make_learner(KLConfig(kl_coef=0.1))
    learner.configure(told(0.0, kl_target=None))
    assert learner.kl_controller.kl_coef == 0.0


def test_a_coefficient_set_below_the_recipes_lasts_with_a_budget() -> None:
    learner = make_learner(KLConfig(kl_coef=0.1, controller="budget", kl_target=6.0))
    learner.configure(told(0.02))
    learner.kl_controller.update(1.0, num_sequences=64)
    assert learner.kl_controller.kl_coef == 0.02
