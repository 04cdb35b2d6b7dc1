"""What the alarm looks at: completions, from a step's rollout groups or from the files of a run folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.run_samples import load_step
from core.messages import Rollout, RolloutGroup
from core.ratings import load_jsonl

HELDOUT_COLUMNS = ("prompt", "completion", "completion_ids", "rewards", "score", "kl_nats")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One scored completion."""

    group: str
    """Completions of one prompt share it."""
    text: str
    num_tokens: int
    score: float
    rewards: Mapping[str, float]
    """By source, unweighted; of weight 0 those that are recorded and not trained on."""
    kl_nats: float
    reference_nll: float | None
    """Mean negative log-probability of a token under the reference, nats; None of held-out completions, whose
    log-probs are not kept, and of empty ones."""


def samples_of(groups: Sequence[RolloutGroup]) -> list[Sample]:
    """Every completion of a step."""
    return [_sample(group.group_id, rollout) for group in groups for rollout in group.rollouts]


def samples_of_step(file: Path) -> list[Sample]:
    """Every completion of a step that a run has written down."""
    return samples_of(load_step(file))


def heldout_samples(file: Path) -> Iterator[Sample]:
    """The completions of an evaluation on the held-out prompts, one a prompt."""
    rows: list[dict[str, Any]] = load_jsonl(file, HELDOUT_COLUMNS)
    for index, row in enumerate(rows):
        yield Sample(
            group=f"heldout-{index}",
            text=row["completion"],
            num_tokens=len(row["completion_ids"]),
            score=row["score"],
            rewards=row["rewards"],
            kl_nats=row["kl_nats"],
            reference_nll=None,
        )


def _sample(group_id: str, rollout: Rollout) -> Sample:
    completion = rollout.completion
    logprobs = rollout.reference_logprobs_T[completion.sampled_T]
    return Sample(
        group=group_id,
        text=completion.text,
        num_tokens=completion.num_completion_tokens,
        score=rollout.score,
        rewards=rollout.rewards,
        kl_nats=rollout.kl_nats,
        reference_nll=-float(logprobs.mean()) if len(logprobs) else None,
    )
