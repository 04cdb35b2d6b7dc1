"""Metrics of what the policy does: its rewards, its KL, and whether it has begun to cheat.

Gauges hold the figure of the last step; those of completions are means over all of its completions.
"""

from core.metrics.contract import Healthy, Metric, Panel

REWARD = Panel(
    "Reward",
    "learning",
    "Rises, in the end more slowly. A leap is rarely skill: read samples.",
    in_overview=True,
)
KL = Panel(
    "KL from the reference",
    "learning",
    "The price of the reward. Growing faster than the reward, it buys nothing.",
    in_overview=True,
)
KL_COEF = Panel("KL coefficient", "learning", "Constant, or what the controller makes of the KL.")
ENTROPY = Panel(
    "Entropy", "learning", "Falls slowly. Near zero the policy says one thing only.", in_overview=True
)
LENGTH = Panel(
    "Length of completions",
    "learning",
    "Rewards are often longer, not better: see it beside the reward.",
    in_overview=True,
)
GROUPS = Panel(
    "Groups without spread", "learning", "Groups whose completions all score the same teach nothing."
)
CHEATING = Panel(
    "Signs of over-optimization",
    "learning",
    "How far the completions are from the untrained policy's, in its own standard deviations.",
    in_overview=True,
)

SIGNALS = Panel(
    "What the signs are made of", "learning", "Each signal as it was measured, in a unit of its own."
)

RAISED = Panel(
    "Alarms", "learning", "Which signs have been beyond their limits for long enough, and still are."
)

POLICY_METRICS = (
    Metric(
        name="leash_reward",
        kind="gauge",
        help="Reward of a completion, unweighted, by source",
        panel=REWARD,
        labels=("source",),
        record="reward_{source}",
    ),
    Metric(
        name="leash_score_mean",
        kind="gauge",
        help="Weighted sum of a completion's rewards, before the KL penalty",
        panel=REWARD,
        record="score_mean",
    ),
    Metric(
        name="leash_score_std",
        kind="gauge",
        help="Standard deviation of the scores of a step",
        panel=REWARD,
        record="score_std",
        healthy=Healthy(
            1e-6, None, "all completions score the same: there is nothing to learn from the reward"
        ),
    ),
    Metric(
        name="leash_kl_nats_per_sequence",
        kind="gauge",
        unit="nats",
        help="KL of policy from reference, summed over a completion (k1: mean log-ratio)",
        panel=KL,
        record="kl_nats_per_sequence",
        healthy=Healthy(
            -2.0, 30.0, "far from the reference: raise kl_coef, or lower the learning rate, and read samples"
        ),
    ),
    Metric(
        name="leash_kl_nats_per_token",
        kind="gauge",
        unit="nats",
        help="The same a token, by estimator: k1, k2, k3, abs",
        panel=KL,
        labels=("estimator",),
        record="kl_{estimator}_nats_per_token",
        values=("k1", "k2", "k3", "abs"),
    ),
    Metric(
        name="leash_kl_exact_nats_per_token",
        kind="gauge",
        unit="nats",
        help="KL over the whole vocabulary, a token, where kl.estimator is exact",
        panel=KL,
        owner="learner",
        record="kl_exact_nats_per_token",
    ),
    Metric(
        name="leash_kl_coef",
        kind="gauge",
        help="Coefficient of the KL penalty",
        panel=KL_COEF,
        owner="learner",
        record="kl_coef",
    ),
    Metric(
        name="leash_kl_coef_next",
        kind="gauge",
        help="The same in the next step: what the controller made of it after this one",
        panel=KL_COEF,
        owner="learner",
        record="kl_coef_next",
    ),
    Metric(
        name="leash_kl_target",
        kind="gauge",
        unit="nats",
        help="KL a completion that the adaptive controller steers to, or the budget",
        panel=KL_COEF,
        owner="learner",
        record="kl_target",
    ),
    Metric(
        name="leash_entropy",
        kind="gauge",
        unit="nats",
        help="Entropy of the policy, per token, over the whole vocabulary; where algorithm.entropy_coef is set",
        panel=ENTROPY,
        owner="learner",
        record="entropy",
    ),
    Metric(
        name="leash_entropy_sampled",
        kind="gauge",
        unit="nats",
        help="Entropy of the policy that sampled, per token, estimated by its mean negative log-prob",
        panel=ENTROPY,
        record="entropy_sampled",
        healthy=Healthy(
            0.1,
            None,
            "the policy has collapsed to a few texts: raise kl_coef or the temperature, or stop earlier",
        ),
    ),
    Metric(
        name="leash_completion_tokens",
        kind="gauge",
        unit="tokens",
        help="Length of a completion",
        panel=LENGTH,
        record="completion_tokens",
    ),
    Metric(
        name="leash_completion_tokens_max",
        kind="gauge",
        unit="tokens",
        help="Length of the longest completion",
        panel=LENGTH,
        record="completion_tokens_max",
    ),
    Metric(
        name="leash_truncated_fraction",
        kind="gauge",
        unit="ratio",
        help="Completions that hit the token limit",
        panel=LENGTH,
        record="truncated_fraction",
    ),
    Metric(
        name="leash_zero_spread_fraction",
        kind="gauge",
        unit="ratio",
        help="Groups of the step whose completions all score the same, of those with two or more",
        panel=GROUPS,
        record="zero_spread_fraction",
        healthy=Healthy(
            None, 0.5, "most prompts are too easy or too hard: change them, or set rollout.max_resamples"
        ),
    ),
    Metric(
        name="leash_signal",
        kind="gauge",
        help="A sign of over-optimization, as measured on the step's completions, by signal",
        panel=SIGNALS,
        owner="alarm",
        labels=("signal",),
        record="signal_{signal}",
    ),
    Metric(
        name="leash_signal_deviation",
        kind="gauge",
        help="How far a signal is from the untrained policy's, in standard deviations, by signal",
        panel=CHEATING,
        owner="alarm",
        labels=("signal",),
        record="deviation_{signal}",
    ),
    Metric(
        name="leash_signal_raised",
        kind="gauge",
        help="1 from the step in which the alarm was raised until the sign is gone, else 0, by signal",
        panel=RAISED,
        owner="alarm",
        labels=("signal",),
        record="raised_{signal}",
    ),
    Metric(
        name="leash_alarms_total",
        kind="counter",
        help="Times that a sign of over-optimization was raised, by signal",
        panel=RAISED,
        owner="alarm",
        labels=("signal",),
    ),
)
