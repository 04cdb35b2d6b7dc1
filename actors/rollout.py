"""From a prompt to a scored rollout group: sample, and score each completion as soon as it is finished.

    prompt --> rollout worker --completion--> reference scorer --token log-probs--+--> Rollout
               (least busy)        |                                              |
                                   +--------> reward servers -----rewards---------+

Knows no Ray: it is given handles, which are Ray workers in production and plain objects in tests.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from core.messages import (
    Completion,
    Demonstration,
    DemonstrationGroup,
    Float32s,
    Prompt,
    Rollout,
    RolloutGroup,
    SampleRequest,
    VersionSpan,
)
from core.weights import WeightManifest

DATASET_REWARD = "dataset"
"""Source of the reward that a dataset's text brings along."""


class SamplerHandle(Protocol):
    """A rollout worker: completions arrive as they finish.

    async for completion in handle.sample(requests): ...
    """

    name: str
    num_running: int

    def sample(self, requests: Sequence[SampleRequest]) -> AsyncIterator[Completion]: ...

    async def pull_weights(self, manifest: WeightManifest, *, deadline_s: float) -> Any: ...


class ScorerHandle(Protocol):
    """Reference scorers ([T] float32 a completion) or reward servers (a float a completion)."""

    async def score(self, completion: Completion | Demonstration) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedReward:
    """A reward server and its weight in the score."""

    server: ScorerHandle
    weight: float


class RolloutPool:
    """All rollout workers, and everything that scores what they sample."""

    def __init__(
        self,
        samplers: Sequence[SamplerHandle],
        reference: ScorerHandle,
        rewards: Mapping[str, WeightedReward],
    ) -> None:
        self._samplers = list(samplers)
        self._reference = reference
        self._rewards = dict(rewards)

    async def roll_out(self, prompt: Prompt, *, group_id: str, seeds: Sequence[int]) -> RolloutGroup:
        """One completion for each seed, scored. Raises what a worker raised; nothing is scored as zero."""
        requests = [
            SampleRequest(request_id=f"{group_id}-{index}", prompt=prompt, seed=seed)
            for index, seed in enumerate(seeds)
        ]
        sampler = min(self._samplers, key=lambda candidate: candidate.num_running)
        scoring: dict[str, asyncio.Task[Rollout]] = {}
        async with _first_error(), asyncio.TaskGroup() as tasks:
            async for completion in sampler.sample(requests):
                scoring[completion.request_id] = tasks.create_task(self._scored(completion))
        return RolloutGroup(
            group_id=group_id, rollouts=tuple(scoring[request.request_id].result() for request in requests)
        )

    async def score_demonstrations(self, group: DemonstrationGroup) -> RolloutGroup:
        """As rollouts of the reference: that a dataset's texts came from it is what offline methods assume."""
        async with _first_error(), asyncio.TaskGroup() as tasks:
            scoring = [tasks.create_task(_score(self._reference, text)) for text in group.demonstrations]
        rollouts = [
            _as_rollout(f"{group.group_id}-{index}", text, task.result())
            for index, (text, task) in enumerate(zip(group.demonstrations, scoring, strict=True))
        ]
        return RolloutGroup(group_id=group.group_id, rollouts=tuple(rollouts))

    async def rescore(self, group: RolloutGroup) -> RolloutGroup:
        """The same rollouts with the log-probs of the present reference: another run may have had another."""
        async with _first_error(), asyncio.TaskGroup() as tasks:
            scoring = [tasks.create_task(_score(self._reference, r.completion)) for r in group.rollouts]
        rollouts = [
            replace(rollout, reference_logprobs_T=task.result())
            for rollout, task in zip(group.rollouts, scoring, strict=True)
        ]
        return RolloutGroup(group_id=group.group_id, rollouts=tuple(rollouts))

    async def rewards_of(self, completion: Completion) -> dict[str, float]:
        """One reward a source."""
        async with _first_error(), asyncio.TaskGroup() as tasks:
            scoring = {
                name: tasks.create_task(_score(reward.server, completion))
                for name, reward in self._rewards.items()
            }
        return {name: task.result() for name, task in scoring.items()}

    def score_of(self, rewards: Mapping[str, float]) -> float:
        """The weighted sum that the policy is trained on."""
        return sum(self._rewards[name].weight * value for name, value in rewards.items())

    async def pull_weights(self, manifest: WeightManifest, *, deadline_s: float) -> list[Any]:
        """Every rollout worker takes and verifies the new version; their reports."""
        pulls = (sampler.pull_weights(manifest, deadline_s=deadline_s) for sampler in self._samplers)
        return list(await asyncio.gather(*pulls))

    async def _scored(self, completion: Completion) -> Rollout:
        async with _first_error(), asyncio.TaskGroup() as tasks:
            reference = tasks.create_task(_score(self._reference, completion))
            rewards = tasks.create_task(self.rewards_of(completion))
        return Rollout(
            completion=completion,
            reference_logprobs_T=reference.result(),
            rewards=rewards.result(),
            score=self.score_of(rewards.result()),
        )


async def _score(scorer: ScorerHandle, completion: Completion | Demonstration) -> Any:
    return await scorer.score(completion)


def _as_rollout(request_id: str, text: Demonstration, reference_logprobs_T: Float32s) -> Rollout:
    completion = Completion(
        request_id=request_id,
        prompt=text.prompt,
        token_ids_T=text.token_ids_T,
        sampled_T=text.sampled_T,
        behavior_logprobs_T=reference_logprobs_T,
        version_spans=(VersionSpan(policy_version=0, start=0, stop=text.num_completion_tokens),),
        text=text.text,
        truncated=False,
    )
    return Rollout(
        completion=completion,
        reference_logprobs_T=reference_logprobs_T,
        rewards={DATASET_REWARD: text.score},
        score=text.score,
    )


@asynccontextmanager
async def _first_error() -> AsyncIterator[None]:
    """Around a task group, which has cancelled the others by then: its first error, as it was raised."""
    try:
        yield
    except BaseExceptionGroup as errors:
        error = errors.exceptions[0]
        raise error from error.__cause__
