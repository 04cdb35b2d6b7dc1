"""The figures of `summary.json` that the run itself decides: speed, push, memory, seeds, versions."""

import statistics
from collections.abc import Sequence
from typing import Any

from core.versions import versions
from orchestration.recipe.config import Recipe


def run_figures(
    recipe: Recipe,
    records: Sequence[dict[str, Any]],
    *,
    memory: dict[str, int],
    reward_model: dict[str, Any],
    seconds_for_reward_model: float,
    seconds_to_first_step: float | None,
    seconds_total: float,
) -> dict[str, Any]:
    """Medians over the steps, where a step has the figure; units are in the names."""
    accuracy = {
        name.removeprefix("pairwise_accuracy_"): value
        for name, value in reward_model.items()
        if "pairwise" in name
    }
    # The plain copy that a push is compared with is timed with it, and no part of it.
    pushes = [{"weight_push_s": r["push_s"] - r["copy_s"]} for r in records if "copy_s" in r]
    return {
        "kl_target": recipe.kl.kl_target,
        "kl_coef": records[-1]["kl_coef"],
        "steps": len(records),
        "reward_model_pairwise_accuracy": accuracy,
        "seconds_for_reward_model": seconds_for_reward_model,
        "seconds_to_first_step": seconds_to_first_step,
        "seconds_total": seconds_total,
        "seconds_per_step": median(records, "step_s"),
        "seconds_per_phase": {phase: median(records, f"{phase}_s") for phase in ("rollout", "learn", "push")},
        "tokens_per_second": median(records, "tokens_per_second_run"),
        "weight_push_s": median(pushes, "weight_push_s"),
        "weight_push_parts_s": {
            part: median(records, f"{part}_s") for part in ("pack", "probe", "load", "verify")
        },
        "copy_s": median(records, "copy_s"),
        "logprob_gap_max": largest(records, "logprob_gap_max"),
        "probe_gap_max": largest(records, "probe_gap"),
        "peak_memory_bytes": memory,
        "seed": recipe.seed,
        "versions": versions(),
    }


def median(records: Sequence[dict[str, Any]], name: str) -> float | None:
    """Median of a figure over the steps that have it; None if none has."""
    values = [record[name] for record in records if name in record]
    return statistics.median(values) if values else None


def largest(records: Sequence[dict[str, Any]], name: str) -> float | None:
    """Largest of a figure over the steps that have it; None if none has."""
    return max((record[name] for record in records if name in record), default=None)
