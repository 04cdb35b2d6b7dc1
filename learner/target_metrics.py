"""What a step aims at, in figures: advantages, returns and values.

Dimension key: B rollouts of this rank, T completion tokens (padded).
"""

import torch
from torch import Tensor

from learner.advantages import STD_EPSILON
from learner.objective import Targets
from learner.process_group import all_reduce_sum

MEANS = {
    "advantages": "advantage_mean",
    "returns": "return_mean",
    "old_values": "value_mean",
}
"""The metric that is the mean of each target over the trained tokens of all ranks."""


def target_metrics(targets: Targets, mask_BT: Tensor) -> dict[str, float]:
    """Means over all trained tokens, and the spread of the advantages."""
    metrics = {}
    for name, metric in MEANS.items():
        if name in targets:
            metrics[metric], std = moments(targets[name][mask_BT])
            if name == "advantages":
                metrics["advantage_std"] = std
    return metrics


def whitened(values_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, float]:
    """Shifted and scaled to mean 0 and variance 1 over the trained tokens of all ranks; and the scale."""
    mean, std = moments(values_BT[mask_BT])
    spread = std + STD_EPSILON
    return (values_BT - mean) / spread, 1 / spread


def moments(values: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over all ranks."""
    values = values.double()  # squares of what lies far from 0 leave no digits for the spread in float32
    sums = all_reduce_sum(torch.stack([torch.ones_like(values), values, values**2]).flatten(1).sum(1))
    count, total, squares = sums.tolist()
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5
