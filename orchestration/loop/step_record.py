"""The figures of one step, under the keys that `core/metrics/` declares.

Dimension key: N sampled tokens of all rollouts of the step.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from core.messages import Float32s, Rollout, RolloutGroup

OF_SAMPLING = {"lag", "version_spans", "entropy_sampled"}
"""Figures of who sampled, and when."""
OF_SCORES = {"score_std", "zero_spread_fraction"}
"""Figures of how scores differ."""
SHORTEST_S = 1e-3
"""Less sampling than this has no speed: everything was sampled before the step, or between two."""


def rollout_figures(
    groups: Sequence[RolloutGroup], version: int, *, on_policy: bool = True
) -> dict[str, Any]:
    """What was sampled, and what it earned; trained on, it made the policy's version this one. Not `on_policy` are
    a dataset's texts: no version has sampled them, and where no score differs nobody has scored them."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    completions = [rollout.completion for rollout in rollouts]
    scores = [rollout.score for rollout in rollouts]
    lengths = [completion.num_completion_tokens for completion in completions]
    prompt_tokens = sum(completion.num_prompt_tokens for completion in completions)
    sampled = [completion.sampled_T for completion in completions]
    behavior_N = np.concatenate(
        [c.behavior_logprobs_T[mask_T] for c, mask_T in zip(completions, sampled, strict=True)]
    )
    reference_N = np.concatenate(
        [r.reference_logprobs_T[mask_T] for r, mask_T in zip(rollouts, sampled, strict=True)]
    )
    figures = {
        "lag": version - 1 - min(group.policy_version for group in groups),
        "version_spans": fmean(len(completion.version_spans) for completion in completions),
        "score_mean": fmean(scores),
        "score_std": pstdev(scores),
        **_mean_rewards(rollouts),
        **score_spread(groups),
        "kl_nats_per_sequence": fmean(rollout.kl_nats for rollout in rollouts),
        **_token_kl(behavior_N, reference_N),
        "entropy_sampled": -float(behavior_N.mean(dtype=np.float64)),
        "completion_tokens": fmean(lengths),
        "completion_tokens_max": max(lengths),
        "truncated_fraction": fmean(completion.truncated for completion in completions),
        "prompt_tokens": prompt_tokens,
        "sampled_tokens": sum(lengths),
        "tokens": prompt_tokens + sum(lengths),
    }
    left_out = set() if on_policy else OF_SAMPLING | (OF_SCORES if len(set(scores)) == 1 else set())
    return {key: value for key, value in figures.items() if key not in left_out}


def learning_figures(learning: Mapping[str, float], *, lag: int | None) -> dict[str, float]:
    """What the learner says. Log-probs of the engine and of the learner can be compared where both have the same
    weights: not where a rollout is from before what the policy has learned since, nor of texts of a dataset."""
    return {key: value for key, value in learning.items() if lag == 0 or not key.startswith("logprob_gap")}


def timing_figures(groups: Sequence[RolloutGroup], timing: Mapping[str, float]) -> dict[str, Any]:
    """Where the time of the step went, and how fast that was."""
    durations = {name: value for name, value in timing.items() if name != "started"}
    step_s = timing["rollout_s"] + timing["learn_s"] + timing["push_s"]
    tokens = sum(group.num_tokens for group in groups)
    return durations | {
        "step_s": step_s,
        **_sampling(timing, step_s),
        "tokens_per_second_learner": tokens / timing["learn_s"],
        "tokens_per_second_run": tokens / step_s,
    }


def _sampling(timing: Mapping[str, float], step_s: float) -> dict[str, float]:
    """For how long of the step anything was being sampled, and how fast: what was sampled in that time, which the
    step has not trained on where rollouts are ahead. Nothing of a source that does not sample."""
    if "newly_sampled_tokens" not in timing:
        return {}
    sampling_s = max(0.0, step_s - timing["wait_policy_s"])
    figures = {"sampling_s": sampling_s}
    if sampling_s > SHORTEST_S:
        figures["tokens_per_second_rollout"] = timing["newly_sampled_tokens"] / sampling_s
    return figures


def score_spread(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Share of the groups whose completions all score the same; nothing where a prompt is sampled once, which has
    no spread to lose."""
    scores = [{rollout.score for rollout in group.rollouts} for group in groups if len(group.rollouts) > 1]
    return {"zero_spread_fraction": fmean(len(values) == 1 for values in scores)} if scores else {}


def _mean_rewards(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """By source, of the rollouts that have it: datasets that are mixed are rated by different ones."""
    values: dict[str, list[float]] = {}
    for rollout in rollouts:
        for source, value in rollout.rewards.items():
            values.setdefault(source, []).append(value)
    return {f"reward_{source}": fmean(of_source) for source, of_source in values.items()}


def _token_kl(behavior_N: Float32s, reference_N: Float32s) -> dict[str, float]:
    """Estimates of the KL of who sampled from the reference, as in `learner/kl.py`, in nats a token."""
    log_ratio_N = behavior_N.astype(np.float64) - reference_N
    estimates = {
        "k1": log_ratio_N,
        "k2": log_ratio_N**2 / 2,
        "k3": np.expm1(-log_ratio_N) + log_ratio_N,
        "abs": np.abs(log_ratio_N),
    }
    return {f"kl_{name}_nats_per_token": float(values_N.mean()) for name, values_N in estimates.items()}
