"""The figures of a step, against values worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from core.messages import Completion, Prompt, Rollout, RolloutGroup, VersionSpan
from orchestration.loop.step_record import learning_figures, rollout_figures, timing_figures

LN2 = math.log(2.0)


def rollout(
    index: int,
    *,
    behavior: list[float],
    reference: list[float],
    score: float,
    versions: tuple[int, ...] = (3,),
    truncated: bool = False,
) -> Rollout:
    num_sampled = len(behavior)
    prompt = Prompt(prompt_id="p", text="x", token_ids=np.array([1, 2], dtype=np.int32))
    spans = tuple(
        VersionSpan(policy_version=version, start=start, stop=start + 1)
        for start, version in enumerate(versions)
    )
    completion = Completion(
        request_id=f"p-{index}",
        prompt=prompt,
        token_ids_T=np.arange(2 + num_sampled, dtype=np.int32),
        sampled_T=np.arange(2 + num_sampled) >= 2,
        behavior_logprobs_T=np.array([0.0, 0.0, *behavior], dtype=np.float32),
        version_spans=spans,
        text="y",
        truncated=truncated,
    )
    return Rollout(
        completion=completion,
        reference_logprobs_T=np.array([0.0, 0.0, *reference], dtype=np.float32),
        rewards={"a": score, "b": 2.0},
        score=score,
    )


GROUPS = [
    RolloutGroup(
        group_id="g0",
        rollouts=(
            rollout(0, behavior=[-1.0, -1.0], reference=[-1.0 - LN2, -1.0], score=1.0, truncated=True),
            rollout(1, behavior=[-2.0], reference=[-2.0 + LN2], score=3.0),
        ),
    ),
    RolloutGroup(
        group_id="g1",
        rollouts=(
            rollout(0, behavior=[-4.0], reference=[-4.0], score=2.0, versions=(2, 3)),
            rollout(1, behavior=[-4.0], reference=[-4.0], score=2.0),
        ),
    ),
]


def test_what_was_sampled() -> None:
    figures = rollout_figures(GROUPS, 5)
    assert figures["lag"] == 2  # version 5 was made of rollouts that version 2 has begun
    assert figures["version_spans"] == 1.25
    assert (figures["score_mean"], figures["score_std"]) == (2.0, pytest.approx(math.sqrt(0.5)))
    assert (figures["reward_a"], figures["reward_b"]) == (2.0, 2.0)
    assert figures["zero_spread_fraction"] == 0.5
    assert rollout_figures(GROUPS[:1], 5)["zero_spread_fraction"] == 0
    assert (figures["completion_tokens"], figures["completion_tokens_max"]) == (1.25, 2)
    assert figures["truncated_fraction"] == 0.25
    assert (figures["prompt_tokens"], figures["sampled_tokens"], figures["tokens"]) == (8, 5, 13)
    assert figures["entropy_sampled"] == pytest.approx(12 / 5)


def test_prompts_that_are_sampled_once_have_no_spread_to_lose() -> None:
    """Else every run of groups of one, as PPO's may be, would have a red flag."""
    alone = RolloutGroup(group_id="g2", rollouts=(GROUPS[1].rollouts[0],))
    assert "zero_spread_fraction" not in rollout_figures([alone, alone], 5)
    assert rollout_figures([*GROUPS, alone], 5)["zero_spread_fraction"] == 0.5


def test_a_reward_that_only_some_rollouts_have_is_the_mean_of_those() -> None:
    """Of datasets that are mixed: texts rated by somebody, and an earlier run's samples."""
    rated = replace(rollout(0, behavior=[-1.0], reference=[-1.0], score=7.0), rewards={"dataset": 7.0})
    figures = rollout_figures([RolloutGroup(group_id="g2", rollouts=(rated,)), *GROUPS], 5)
    assert (figures["reward_dataset"], figures["reward_a"], figures["reward_b"]) == (7.0, 2.0, 2.0)


def test_texts_of_a_dataset_have_no_figures_of_sampling_and_no_spread_of_scores_that_nobody_gave() -> None:
    """Else a page says of every supervised run that there is nothing to learn from its reward."""
    of_sampling = {"lag", "version_spans", "entropy_sampled"}
    sampled, texts = rollout_figures(GROUPS, 5), rollout_figures(GROUPS, 5, on_policy=False)
    assert texts == {key: value for key, value in sampled.items() if key not in of_sampling}
    unscored = rollout_figures(GROUPS[1:], 5, on_policy=False)
    assert sampled.keys() - unscored.keys() == of_sampling | {"score_std", "zero_spread_fraction"}


def test_kl_by_estimator() -> None:
    """Log-ratios ln 2, 0, -ln 2, 0, 0 over five tokens: k2 is half their square; k3 of ln 2 is 1/2 - 1 + ln 2, of
    -ln 2 it is 1 - ln 2."""
    figures = rollout_figures(GROUPS, 5)
    assert figures["kl_nats_per_sequence"] == pytest.approx(0.0, abs=1e-6)
    assert figures["kl_k1_nats_per_token"] == pytest.approx(0.0, abs=1e-6)
    assert figures["kl_k2_nats_per_token"] == pytest.approx(LN2**2 / 5, abs=1e-6)
    assert figures["kl_k3_nats_per_token"] == pytest.approx(0.5 / 5, abs=1e-6)
    assert figures["kl_abs_nats_per_token"] == pytest.approx(2 * LN2 / 5, abs=1e-6)


def test_engine_and_learner_are_compared_under_the_same_weights_alone() -> None:
    """With lag the gap would be what the policy has learned since, and a red flag of engine and learner."""
    learning = {"policy_loss": 0.5, "logprob_gap_mean": 0.2, "logprob_gap_max": 0.9}
    assert learning_figures(learning, lag=0) == learning
    for lag in (1, None):
        assert learning_figures(learning, lag=lag) == {"policy_loss": 0.5}


def test_where_the_time_went() -> None:
    timing = {
        **{"started": 99.0, "rollout_s": 5.0, "wait_batch_s": 4.0, "learn_s": 2.0, "push_s": 3.0},
        **{"wait_reward_s": 0.5, "wait_policy_s": 6.0, "newly_sampled_tokens": 10},
    }
    assert timing_figures(GROUPS, timing) == {
        **{name: value for name, value in timing.items() if name != "started"},
        "step_s": 10.0,
        "sampling_s": 4.0,
        "tokens_per_second_rollout": 2.5,  # of 10 that were sampled; the step trained on 5
        "tokens_per_second_learner": 6.5,
        "tokens_per_second_run": 1.3,
    }


def test_rollouts_that_ran_ahead_have_no_speed_in_a_step_without_sampling() -> None:
    durations = {
        "rollout_s": 1.0,
        "wait_batch_s": 0.0,
        "learn_s": 8.0,
        "push_s": 1.0,
        "wait_policy_s": 10.0001,
    }
    figures = timing_figures(GROUPS, durations | {"newly_sampled_tokens": 0})
    assert figures["sampling_s"] == 0.0
    assert "tokens_per_second_rollout" not in figures
    assert "sampling_s" not in timing_figures(GROUPS, durations), "a dataset's texts are not sampled"
