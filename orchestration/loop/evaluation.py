"""Before and after: the same held-out prompts and seeds under two policy versions, compared pair by pair."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.rollout import RolloutPool
from core.messages import Completion, Prompt, Rollout
from core.tasks import all_of

EVALUATION_SEED = 2**60
"""Beyond every training seed (see `orchestration.loop.sources`)."""
BEST_OF_SEED = 2**61
"""Beyond those of the other evaluations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One held-out completion, as it is kept in the run folder."""

    prompt: str
    completion: str
    completion_ids: list[int]
    rewards: dict[str, float]
    score: float
    kl_nats: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The same prompts under the first and the last policy version."""

    before: list[Sample]
    after: list[Sample]
    matched_before: list[float]
    """Scores with each pair cut to the length of its shorter completion."""
    matched_after: list[float]


async def evaluate(pool: RolloutPool, prompts: Sequence[Prompt], *, seed: int) -> list[Rollout]:
    """One completion a prompt from the present policy version, scored."""
    groups = await all_of(
        pool.roll_out(
            prompt,
            group_id=f"heldout-{index}",
            seeds=[EVALUATION_SEED + seed * 100_003 + index],
            counts=False,
        )
        for index, prompt in enumerate(prompts)
    )
    return [group.rollouts[0] for group in groups]


async def evaluate_best_of(
    pool: RolloutPool, prompts: Sequence[Prompt], *, count: int, seed: int
) -> dict[str, Any]:
    """Best-of-n: `count` completions a prompt from the present policy, of which the best scored one is kept.

    `kl_nats_bound` is log n - (n - 1) / n, an upper bound of the KL that choosing costs (arXiv:2401.01879).
    """
    groups = await all_of(
        pool.roll_out(
            prompt,
            group_id=f"best-of-{index}",
            seeds=range(start := BEST_OF_SEED + (seed * 100_003 + index) * count, start + count),
            counts=False,
        )
        for index, prompt in enumerate(prompts)
    )
    best = [max(rollout.score for rollout in group.rollouts) for group in groups]
    return {"n": count, "reward": spread(best), "kl_nats_bound": math.log(count) - (count - 1) / count}


def samples_of(rollouts: Sequence[Rollout]) -> list[Sample]:
    """What is kept of an evaluation."""
    return [
        Sample(
            prompt=rollout.completion.prompt.text,
            completion=rollout.completion.text,
            completion_ids=rollout.completion.token_ids_T[rollout.completion.num_prompt_tokens :].tolist(),
            rewards=dict(rollout.rewards),
            score=rollout.score,
            kl_nats=rollout.kl_nats,
        )
        for rollout in rollouts
    ]


async def compare(
    pool: RolloutPool, before: list[Sample], after: Sequence[Rollout], decode: Callable[[list[int]], str]
) -> Comparison:
    """Pair up two evaluations of the same prompts. Longer texts can score higher for their length alone, so
    each pair is also scored again at the length of its shorter completion."""
    matched_before: list[Completion] = []
    matched_after: list[Completion] = []
    for old, rollout in zip(before, after, strict=True):
        new = rollout.completion
        length = min(len(old.completion_ids), new.num_completion_tokens)
        prompt_ids = new.prompt.token_ids.tolist()
        for ids, into in (
            (prompt_ids + old.completion_ids, matched_before),
            (new.token_ids_T.tolist(), matched_after),
        ):
            into.append(_shortened(new, ids[: len(prompt_ids) + length], decode))
    scores = await all_of(_score(pool, completion) for completion in matched_before + matched_after)
    return Comparison(
        before=before,
        after=samples_of(after),
        matched_before=scores[: len(before)],
        matched_after=scores[len(before) :],
    )


def summarize(comparison: Comparison) -> dict[str, Any]:
    """The figures of `summary.json` that a comparison decides."""
    before, after = comparison.before, comparison.after
    scores_before = [sample.score for sample in before]
    scores_after = [sample.score for sample in after]
    std = spread(scores_before)["std"] or math.nan  # equal scores have no unit to measure a gain in
    return {
        "reward_before": spread(scores_before),
        "reward_after": spread(scores_after),
        "reward_gain_in_std": (statistics.fmean(scores_after) - statistics.fmean(scores_before)) / std,
        "reward_at_matched_length": {
            "before": spread(comparison.matched_before),
            "after": spread(comparison.matched_after),
            "gain_in_std": statistics.fmean(
                b - a for a, b in zip(comparison.matched_before, comparison.matched_after, strict=True)
            )
            / std,
        },
        "rewards_by_source": {
            source: {
                "before": spread([sample.rewards[source] for sample in before]),
                "after": spread([sample.rewards[source] for sample in after]),
            }
            for source in before[0].rewards
        },
        "kl_nats_per_sequence": statistics.fmean(sample.kl_nats for sample in after),
        "completion_tokens_before": statistics.fmean(len(sample.completion_ids) for sample in before),
        "completion_tokens_after": statistics.fmean(len(sample.completion_ids) for sample in after),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation, and count."""
    std = statistics.stdev(values) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "std": std, "count": len(values)}


def save_samples(samples: Sequence[Sample], file: Path) -> None:
    """One JSON object a line."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples), encoding="utf-8")
    unfinished.rename(file)


def load_samples(file: Path) -> list[Sample]:
    """What `save_samples` wrote."""
    return [Sample(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def table_rows(comparison: Comparison) -> list[Mapping[str, Any]]:
    """Prompt, both completions and both rewards, side by side."""
    return [
        {
            "prompt": old.prompt,
            "before": old.completion,
            "after": new.completion,
            "reward_before": old.score,
            "reward_after": new.score,
        }
        for old, new in zip(comparison.before, comparison.after, strict=True)
    ]


async def _score(pool: RolloutPool, completion: Completion) -> float:
    return pool.score_of(await pool.rewards_of(completion))


def _shortened(like: Completion, token_ids: list[int], decode: Callable[[list[int]], str]) -> Completion:
    """A completion with other tokens, fit to be scored (its log-probs are cut along and mean nothing)."""
    token_ids_T = np.array(token_ids, dtype=np.int32)
    sampled_T = np.arange(len(token_ids)) >= like.num_prompt_tokens
    text = decode(token_ids[like.num_prompt_tokens :])
    return replace(like, token_ids_T=token_ids_T, sampled_T=sampled_T, text=text)
