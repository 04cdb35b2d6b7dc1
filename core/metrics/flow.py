"""Metrics of how a run flows: who waits for whom, how old what is trained on is, how fast all of it goes."""

from core.metrics.contract import Healthy, Metric, Panel

DURATION_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""From a weight copy to a long step, about threefold each."""
LAG_BUCKETS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)

PROGRESS = Panel("Progress", "throughput", "Steps and rollouts so far, and tokens a second.")
STEP_TIME = Panel("Time of a step", "throughput", "By what the loop waited for.", in_overview=True)
WAITING = Panel(
    "Who waits for whom",
    "throughput",
    "Waiting for batches: add rollout workers. Waiting for the policy: there are too many, or raise max_lag.",
    in_overview=True,
)
TOKENS = Panel("Tokens a second", "throughput", "By part; the run's is what counts.", in_overview=True)
UTILIZATION = Panel(
    "Model FLOPs utilization", "throughput", "Share of learner.peak_tflops that training used."
)
LAG = Panel("Lag and versions", "throughput", "How old what is trained on is, in policy versions.")
QUEUE = Panel("Queue", "throughput", "Groups started and not yet trained on.")
PUSH = Panel("Weight push", "throughput", "From the learner into the engines, verified.")

FLOW_METRICS = (
    Metric(
        name="leash_policy_version",
        kind="gauge",
        help="Optimizer steps that the learner's weights have had",
        panel=PROGRESS,
        record="step",
    ),
    Metric(name="leash_steps_total", kind="counter", help="Optimizer steps", panel=PROGRESS),
    Metric(
        name="leash_rollouts_total",
        kind="counter",
        help="Completions sampled, scored and trained on",
        panel=PROGRESS,
    ),
    Metric(
        name="leash_tokens_total",
        kind="counter",
        unit="tokens",
        help="Tokens trained on, by kind: prompt, completion",
        panel=PROGRESS,
        labels=("kind",),
    ),
    Metric(
        name="leash_lag",
        kind="gauge",
        help="Learner's version less the oldest rollout's, when it was used",
        panel=LAG,
        record="lag",
    ),
    Metric(
        name="leash_rollout_lag",
        kind="histogram",
        help="Lag of every rollout that was trained on",
        panel=LAG,
        buckets=LAG_BUCKETS,
    ),
    Metric(
        name="leash_version_spans",
        kind="gauge",
        help="Policy versions that a completion was sampled under, mean of the step",
        panel=LAG,
        record="version_spans",
    ),
    Metric(
        name="leash_queue_depth",
        kind="gauge",
        help="Groups started and not yet taken, when the step was taken",
        panel=QUEUE,
        record="queue_depth",
    ),
    Metric(
        name="leash_groups_overtaken",
        kind="gauge",
        help="Groups that were not done when the step was taken, although started before one that it took",
        panel=QUEUE,
        record="groups_overtaken",
    ),
    Metric(
        name="leash_trained_length_ratio",
        kind="gauge",
        help="Mean length of what was trained on over mean length of what was sampled, since the start",
        panel=QUEUE,
        record="trained_length_ratio",
        healthy=Healthy(0.9, 1.1, "short or long completions are dropped more often than others: see why"),
    ),
    Metric(
        name="leash_step_seconds",
        kind="gauge",
        unit="seconds",
        help="The whole of the last step",
        panel=STEP_TIME,
        record="step_s",
    ),
    Metric(
        name="leash_sampling_seconds",
        kind="gauge",
        unit="seconds",
        help="Time of the last step in which any completion was being sampled or scored, also beside the learning",
        panel=STEP_TIME,
        record="sampling_s",
    ),
    Metric(
        name="leash_phase_seconds",
        kind="histogram",
        unit="seconds",
        help="What the loop waited for, by phase: rollout, learn, push",
        panel=STEP_TIME,
        labels=("phase",),
        buckets=DURATION_BUCKETS_S,
    ),
    Metric(
        name="leash_wait_seconds",
        kind="gauge",
        unit="seconds",
        help="Waiting in the last step, by target. batch: the loop for rollouts. policy: rollouts for newer "
        "weights. reward, reference: a completion for its scores, mean",
        panel=WAITING,
        labels=("target",),
        record="wait_{target}_s",
        values=("batch", "policy", "reward", "reference"),
    ),
    Metric(
        name="leash_tokens_per_second",
        kind="gauge",
        help="Tokens a second, by part. rollout: sampled in the step, over leash_sampling_seconds. "
        "learner: trained on, over its time. run: the same over the whole step",
        panel=TOKENS,
        labels=("part",),
        record="tokens_per_second_{part}",
        values=("rollout", "learner", "run"),
    ),
    Metric(
        name="leash_mfu_fraction",
        kind="gauge",
        unit="ratio",
        help="Model FLOPs utilization of the learner, where learner.peak_tflops is given: what a step needs at "
        "least, over its time and the peak",
        panel=UTILIZATION,
        record="mfu_fraction",
    ),
    Metric(
        name="leash_weight_push_seconds",
        kind="gauge",
        unit="seconds",
        help="The last weight push, by part: pack, probe, load, verify",
        panel=PUSH,
        labels=("part",),
        record="{part}_s",
        values=("pack", "probe", "load", "verify"),
    ),
    Metric(
        name="leash_weight_push_bytes",
        kind="gauge",
        unit="bytes",
        help="Weights of one push",
        panel=PUSH,
        record="bytes",
    ),
    Metric(
        name="leash_redone_tokens",
        kind="gauge",
        unit="tokens",
        help="Tokens of completions that the last weight push gave up, to be sampled again under the new weights",
        panel=PUSH,
        record="redone_tokens",
    ),
    Metric(
        name="leash_copy_seconds",
        kind="gauge",
        unit="seconds",
        help="A plain copy of the same bytes in memory, to compare with",
        panel=PUSH,
        record="copy_s",
    ),
)
