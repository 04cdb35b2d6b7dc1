"""From a prompt to a scored rollout group: sample, and score each completion as soon as it is finished.

    prompt --> rollout worker --completion--> reference scorer --token log-probs--+--> Rollout
               (least busy)        |                                              |
                                   +--------> reward servers -----rewards---------+

What a worker has not delivered when it dies is sampled on another one, with the same seeds.

Knows no Ray: it is given handles, which are Ray workers in production and plain objects in tests.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Protocol, TypeVar

from actors.fleet import Fleet
from actors.slot import WorkerHandle
from core.errors import RetriesExhausted, WorkerLost
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
from core.tasks import all_of, first_error
from core.weights import WeightManifest

T = TypeVar("T")

DATASET_REWARD = "dataset"
"""Source of the reward that a dataset's text brings along."""


class SamplerHandle(WorkerHandle, Protocol):
    """A rollout worker: completions arrive as they finish.

    async for completion in handle.sample(requests): ...
    """

    def sample(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Completion, None]: ...

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
        samplers: Fleet[Any],
        reference: ScorerHandle,
        rewards: Mapping[str, WeightedReward],
        *,
        max_retries: int = 2,
        push_s: float = 120,
    ) -> None:
        """`samplers`: handles of `SamplerHandle`'s kind. They serve after the first `push_weights`."""
        self._samplers = samplers
        self._samplers.admit = self._catch_up
        self._reference = reference
        self._rewards = dict(rewards)
        self._max_retries = max_retries
        self._push_s = push_s
        self._manifest: WeightManifest | None = None
        """Where the present weights lie; None while they cannot be read."""
        self._policy_version: int | None = None
        self._num_sampled = self._sampled_tokens = self._newly_sampled_tokens = 0
        self._waits: dict[str, list[float]] = {"reward": [], "reference": []}

    async def roll_out(
        self, prompt: Prompt, *, group_id: str, seeds: Sequence[int], counts: bool = True
    ) -> RolloutGroup:
        """One completion for each seed, scored. Raises what a worker raised; nothing is scored as zero. `counts`:
        among what was sampled to be trained on."""
        requests = [
            SampleRequest(request_id=f"{group_id}-{index}", prompt=prompt, seed=seed)
            for index, seed in enumerate(seeds)
        ]
        scoring: dict[str, asyncio.Task[Rollout]] = {}
        async with (
            first_error(),
            asyncio.TaskGroup() as tasks,
            aclosing(self._sample(requests)) as completions,
        ):
            async for completion in completions:
                self._num_sampled += counts
                self._sampled_tokens += counts * completion.num_completion_tokens
                self._newly_sampled_tokens += counts * completion.num_completion_tokens
                scoring[completion.request_id] = tasks.create_task(self._scored(completion))
        return RolloutGroup(
            group_id=group_id, rollouts=tuple(scoring[request.request_id].result() for request in requests)
        )

    async def score_demonstrations(self, group: DemonstrationGroup) -> RolloutGroup:
        """As rollouts of the reference: that a dataset's texts came from it is what offline methods assume."""
        scores = await all_of(_score(self._reference, text) for text in group.demonstrations)
        rollouts = [
            _as_rollout(f"{group.group_id}-{index}", text, logprobs_T)
            for index, (text, logprobs_T) in enumerate(zip(group.demonstrations, scores, strict=True))
        ]
        return RolloutGroup(group_id=group.group_id, rollouts=tuple(rollouts))

    async def rescore(self, group: RolloutGroup) -> RolloutGroup:
        """The same rollouts with the log-probs of the present reference: another run may have had another."""
        scores = await all_of(_score(self._reference, rollout.completion) for rollout in group.rollouts)
        rollouts = [
            replace(rollout, reference_logprobs_T=logprobs_T)
            for rollout, logprobs_T in zip(group.rollouts, scores, strict=True)
        ]
        return RolloutGroup(group_id=group.group_id, rollouts=tuple(rollouts))

    async def rewards_of(self, completion: Completion) -> dict[str, float]:
        """One reward a source."""
        scores = await all_of(_score(reward.server, completion) for reward in self._rewards.values())
        return dict(zip(self._rewards, scores, strict=True))

    def score_of(self, rewards: Mapping[str, float]) -> float:
        """The weighted sum that the policy is trained on."""
        return sum(self._rewards[name].weight * value for name, value in rewards.items())

    def take_figures(self) -> dict[str, float]:
        """Mean seconds that a completion waited for its scores and tokens that were sampled, since the last call;
        and the mean length of everything that was sampled, since the start."""
        figures = {f"wait_{target}_s": fmean(waits) for target, waits in self._waits.items() if waits}
        for waits in self._waits.values():
            waits.clear()
        if self._num_sampled:
            figures["sampled_length"] = self._sampled_tokens / self._num_sampled
            figures["newly_sampled_tokens"] = self._newly_sampled_tokens
            self._newly_sampled_tokens = 0
        return figures

    async def _timed(self, target: str, work: Awaitable[T]) -> T:
        started = time.perf_counter()
        result = await work
        self._waits[target].append(time.perf_counter() - started)
        return result

    @property
    def policy_version(self) -> int | None:
        """Of the weights that rollout workers serve; None before the first push."""
        return self._policy_version

    async def push_weights(
        self, pack: Callable[[], Awaitable[tuple[WeightManifest, dict[str, float]]]]
    ) -> tuple[dict[str, float], list[Any]]:
        """Every rollout worker takes and verifies the weights that `pack` lays out; its timing, and their reports.

        Who fails is replaced, and catches up before it serves."""
        async with (
            self._samplers.admission.pushing()
        ):  # nobody reads the old weights while they are overwritten
            self.forget_weights()  # if `pack` fails, nobody knows what lies there
            self._manifest, timing = await pack()
            self._policy_version = self._manifest.policy_version
            return timing, await self._samplers.refit(self._pull)

    def forget_weights(self) -> None:
        """The learner in whose memory they lie is gone: who joins waits for the next push, the others go on."""
        self._manifest = None

    async def _pull(self, sampler: SamplerHandle) -> Any:
        assert self._manifest is not None
        return await sampler.pull_weights(self._manifest, deadline_s=self._push_s)

    async def _catch_up(self, sampler: SamplerHandle) -> bool:
        """A worker that was not there when the present weights were pushed. False while there are none to read."""
        if self._manifest is None:
            return False
        await self._pull(sampler)
        return True

    async def _sample(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Completion, None]:
        """A completion for each request, from whoever lives. Raises `RetriesExhausted`."""
        missing = {request.request_id: request for request in requests}
        for _ in range(self._max_retries + 1):
            try:
                async with (
                    self._samplers.use(load=len(missing)) as sampler,
                    aclosing(sampler.sample(list(missing.values()))) as stream,
                ):
                    async for completion in stream:
                        del missing[completion.request_id]
                        yield completion
                return
            except WorkerLost as error:
                lost = error
                self._samplers.num_retries += 1
        raise RetriesExhausted(
            f"{next(iter(missing))}: {self._max_retries + 1} rollout workers were lost on it; the last: {lost}"
        )

    async def _scored(self, completion: Completion) -> Rollout:
        async with first_error(), asyncio.TaskGroup() as tasks:
            reference = tasks.create_task(self._timed("reference", _score(self._reference, completion)))
            rewards = tasks.create_task(self._timed("reward", self.rewards_of(completion)))
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
