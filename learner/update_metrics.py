"""From the metrics of a step's optimizer updates to those of the step."""

from collections.abc import Mapping, Sequence
from statistics import fmean

PER_TOKEN = (
    "clip_fraction_low",
    "clip_fraction_high",
    "clip_fraction_dual",
    "approx_kl",
    "kl_loss",
    "entropy",
)
"""Summed with the weights of the loss, which under the aggregation `constant` sum to less than 1."""


def metrics_of_step(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the updates; of what ends in `_max`, the largest; of the log-prob gap, the first update's: later
    ones move the policy away from the one that sampled, and only the first compares like with like. Nothing of a
    step without an update."""
    if not updates:
        return {}
    each = [per_token(update) for update in updates]
    values = {name: [update[name] for update in each] for name in each[0]}
    metrics = {name: max(of) if name.endswith("_max") else fmean(of) for name, of in values.items()}
    return metrics | {name: of[0] for name, of in values.items() if name.startswith("logprob_gap")}


def per_token(update: Mapping[str, float]) -> dict[str, float]:
    """With what is said of a token divided by the weight that tokens have in the loss."""
    weight = update.get("loss_weight") or 1.0  # nothing weighs nothing
    return {name: value / weight if name in PER_TOKEN else value for name, value in update.items()}
