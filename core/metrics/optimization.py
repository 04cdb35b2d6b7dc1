"""Metrics of how the learner gets on: losses, gradients, advantages, and whether engine and learner agree."""

from core.metrics.contract import Healthy, Metric, Panel

LOSS = Panel(
    "Losses", "learning", "Of use against each other within one run; policy loss has no meaning alone."
)
CLIPPING = Panel("Clipped tokens", "learning", "How many tokens wanted to move further than one step may.")
APPROX_KL = Panel(
    "Movement within a step", "learning", "How far the policy is from the one that ratios are taken to."
)
ADVANTAGE = Panel("Advantages, returns, values", "learning", "What the value model expects, and what came.")
GRADIENT = Panel(
    "Gradient norm", "learning", "Steady. Single peaks are outlier texts; growth is instability."
)
LEARNING_RATE = Panel("Learning rate and updates", "learning", "As the schedule says.")
PAIRS = Panel("Preference pairs", "learning", "Of methods that learn from pairs.")
AGREEMENT = Panel(
    "Engine against learner",
    "learning",
    "Log-probs of the same tokens under the same weights.",
    in_overview=True,
)

OPTIMIZATION_METRICS = (
    Metric(
        name="leash_policy_loss",
        kind="gauge",
        help="Loss of the policy: of the clipped surrogate, of pairs, or of texts",
        panel=LOSS,
        owner="learner",
        record="policy_loss",
    ),
    Metric(
        name="leash_kl_loss",
        kind="gauge",
        unit="nats",
        help="KL term of the policy's loss, per token, before its coefficient",
        panel=LOSS,
        owner="learner",
        record="kl_loss",
    ),
    Metric(
        name="leash_value_loss",
        kind="gauge",
        help="Loss of the value model",
        panel=LOSS,
        owner="learner",
        record="value_loss",
    ),
    Metric(
        name="leash_pretraining_loss",
        kind="gauge",
        unit="nats",
        help="Mean negative log-likelihood of a token of [pretraining]",
        panel=LOSS,
        owner="learner",
        record="pretraining_loss",
    ),
    Metric(
        name="leash_clip_fraction",
        kind="gauge",
        unit="ratio",
        help="Tokens whose ratio (see leash_ratio_max) was clipped, by side: low, high, dual",
        panel=CLIPPING,
        owner="learner",
        labels=("side",),
        record="clip_fraction_{side}",
        values=("low", "high", "dual"),
        healthy=Healthy(None, 0.5, "steps are too long: lower the learning rate, or do fewer epochs"),
    ),
    Metric(
        name="leash_ratio_max",
        kind="gauge",
        help="Largest ratio of a token's probability to that when it was sampled, so with lag under an older "
        "policy; with algorithm.importance_sampling to that before the step",
        panel=APPROX_KL,
        owner="learner",
        record="ratio_max",
    ),
    Metric(
        name="leash_approx_kl",
        kind="gauge",
        unit="nats",
        help="KL per token of the policy from the one that ratios are taken to (see leash_ratio_max)",
        panel=APPROX_KL,
        owner="learner",
        record="approx_kl",
        healthy=Healthy(
            None, 0.1, "steps are too long: lower the learning rate, or set algorithm.max_approx_kl"
        ),
    ),
    Metric(
        name="leash_advantage_mean",
        kind="gauge",
        help="Mean advantage of a token",
        panel=ADVANTAGE,
        owner="learner",
        record="advantage_mean",
    ),
    Metric(
        name="leash_advantage_std",
        kind="gauge",
        help="Standard deviation of the tokens' advantages",
        panel=ADVANTAGE,
        owner="learner",
        record="advantage_std",
        healthy=Healthy(1e-6, None, "no token was better or worse than another: nothing is learned"),
    ),
    Metric(
        name="leash_return_mean",
        kind="gauge",
        help="Mean return of a token, the value model's target",
        panel=ADVANTAGE,
        owner="learner",
        record="return_mean",
    ),
    Metric(
        name="leash_value_mean",
        kind="gauge",
        help="Mean value of a token as the value model had it before the step",
        panel=ADVANTAGE,
        owner="learner",
        record="value_mean",
    ),
    Metric(
        name="leash_explained_variance",
        kind="gauge",
        help="1 - Var(returns - values) / Var(returns), at most 1",
        panel=ADVANTAGE,
        owner="learner",
        record="explained_variance",
    ),
    Metric(
        name="leash_gradient_norm",
        kind="gauge",
        help="Norm of the policy's gradient before clipping",
        panel=GRADIENT,
        owner="learner",
        record="gradient_norm",
    ),
    Metric(
        name="leash_value_gradient_norm",
        kind="gauge",
        help="Norm of the value model's gradient before clipping",
        panel=GRADIENT,
        owner="learner",
        record="value_gradient_norm",
    ),
    Metric(
        name="leash_learning_rate",
        kind="gauge",
        help="Learning rate of the policy",
        panel=LEARNING_RATE,
        owner="learner",
        record="learning_rate",
    ),
    Metric(
        name="leash_num_updates",
        kind="gauge",
        help="Optimizer updates of the step",
        panel=LEARNING_RATE,
        owner="learner",
        record="num_updates",
    ),
    Metric(
        name="leash_pair_accuracy_fraction",
        kind="gauge",
        unit="ratio",
        help="Pairs whose chosen completion has the larger log-ratio",
        panel=PAIRS,
        owner="learner",
        record="pair_accuracy_fraction",
    ),
    Metric(
        name="leash_pair_margin_nats",
        kind="gauge",
        unit="nats",
        help="Log-ratio of the chosen completion less the rejected one's",
        panel=PAIRS,
        owner="learner",
        record="pair_margin_nats",
    ),
    Metric(
        name="leash_pair_score_gap",
        kind="gauge",
        help="Score of the chosen completion less the rejected one's",
        panel=PAIRS,
        owner="learner",
        record="pair_score_gap",
    ),
    Metric(
        name="leash_logprob_gap_max",
        kind="gauge",
        unit="nats",
        help="Largest |behavior - learner| log-prob, same weights: in steps without lag",
        panel=AGREEMENT,
        owner="learner",
        record="logprob_gap_max",
    ),
    Metric(
        name="leash_logprob_gap_mean",
        kind="gauge",
        unit="nats",
        help="Mean |behavior - learner| log-prob, same weights: in steps without lag",
        panel=AGREEMENT,
        owner="learner",
        record="logprob_gap_mean",
        healthy=Healthy(
            None,
            0.1,  # bfloat16 was measured at 0.05, float32 at 1e-5
            "engine and learner compute different policies: check dtype and decoding, or correct with "
            "algorithm.importance_sampling",
        ),
    ),
    Metric(
        name="leash_probe_gap",
        kind="gauge",
        unit="nats",
        help="Mean |engine - learner| log-prob of the probe after a push, of the worker where it is largest",
        panel=AGREEMENT,
        owner="rollout",
        record="probe_gap",
    ),
)
