"""The actors at Ray's edge: rollout workers, reference scorers and reward servers, and handles to them."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.batching import DynamicBatcher
from actors.config import ReferenceConfig, RewardFunctionReward, RewardModelReward, RolloutConfig
from actors.engine_loop import EngineLoop
from core.config import ModelConfig
from core.messages import Completion, Demonstration, SampleRequest
from core.remote import actor_options, answer, own_memory_bytes
from core.weights import WeightManifest

if TYPE_CHECKING:
    from actors.sampler import PullReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSetup:
    """What every actor needs to know of the model."""

    model_path: Path
    model: ModelConfig
    rollout: RolloutConfig


class RolloutWorker:
    """Samples completions with a vLLM engine of its own."""

    def __init__(self, setup: ActorSetup) -> None:
        # vLLM stays out of every other process: importing it takes ten seconds.
        from actors.sampler import Sampler

        self._sampler = Sampler(setup.model_path, setup.model, setup.rollout)
        self._loop = EngineLoop(self._sampler)

    def ready(self) -> None:
        """Returns once the engine is up."""

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Completion]:
        """Streams completions as they finish."""
        yield from self._loop.sample(requests)

    def pull_weights(self, manifest: WeightManifest) -> "PullReport":
        """Take new weights between two engine steps and verify them."""
        return self._loop.call(lambda: self._sampler.pull_weights(manifest))

    def memory_bytes(self) -> int:
        return own_memory_bytes()


class ScorerWorker:
    """Serves a reference scorer or a reward: what waits is scored in one batch."""

    def __init__(
        self,
        setup: ActorSetup,
        config: ReferenceConfig | RewardModelReward | RewardFunctionReward,
        path: Path | None,
    ) -> None:
        self._setup = setup
        self._config = config
        self._path = path

    async def ready(self) -> None:
        """Load the model. Not done while the process is made, because Ray would wrap a `UserError` of that."""
        # torch stays out of the driver, which only needs this module's handles.
        from actors.decoding import decoding_of
        from actors.reference import ReferenceScorer
        from actors.rewards import FunctionReward, RewardModel

        setup, config = self._setup, self._config
        device = "cuda" if config.resources.num_gpus else "cpu"
        match config:
            case ReferenceConfig():
                scorer: Any = ReferenceScorer(
                    setup.model_path, setup.model, decoding=decoding_of(setup.rollout), device=device
                )
            case RewardModelReward():
                assert self._path is not None
                scorer = RewardModel(self._path, setup.model_path, setup.model, device=device)
            case RewardFunctionReward():
                scorer = FunctionReward(config.function)
        budget = getattr(config, "token_budget", FUNCTION_BATCH_TOKENS)
        self._batcher = DynamicBatcher(scorer.score, cost=lambda c: len(c.token_ids_T), budget=budget)

    async def score(self, completion: Completion | Demonstration) -> Any:
        return await self._batcher.submit(completion)

    async def memory_bytes(self) -> int:
        return own_memory_bytes()


FUNCTION_BATCH_TOKENS = 2**20
"""A Python function takes all that waits."""
ACTOR_CONCURRENCY = 512
"""Calls that one worker process holds open at a time; they wait, they do not compute."""


class RolloutHandle:
    """A rollout worker as the driver sees it."""

    def __init__(self, name: str, setup: ActorSetup, scheduling: Any, *, deadline_s: float) -> None:
        self.name = name
        self.num_running = 0
        """Completions asked for and not yet here."""
        self._deadline_s = deadline_s
        options = actor_options(setup.rollout.resources, _engine_environment(setup.rollout))
        remote_class = ray.remote(RolloutWorker)
        self._actor: Any = remote_class.options(
            **options, max_concurrency=64, scheduling_strategy=scheduling
        ).remote(setup)

    async def ready(self, deadline_s: float) -> None:
        await answer(
            self._actor.ready.remote(), who=self.name, what="starting its engine", deadline_s=deadline_s
        )

    async def sample(self, requests: Sequence[SampleRequest]) -> AsyncIterator[Completion]:
        """Completions as they finish."""
        self.num_running += len(requests)
        left = len(requests)
        try:
            stream = self._actor.sample.options(num_returns="streaming").remote(list(requests))
            while left:
                reference = await answer(
                    stream.__anext__(), who=self.name, what="sampling", deadline_s=self._deadline_s
                )
                completion: Completion = await answer(
                    reference, who=self.name, what="sampling", deadline_s=self._deadline_s
                )
                left -= 1
                self.num_running -= 1
                yield completion
        finally:
            self.num_running -= left

    async def pull_weights(self, manifest: WeightManifest, *, deadline_s: float) -> "PullReport":
        """Returns once the worker serves the new version, verified."""
        report: PullReport = await answer(
            self._actor.pull_weights.remote(manifest),
            who=self.name,
            what=f"pulling weights of version {manifest.policy_version}",
            deadline_s=deadline_s,
        )
        return report

    async def memory_bytes(self) -> int:
        return int(
            await answer(
                self._actor.memory_bytes.remote(), who=self.name, what="measuring memory", deadline_s=60
            )
        )


class ScorerPool:
    """All replicas of one scorer; a request goes to the one with the fewest waiting."""

    def __init__(
        self,
        name: str,
        setup: ActorSetup,
        config: ReferenceConfig | RewardModelReward | RewardFunctionReward,
        path: Path | None,
        scheduling: Sequence[Any],
        *,
        deadline_s: float,
    ) -> None:
        self.name = name
        self._deadline_s = deadline_s
        remote_class = ray.remote(ScorerWorker)
        self._replicas: list[Any] = [
            remote_class.options(
                **actor_options(config.resources),
                max_concurrency=ACTOR_CONCURRENCY,
                scheduling_strategy=place,
            ).remote(setup, config, path)
            for place in scheduling
        ]
        self._waiting = [0] * len(self._replicas)

    async def ready(self, deadline_s: float) -> None:
        loading = [replica.ready.remote() for replica in self._replicas]
        for index, loaded in enumerate(loading):
            await answer(loaded, who=f"{self.name}-{index}", what="loading its model", deadline_s=deadline_s)

    async def score(self, completion: Completion | Demonstration) -> Any:
        """One float for a reward, [T] float32 for the reference."""
        index = self._waiting.index(min(self._waiting))
        self._waiting[index] += 1
        try:
            return await answer(
                self._replicas[index].score.remote(completion),
                who=f"{self.name}-{index}",
                what="scoring",
                deadline_s=self._deadline_s,
            )
        finally:
            self._waiting[index] -= 1

    async def memory_bytes(self) -> dict[str, int]:
        return {
            f"{self.name}-{index}": int(
                await answer(
                    replica.memory_bytes.remote(), who=self.name, what="measuring memory", deadline_s=60
                )
            )
            for index, replica in enumerate(self._replicas)
        }


def _engine_environment(rollout: RolloutConfig) -> dict[str, str]:
    """vLLM's settings that are environment variables. One process, no compilation: see the design notes."""
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if rollout.resources.num_gpus == 0:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": str(rollout.kv_cache_gib), "TORCHDYNAMO_DISABLE": "1"}
    return environment
