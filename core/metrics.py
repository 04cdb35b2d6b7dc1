"""The registry of metrics: every series that Leash publishes, declared once.

Conventions: the prefix `leash_`; base units (seconds, bytes, ratios from 0 to 1; log-probabilities in nats);
counters end in `_total`; a label's values are few and known beforehand, never ids. Whoever measures something
returns it; `orchestration/metrics_hub.py` publishes it under the name found here.
"""

from dataclasses import dataclass
from typing import Literal

PREFIX = "leash_"
DURATION_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""From a weight copy to a long step, about threefold each."""

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["", "seconds", "bytes", "ratio", "nats", "tokens"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of series."""

    name: str
    kind: Kind
    """`counter` only grows, `gauge` is the last value, `histogram` the distribution over a run."""
    unit: Unit
    help: str
    labels: tuple[str, ...] = ()


_DECLARED = (
    # What the policy earns. Gauges hold the mean over the completions of the last step.
    Metric("leash_reward", "gauge", "", "Reward of a completion, unweighted, by source", ("source",)),
    Metric("leash_score_mean", "gauge", "", "Weighted sum of a completion's rewards, before the KL penalty"),
    Metric("leash_score_std", "gauge", "", "Standard deviation of the scores of a step"),
    Metric("leash_completion_tokens", "gauge", "tokens", "Length of a completion"),
    Metric("leash_truncated_fraction", "gauge", "ratio", "Completions that hit the token limit"),
    # The leash.
    Metric(
        "leash_kl_nats_per_sequence", "gauge", "nats", "KL of policy from reference, summed over a completion"
    ),
    Metric("leash_kl_coef", "gauge", "", "Coefficient of the KL penalty in the reward"),
    # Learning.
    Metric("leash_policy_loss", "gauge", "", "Clipped surrogate loss of the policy"),
    Metric(
        "leash_kl_loss", "gauge", "nats", "KL term of the policy's loss, per token, before its coefficient"
    ),
    Metric(
        "leash_pretraining_loss", "gauge", "nats", "Mean negative log-likelihood of a token of [pretraining]"
    ),
    Metric("leash_entropy", "gauge", "nats", "Entropy of the policy, per token"),
    Metric(
        "leash_pair_accuracy_fraction",
        "gauge",
        "ratio",
        "Pairs whose chosen completion has the larger log-ratio",
    ),
    Metric(
        "leash_pair_margin_nats",
        "gauge",
        "nats",
        "Log-ratio of the chosen completion less the rejected one's",
    ),
    Metric("leash_pair_score_gap", "gauge", "", "Score of the chosen completion less the rejected one's"),
    Metric("leash_num_updates", "gauge", "", "Optimizer updates of the step"),
    Metric(
        "leash_groups_discarded_total",
        "counter",
        "",
        "Rollout groups replaced by another prompt's, by reason: no spread, workers lost, reward failed",
        ("reason",),
    ),
    Metric("leash_value_loss", "gauge", "", "Loss of the value model"),
    Metric("leash_explained_variance", "gauge", "", "1 - Var(returns - values) / Var(returns), at most 1"),
    Metric(
        "leash_clip_fraction",
        "gauge",
        "ratio",
        "Tokens whose ratio was clipped, by side: low, high",
        ("side",),
    ),
    Metric("leash_approx_kl", "gauge", "nats", "KL per token of the policy from itself before the step"),
    Metric("leash_gradient_norm", "gauge", "", "Norm of the policy's gradient before clipping"),
    Metric("leash_value_gradient_norm", "gauge", "", "Norm of the value model's gradient before clipping"),
    Metric("leash_learning_rate", "gauge", "", "Learning rate of the policy"),
    Metric("leash_logprob_gap_max", "gauge", "nats", "Largest |behavior - learner| log-prob, same weights"),
    Metric("leash_logprob_gap_mean", "gauge", "nats", "Mean |behavior - learner| log-prob, same weights"),
    Metric(
        "leash_probe_gap", "gauge", "nats", "Largest |engine - learner| log-prob of the probe after a push"
    ),
    # Progress.
    Metric("leash_policy_version", "gauge", "", "Optimizer steps that the learner's weights have had"),
    Metric("leash_lag", "gauge", "", "Learner's version less the oldest rollout's, when it was used"),
    Metric("leash_steps_total", "counter", "", "Optimizer steps"),
    Metric("leash_rollouts_total", "counter", "", "Completions sampled, scored and trained on"),
    Metric(
        "leash_tokens_total", "counter", "tokens", "Tokens trained on, by kind: prompt, completion", ("kind",)
    ),
    # Who is there.
    Metric("leash_workers", "gauge", "", "Workers, by kind and by state", ("kind", "state")),
    Metric(
        "leash_worker_restarts_total",
        "counter",
        "",
        "Workers that died and were replaced, by kind",
        ("kind",),
    ),
    # Time and space.
    Metric("leash_step_seconds", "gauge", "seconds", "The whole of the last step"),
    Metric("leash_phase_seconds", "histogram", "seconds", "What the loop waited for, by phase", ("phase",)),
    Metric(
        "leash_weight_push_seconds",
        "gauge",
        "seconds",
        "The last weight push, by part: pack, probe, copy, load, verify, total",
        ("part",),
    ),
    Metric("leash_weight_push_bytes", "gauge", "bytes", "Weights of one push"),
    Metric(
        "leash_copy_seconds", "gauge", "seconds", "A plain copy of the same bytes in memory, to compare with"
    ),
    Metric("leash_checkpoint_seconds", "gauge", "seconds", "Writing the last checkpoint"),
    Metric(
        "leash_tokens_per_second", "gauge", "", "Tokens a second, by part: rollout, learner, run", ("part",)
    ),
    Metric(
        "leash_worker_memory_bytes",
        "gauge",
        "bytes",
        "Resident memory, by slot such as rollout-0",
        ("worker",),
    ),
)

METRICS = {metric.name: metric for metric in _DECLARED}
"""Every metric by name."""
